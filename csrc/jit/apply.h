// From a plan back to a TorchScript block.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <vector>

#include "jit/copyable.h"
#include "jit/overwritable.h"
#include "jit/overwrite_rules.h"
#include "program/edits.h"
#include "sched/graph.h"

namespace torch_ext::jit {

// Moves nodes[order[0]], nodes[order[1]], ... to the end of `block`, their own, in this sequence,
// behind the constants. Checks afterwards that every value is made before it is used (throws
// c10::Error, a bug of ours) and runs the graph's own lint.
void ApplyOrder(torch::jit::Block* block, const std::vector<torch::jit::Node*>& nodes,
                const sched::Order& order);

// The same with edits. `order` is of `nodes` and, behind them, of the copies that are hoisted
// (program::OldOpOfCopy). The nodes that are edited are no more afterwards.
void ApplyEdits(torch::jit::Block* block, const std::vector<torch::jit::Node*>& nodes,
                const sched::Order& order, const program::Edits& edits,
                const Overwritable& overwritable, const Copyable& copyable,
                const OverwriteRules& rules = {});

}  // namespace torch_ext::jit
