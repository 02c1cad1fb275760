// From a TorchScript block to the core's graph, and from an order back to the block.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <vector>

#include "jit/hazards.h"
#include "jit/probe.h"
#include "sched/graph.h"

namespace torch_ext::jit {

// Op i is nodes[i]; buffers are the probe's allocations, with buffer names made unique. Precedence
// is the data flow (every value, whatever its type) plus the hazards.
sched::Graph ExtractGraph(const std::vector<torch::jit::Node*>& nodes, const Probe& probe,
                          const Hazards& hazards);

// Leaves of the probe what a lower bound may count on; returns whether that is less. Nodes that are
// not `certain` (CertainNodes) hold, take and make nothing; what a node releases before it takes
// the most it does not hold at that moment.
bool KeepCertain(const std::vector<char>& certain, Probe& probe);

// Moves nodes[order[0]], nodes[order[1]], ... to the end of `block`, their own, in this sequence,
// behind the constants. Checks afterwards that every value is made before it is used (throws
// c10::Error, a bug of ours) and runs the graph's own lint.
void ApplyOrder(torch::jit::Block* block, const std::vector<torch::jit::Node*>& nodes,
                const sched::Order& order);

}  // namespace torch_ext::jit
