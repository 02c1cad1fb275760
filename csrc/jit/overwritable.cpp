#include "jit/overwritable.h"

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>

#include "jit/builder.h"
#include "jit/effects.h"
#include "jit/nodes.h"
#include "jit/origins.h"

namespace torch_ext::jit {
namespace {

using program::Overwrite;
using program::OverwritingForm;
using torch::jit::AliasDb;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

Value* Argument(const Node* node, const std::string& name) {
  const auto index = node->schema().argumentIndexWithName(name);
  TORCH_INTERNAL_ASSERT(index, "torch_ext: ", node->schema(), " has no argument ", name);
  return const_cast<Value*>(node->input(*index));
}

bool IsTensor(const Value* value) {
  return value->type()->kind() == c10::TypeKind::TensorType;
}

// A number of the program, and not a tensor of it: it has less to say about dtypes.
bool IsConstantNumber(const Value* value) {
  const auto constant = torch::jit::toIValue(value);
  return constant && constant->isTensor() && constant->toTensor().dim() == 0;
}

using Forms = std::multimap<std::pair<std::string, std::string>, const OverwritingForm*>;

const Forms& FormsByOperator() {
  static const Forms kForms = [] {
    Forms forms;
    for (const OverwritingForm& form : program::OverwritingForms()) {
      forms.emplace(std::pair(form.oper, form.overload), &form);
    }
    return forms;
  }();
  return kForms;
}

bool HasConstants(const Node* node, const OverwritingForm& form) {
  const auto is_constant = [&](const std::string& name, const auto& test) {
    if (name.empty()) return true;
    const auto value = torch::jit::toIValue(Argument(node, name));
    return value.has_value() && test(*value);
  };
  return is_constant(form.dtype, [](const c10::IValue& v) { return v.isNone() || v.isInt(); }) &&
         is_constant(form.no, [](const c10::IValue& v) { return v.isBool() && !v.toBool(); });
}

// Complex numbers would give complex results.
bool HasComplexNumber(const Node* node) {
  return std::ranges::any_of(node->inputs(), [](const Value* input) {
    const auto constant = torch::jit::toIValue(input);
    const c10::TypeKind kind = input->type()->kind();
    if (kind == c10::TypeKind::NumberType) return !constant || constant->isComplexDouble();
    return kind == c10::TypeKind::ComplexType;
  });
}

// Is it so in every run?
bool IsAllowed(const Node* node, const OverwritingForm& form, const Origins& origins,
               const OverwriteRules& rules) {
  const Value* argument = Argument(node, form.argument);
  if (!IsTensor(argument)) return false;
  if (rules.ours && !origins.IsOurs(argument)) return false;
  if (rules.whole && !origins.IsWhole(argument)) return false;
  if (!HasConstants(node, form) || HasComplexNumber(node)) return false;
  std::vector<const Value*> twins;  // may be the very same tensor
  for (const std::string& name : form.shaped) twins.push_back(Argument(node, name));
  return std::ranges::all_of(twins, IsTensor) &&
         std::ranges::all_of(node->inputs(), [&](const Value* input) {
           const bool is_twin = input == argument && std::ranges::count(twins, input) > 0;
           const bool is_itself =
               input == argument && std::ranges::count(node->inputs(), input) == 1;
           return is_twin || is_itself || !rules.apart || !IsMutable(input) ||
                  !origins.MayShare(input, argument);
         });
}

bool IsFloatingPoint(const std::string& dtype) {
  return dtype == "float32" || dtype == "float64" || dtype == "float16" || dtype == "bfloat16";
}

std::optional<Overwrite> Seen(Node* node, program::OpId op, const OverwritingForm& form,
                              const NodeProbe& seen) {
  const std::optional<SeenTensor>& argument = SeenBy(node, seen, Argument(node, form.argument));
  const std::optional<SeenTensor>& result = seen.written[0];
  if (!argument || !result || seen.writes.size() != 1) return std::nullopt;
  const bool are_alike = argument->shape == result->shape && argument->dtype == result->dtype &&
                         argument->strides == result->strides;
  const bool fill_theirs = argument->fills_it && result->fills_it;
  const bool are_ours = argument->allocation >= 0 && result->allocation == seen.writes[0];
  if (!are_alike || !fill_theirs || !are_ours || !IsFloatingPoint(result->dtype)) {
    return std::nullopt;
  }
  return Overwrite{op, result->allocation, argument->allocation};
}

// Are all operands as large as the argument, where they have to be?
bool AreAsLarge(Node* node, const OverwritingForm& form, const NodeProbe& seen) {
  const std::optional<SeenTensor>& argument = SeenBy(node, seen, Argument(node, form.argument));
  return form.broadcasts || std::ranges::all_of(form.shaped, [&](const std::string& name) {
           const std::optional<SeenTensor>& other = SeenBy(node, seen, Argument(node, name));
           return other && other->shape == argument->shape;
         });
}

bool HasNewStrides(Node* node, const OverwritingForm& form, const NodeProbe& seen) {
  const auto has_new_strides = [&](const std::string& name) {
    const std::optional<SeenTensor>& tensor = SeenBy(node, seen, Argument(node, name));
    return tensor.has_value() && tensor->HasNewStrides();
  };
  return has_new_strides(form.argument) && std::ranges::all_of(form.shaped, has_new_strides);
}

// The stride of a dimension of size 0 or 1 may be any, and kernels choose it in ways of their own.
bool HasClearStrides(Node* node, const OverwritingForm& form, const NodeProbe& seen) {
  return std::ranges::none_of(SeenBy(node, seen, Argument(node, form.argument))->shape,
                              [](std::int64_t size) { return size < 2; });
}

struct SeenUse {
  std::vector<Overwrite> overwrites;  // of each probe
  bool has_new_strides = true;        // in all of them
};

// Nothing unless the form can be used in every probe.
std::optional<SeenUse> SeenInAll(Node* node, program::OpId op, const OverwritingForm& form,
                                 const std::vector<Probe>& probes) {
  SeenUse use;
  bool has_clear_strides = true;
  for (const Probe& probe : probes) {
    const NodeProbe& seen = probe.nodes[op];
    const std::optional<Overwrite> overwrite = Seen(node, op, form, seen);
    if (!overwrite || !AreAsLarge(node, form, seen)) return std::nullopt;
    use.overwrites.push_back(*overwrite);
    use.has_new_strides &= HasNewStrides(node, form, seen);
    has_clear_strides &= HasClearStrides(node, form, seen);
  }
  if (!use.has_new_strides && !(form.keeps_layout && has_clear_strides)) return std::nullopt;
  return use;
}

}  // namespace

// Ops that change the state others run in may turn gradients on, or run beside the graph. And where
// an op does not declare what it does, it depends on the executor's own passes what the program
// computes: they merge ops and run some in advance, and with other ops, or with the original beside
// them (fallback.h), not the same ones.
std::string WhyNotEdited(const std::vector<Node*>& nodes, const Interference& interference) {
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const program::Effects& effects = interference.effects[i];
    if (effects.is_stateful) {
      return OpName(nodes[i], i) + " changes the state that other ops run in";
    }
    if (!effects.undeclared.empty()) {
      return OpName(nodes[i], i) + " may write to anything: " + effects.undeclared;
    }
  }
  return {};
}

