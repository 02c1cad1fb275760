// A graph that may overwrite is right for calls on the CPU that record no gradients, outside of
// autocast: `out=` raises when gradients are recorded, and neither does it round as autocast does.
// All other calls run the original, the fallback:
//
//     if <autocast> or <a tensor elsewhere, nested or not strided>
//         or <gradients on, for an input or attribute> or <inputs of other sizes, where that
//         matters>: the original
//     else:
//         the graph that overwrites
//
// The file stays one of plain TorchScript, and what it does with gradients is what it always did.
// Both graphs are methods of the module (MoveToMethods), and the If calls them.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "jit/overwrite_rules.h"

namespace torch_ext::jit {

// Of each input of a graph that is a tensor; empty if no call is asked for them.
using InputSizes = std::vector<std::optional<std::vector<std::int64_t>>>;

struct Fallback {
  std::shared_ptr<torch::jit::Graph> graph;
  InputSizes sizes;  // for which alone the other graph is right

  explicit operator bool() const { return graph != nullptr; }
};

// Makes the graph such an If. Both graphs have the same inputs and outputs.
void AddFallback(const std::shared_ptr<torch::jit::Graph>& graph, const Fallback& fallback,
                 const OverwriteRules& rules = {});

// Makes of both sides of such an If methods of the module, which `graph` is the forward of. torch's
// compiler, which reads a file when it is loaded, keeps a copy of the whole source for each
// variable that is made on one side of an If alone: memory in ops times length of the source. Does
// nothing to other graphs.
void MoveToMethods(const torch::jit::Module& module, torch::jit::Graph& graph);

// Undoes AddFallback: leaves in the graph what runs without gradients, and returns the fallback.
// Nothing for any other graph, which stays as it is. `graph` is inlined.
Fallback TakeFallback(torch::jit::Graph& graph);

// Puts the fallback into the graph it was taken from, in place of what is there.
void PutBack(torch::jit::Graph& graph, const Fallback& fallback);

// Makes the graph run the fallback in every call; false for graphs that have none, which stay as
// they are. `graph` is inlined.
bool RunFallbackAlone(torch::jit::Graph& graph);

}  // namespace torch_ext::jit
