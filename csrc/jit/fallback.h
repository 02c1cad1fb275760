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
#pragma once

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

// Undoes it: leaves in the graph what runs without gradients, and returns the fallback. Nothing for
// any other graph, which stays as it is. `graph` is inlined.
Fallback TakeFallback(torch::jit::Graph& graph);

// Puts the fallback into the graph it was taken from, in place of what is there.
void PutBack(torch::jit::Graph& graph, const Fallback& fallback);

// Makes the graph run the fallback in every call; false for graphs that have none, which stay as
// they are. `graph` is inlined.
bool RunFallbackAlone(torch::jit::Graph& graph);

}  // namespace torch_ext::jit
