// A stretch of a graph, run part by part (levers/slice.h):
//
//     if <as many threads> and <older tensors have the sizes, strides and dtypes that were probed>:
//         results = empty(...)
//         for part in ...:
//             the nodes, on views of older tensors; each writes its part of a result
//     else:
//         the nodes as they were
//
// What depends on the part is read from constant lists, so the code does not grow with the parts.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "jit/overwritable.h"
#include "jit/probe.h"
#include "program/levers/slice.h"
#include "program/program.h"

namespace torch_ext::jit {

// A node of the loop that makes a part of an op's result: `part` is its output, cut to the part,
// `number` the loop's counter.
using VisitPart = std::function<void(std::size_t place, torch::jit::Node* node,
                                     torch::jit::Value* part, torch::jit::Value* number)>;

// What a program calls the values of a graph; values that are put in their places have their names.
using ValueNames = std::unordered_map<const torch::jit::Value*, std::string>;
ValueNames NamesOf(const std::vector<torch::jit::Node*>& nodes);

// `nodes` are OpNodes of the graph's block, one behind the other in the order of the stretch, and
// `program` is of them, as `probe` saw them. The stretch's own nodes are no more afterwards, unless
// they are kept for a trial: then they run in front of it, and nobody reads its results. `may_run`:
// a bool in front of them, or null. `forms`: of the program's ops and values. Returns the If.
enum class Trial {
  kNone,
  kTogether,  // parts follow from each other
  kAlone,     // each op is given parts of whole values, whatever the others make of their parts
};
torch::jit::Node* ApplyStretch(const program::Program& program,
                               const program::SlicedStretch& stretch,
                               const std::vector<torch::jit::Node*>& nodes, const Probe& probe,
                               const FormsOfArguments& forms, ValueNames& names,
                               torch::jit::Value* may_run, Trial trial = Trial::kNone,
                               const VisitPart& visit = {});

}  // namespace torch_ext::jit
