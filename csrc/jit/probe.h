// Runs a graph node by node on real inputs and records what every node takes from the allocator.
//
// A copy of the graph with an observing node before and after each node runs in torch's own
// interpreter, so kernels and lifetimes are those of a real run. Between two observing nodes all
// reports of the allocator belong to the node between them; storages are told apart by address and
// time. If and Loop nodes count as one node, with everything inside.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "jit/values.h"

namespace torch_ext::jit {

// A piece of memory that outlived the node that took it.
struct Allocation {
  std::int64_t bytes = 0;
  bool kept = false;       // still held when the graph had returned: a result
  std::string value_name;  // of a value that holds it; empty if none does
  std::string dtype;       // as Python writes it: "float32"
  std::vector<std::int64_t> shape;
};

// A value that is one tensor, as a node saw it.
struct SeenTensor {
  std::int32_t allocation = -1;  // none: older than the run
  bool fills_it = false;         // all of it, without gaps
  std::string dtype;
  std::vector<std::int64_t> shape, strides;

  // The strides of a new tensor of that size? Contiguous does not tell: dimensions of size 1 may
  // have any.
  bool HasNewStrides() const;
};

struct NodeProbe {
  std::int64_t hill_bytes = 0;       // the most the node had taken at once while it ran
  std::vector<std::int32_t> writes;  // allocations it made
  std::vector<std::int32_t> reads;   // earlier allocations its inputs hold, or that it released
  std::vector<std::int32_t> released_before_hill;  // of these, before it had taken the most
  std::vector<std::int32_t> holds;                 // allocations that its outputs lie in
  bool uses_random_state = false;
  std::vector<std::optional<SeenTensor>> read;     // for each of ReadValues(node)
  std::vector<std::optional<SeenTensor>> written;  // for each output
};

// Of a value that the node reads.
const std::optional<SeenTensor>& SeenBy(torch::jit::Node* node, const NodeProbe& seen,
                                        const torch::jit::Value* value);

struct Probe {
  std::vector<NodeProbe> nodes;  // one for each of OpNodes(graph->block()), in that order
  std::vector<Allocation> allocations;
  std::int64_t released_bytes = 0;  // of memory older than the run: attributes that were replaced
  bool other_devices = false;       // some tensor does not live in the CPU's memory
};

// `inputs` holds one value for each graph input, `self` included; they may be written to.
// Nodes that the executor will have folded into constants (FoldedNodes) count as taking nothing.
// Runs the graph twice: memory taken once and for ever (caches of kernels) must not count.
// Throws whatever the graph throws.
Probe RunProbe(const std::shared_ptr<torch::jit::Graph>& graph,
               const std::function<Stack()>& make_inputs);

}  // namespace torch_ext::jit
