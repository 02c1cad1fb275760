// What an operator does beyond its data flow: the one table of rules for nodes of TorchScript
// (effects.h) and of torch.fx (torch_ext/fx/hazards.py).
//
// Most of it is in the schema and the tags that torch gives an operator. What they do not tell is
// listed in operator_effects.cpp, by name.
#pragma once

#include <ATen/core/function_schema.h>

#include <cstddef>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace torch_ext::jit {

// Arguments by name, so far as they are constants of the program: `training`, `dropout_p`, ...
using Constants = std::map<std::string, std::variant<bool, double>>;

struct OperatorEffects {
  // Positions of arguments.
  std::vector<std::size_t> writes;      // the schema says that it writes to them
  std::vector<std::size_t> statistics;  // running statistics that it updates; no schema says so

  std::string undeclared;  // why nobody knows what it writes; empty if that is known
  bool draws_random_numbers = false;
  bool is_stateful = false;       // changes the state that other ops run in
  bool has_side_effect = false;   // raises, prints: keeps its place among what others show
  bool changes_metadata = false;  // gives a tensor other sizes, strides or memory
  bool is_collective = false;     // has to meet the same op of other processes

  // May it return what it was given, or a view of it, without saying so? Its schema tells of
  // something new, and AliasDb believes it; but composite ops do what the ops they call do: dropout
  // out of training, type_as, sum_to_size, einsum, chain_matmul of one matrix, ... return their
  // input. Ops with kernels of their own are held to their schemas by torch's own tests, but for a
  // few. After `set_` two of the inputs share memory.
  bool hides_aliases = false;
};

OperatorEffects EffectsOf(const c10::FunctionSchema& schema, const Constants& constants);

// Of a registered operator, e.g. "aten::add", "Tensor". Throws if there is none.
OperatorEffects EffectsOf(const std::string& name, const std::string& overload,
                          const Constants& constants);

// Is it given running statistics, which batch and instance norm update in training?
bool HasStatistics(const c10::FunctionSchema& schema);

}  // namespace torch_ext::jit
