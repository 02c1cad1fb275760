// How long each node of a graph takes.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "jit/values.h"

namespace torch_ext::jit {

// Nanoseconds of each of OpNodes(graph->block()) in torch's own interpreter: the median of three
// runs, after one that does not count, rounded to two digits, for more are noise. Nodes that the
// executor will have folded (FoldedNodes) take none. Throws whatever the graph throws.
std::vector<std::int64_t> TimeNodes(const std::shared_ptr<torch::jit::Graph>& graph,
                                    const std::function<Stack()>& make_inputs);

}  // namespace torch_ext::jit