Overwritable FindOverwritable(const std::shared_ptr<Graph>& graph, const std::vector<Node*>& nodes,
                              const std::vector<Probe>& probes, const Interference& interference,
                              const OverwriteRules& rules) {
  Overwritable found;
  found.overwrites.resize(probes.size());
  found.refusal = WhyNotEdited(nodes, interference);
  if (!found.refusal.empty()) return found;
  const AliasDb alias_db(graph);
  const Origins origins(alias_db, nodes, interference.effects);
  std::unordered_set<const Value*> bases;  // tensors that are no views, whatever is overwritten
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    Node* node = nodes[i];
    const c10::FunctionSchema* schema = node->maybeSchema();
    if (schema == nullptr || node->outputs().size() > 1 || HidesAliases(node)) continue;
    bool is_base = !node->outputs().empty() && origins.IsNew(node->output());
    const auto [first, last] =
        FormsByOperator().equal_range({schema->name(), schema->overload_name()});
    for (auto form = first; form != last; ++form) {
      if (!IsAllowed(node, *form->second, origins, rules)) continue;
      const auto op = static_cast<program::OpId>(i);
      const Value* argument = Argument(node, form->second->argument);
      std::optional<SeenUse> seen = SeenInAll(node, op, *form->second, probes);
      if (!seen) continue;
      std::vector<program::OpId> others = origins.Touchers(argument);
      std::erase(others, op);
      const bool is_read_with_result = std::ranges::any_of(others, [&](program::OpId other) {
        return std::ranges::count(ReadValues(nodes[other]), node->output()) > 0;
      });
      if (is_read_with_result) continue;  // the reader would have to run before and after
      const bool is_over_base = bases.contains(argument);
      if (rules.bases && !is_over_base && !origins.IsOurs(node->output())) continue;
      is_base &= is_over_base;
      if (!rules.others) others.clear();
      for (std::size_t p = 0; p < probes.size(); ++p) {
        seen->overwrites[p].others = others;
        found.overwrites[p].push_back(std::move(seen->overwrites[p]));
      }
      found.forms.push_back({node, form->second, seen->has_new_strides});
    }
    if (is_base) bases.insert(node->output());
  }
  return found;
}

