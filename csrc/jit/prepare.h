// From a module to the graph that is planned.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <vector>

#include "jit/fallback.h"

namespace torch_ext::jit {

// Both throw c10::Error if there is no method forward.
torch::jit::Method ForwardMethod(const torch::jit::Module& module);
std::shared_ptr<torch::jit::Graph> ForwardGraph(const torch::jit::Module& module);

// Inlines all calls and runs the executor's own clean-up passes ahead of time (dead code, common
// subexpressions, peephole, constants of immutable types, tuples), so that the graph that is
// planned is the graph that will be executed. Forgets recorded shapes first, as the executor does:
// they hold for the traced inputs only; recorded dtypes stay where they decide what is rounded when
// the module runs under autocast. A graph with calls that do not declare what they write is only
// inlined: the passes would take two values for equal of which such a call changes one, and not
// always those that the executor takes for equal later.
//
// Throws c10::Error, which says why the graph must be left alone: torch's passes fail; they lose
// the update of running statistics by a norm whose output nobody reads, for the executor may keep
// it; they merge two results of equal values into one tensor, for the executor may have folded them
// before; or the graph enters torch.autocast, whose casts the executor adds when it compiles the
// graph, if it does: that depends on switches of that moment.
//
// Returns the fallback of a graph that has one (fallback.h), and nothing for others. What is left
// then is the graph for calls without gradients.
Fallback PrepareGraph(std::shared_ptr<torch::jit::Graph>& graph);

// For each of OpNodes(graph->block()): does the executor compute it once, when it makes its plan,
// and keep the result as a constant? Such nodes take no memory in a settled call. None, if torch's
// optimiser is switched off at the moment.
std::vector<char> FoldedNodes(const std::shared_ptr<torch::jit::Graph>& graph);

// For each of the same nodes: will the executor run it for certain, as it is? What else its
// optimiser does (it folds, unrolls loops, sees through lists that are written to), and the
// clean-up that PrepareGraph left out, may drop a node, and memory may be held for a shorter time.
// Beside a task, which takes memory when it pleases, nothing is certain.
std::vector<char> CertainNodes(const std::shared_ptr<torch::jit::Graph>& graph);

}  // namespace torch_ext::jit