namespace {

class Questions : public Builder {
 public:
  using Builder::Builder;

  // Tensors without memory tell what strides there would be.
  Value* HasNewStrides(Value* tensor) {
    Value* none = Constant({});
    return Equal(Strides(tensor),
                 Strides(Tensor("aten::empty", {Sizes(tensor), none, none, Meta(), none, none})));
  }

  Value* WithoutMemory(Value* tensor) {
    Value* none = Constant({});
    return Tensor("aten::empty_strided",
                  {Sizes(tensor), Strides(tensor), Dtype(tensor), none, Meta(), none});
  }

 private:
  Value* Meta() { return Constant(c10::Device(c10::kMeta)); }
};

// All that OverwritingForm takes for granted, as far as it may be different in another call; for
// tensors with new strides. It costs a call about a microsecond.
std::vector<Value*> Conditions(Questions& build, const Node* node, const OverwritingForm& form,
                               const OverwriteRules& rules) {
  Value* argument = Argument(node, form.argument);
  std::vector<Value*> all;
  if (rules.strides) all.push_back(build.HasNewStrides(argument));
  if (rules.dtypes) all.push_back(build.Ask("aten::is_floating_point", {argument}));
  if (rules.dtypes && !form.dtype.empty()) {
    Value* dtype = Argument(node, form.dtype);
    if (!torch::jit::toIValue(dtype)->isNone()) {
      all.push_back(build.Equal(build.Dtype(argument), dtype));
    }
  }
  if (rules.sizes && !form.rest_like.empty()) {  // the form does not look whether it has as many
    Value* channels =
        build.Call("aten::slice",
                   {build.Sizes(argument), build.Constant(1), build.Constant(2), build.Constant(1)},
                   c10::ListType::ofInts());
    all.push_back(build.Equal(channels, build.Sizes(Argument(node, form.rest_like))));
  }
  for (const std::string& name : form.shaped) {
    Value* other = Argument(node, name);
    if (other == argument) continue;
    if (IsConstantNumber(other)) {  // whoever has a dimension decides about the dtype
      Value* dimensions = build.Number("aten::dim", {argument});
      all.push_back(build.Ask("aten::gt", {dimensions, build.Constant(0)}));
      continue;
    }
    Value* sizes = build.Sizes(argument);
    Value* result_sizes = build.Sizes(other);
    if (form.broadcasts) {
      result_sizes = build.Numbers("aten::_infer_size", {sizes, result_sizes});
    }
    if (rules.sizes) all.push_back(build.Equal(result_sizes, sizes));
    if (rules.strides) all.push_back(build.HasNewStrides(other));
    if (rules.dtypes && std::ranges::count(form.typed, name) > 0) {
      all.push_back(build.Equal(build.Dtype(argument), build.Dtype(other)));
    }
  }
  return all;
}

// The same for any layout: the op itself, on tensors without memory, tells what the result would
// look like. It costs a call about ten microseconds.
std::vector<Value*> ExactConditions(Questions& build, Node* node, const OverwritingForm& form) {
  Value* argument = Argument(node, form.argument);
  std::vector<Value*> inputs(node->inputs().begin(), node->inputs().end());
  for (Value*& input : inputs) {
    const auto is_input = [&](const std::string& name) { return Argument(node, name) == input; };
    const bool is_shaped = input == argument || std::ranges::any_of(form.shaped, is_input);
    if (is_shaped && !IsConstantNumber(input)) input = build.WithoutMemory(input);
  }
  Value* result = build.Tensor(form.oper, inputs);
  Value* sizes = build.Sizes(argument);
  const auto is_no_size = [&](std::int64_t size) {
    return build.Ask("aten::__not__",
                     {build.Ask("aten::__contains__", {sizes, build.Constant(size)})});
  };
  return {is_no_size(0),
          is_no_size(1),
          build.Equal(build.Strides(result), build.Strides(argument)),
          build.Equal(build.Sizes(result), sizes),
          build.Equal(build.Dtype(result), build.Dtype(argument)),
          build.Ask("aten::is_floating_point", {argument})};
}

Value* CallForm(Questions& build, const Node* node, const OverwritingForm& form) {
  const auto op = torch::jit::findOperatorFor({form.form, form.form_overload});
  TORCH_INTERNAL_ASSERT(op, "torch_ext: there is no ", form.form, ".", form.form_overload);
  const std::vector<c10::Argument>& arguments = op->schema().arguments();
  std::vector<Value*> inputs;
  for (const c10::Argument& argument : arguments) {
    const bool is_written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    if (argument.name() == form.target) {
      inputs.push_back(Argument(node, form.argument));
    } else if (is_written) {  // a second result, that is empty in this form
      Value* sizes = build.Constant(std::vector<std::int64_t>{0});
      inputs.push_back(build.Empty(sizes, build.Dtype(Argument(node, form.rest_like))));
    } else if (argument.name() == form.adds_no) {
      inputs.push_back(build.Constant(false));
    } else {
      inputs.push_back(Argument(node, argument.name()));
    }
  }
  return build.Call(form.form, inputs, c10::TensorType::get(), op->schema().returns().size());
}

}  // namespace

FormsOfArguments FormsByArgument(const Overwritable& overwritable) {
  FormsOfArguments forms;
  for (std::size_t i = 0; i < overwritable.forms.size(); ++i) {
    const OverwriteForm& use = overwritable.forms[i];
    const program::OpId op = overwritable.overwrites[0][i].op;
    const auto place = *use.node->schema().argumentIndexWithName(use.form->argument);
    forms.emplace(std::pair(op, static_cast<std::size_t>(place)), use.form);
  }
  return forms;
}

Node* PutForm(Node* node, const OverwritingForm& form) {
  const torch::jit::WithInsertPoint before(node);
  Questions build(node);
  Value* result = CallForm(build, node, form);
  Replace(node, result);
  return result->node();
}

void ApplyOverwrite(const OverwriteForm& overwrite, const OverwriteRules& rules) {
  Node* node = overwrite.node;
  const torch::jit::WithInsertPoint before(node);
  Questions build(node);
  const std::vector<Value*> conditions = overwrite.has_new_strides
                                             ? Conditions(build, node, *overwrite.form, rules)
                                             : ExactConditions(build, node, *overwrite.form);
  const auto as_it_was = [&] {
    torch::jit::Graph& graph = *node->owningGraph();
    return graph.insertNode(graph.createClone(node, [](Value* value) { return value; }))->output();
  };
  Value* choice = build.If(
      build.All(conditions), node->output()->type(),
      [&] { return CallForm(build, node, *overwrite.form); }, as_it_was);
  Replace(node, choice);
}

}  // namespace torch_ext::jit
