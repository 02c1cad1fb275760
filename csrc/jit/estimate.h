// What RunProbe would see, from types alone: storages, bytes and scratch memory of every node of a
// block, without inputs. For the pass, which is called with a graph whose types were profiled.
//
// Walks the block in its order. Values are tensors known by their shape, numbers known by value,
// and lists and tuples of these; ops tell what they take by running once on stand-ins (op_costs.h).
// What cannot be run is known by its type and its schema: a result whose annotation shares an
// argument's set is a view of it, any other is new. What is unknown is guessed and counted.
// Nodes with blocks count as one op, with the highest hill of their blocks.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "jit/op_costs.h"
#include "jit/probe.h"

namespace torch_ext::jit {

struct BlockPeaks {
  std::int64_t original_bytes = 0;
  std::int64_t planned_bytes = 0;
};

struct BlockEstimate {
  Probe probe;                                    // blocks inside nodes as planned
  std::vector<std::int64_t> original_hill_bytes;  // per node, blocks inside as they were
};

class Estimator {
 public:
  // Plans a block inside a node, its own inner blocks being planned already.
  using PlanBlock = std::function<BlockPeaks(torch::jit::Block*, const BlockEstimate&)>;

  // Runs no op that has not been seen after `deadline`.
  Estimator(OpCosts& costs, std::chrono::steady_clock::time_point deadline, PlanBlock plan_block)
      : costs_(costs), deadline_(deadline), plan_block_(std::move(plan_block)) {}

  // Of the whole graph; calls plan_block for the inner blocks, innermost first, and not for this.
  BlockEstimate Estimate(torch::jit::Graph& graph);

  std::int64_t num_guessed() const { return num_guessed_; }  // tensors whose size is a guess
  std::int64_t num_not_run() const { return num_not_run_; }  // ops known by liveness only

 private:
  // A block on its way into a Probe.
  struct Frame {
    BlockEstimate estimate;
    std::unordered_map<std::int32_t, std::int32_t> local;  // storage -> allocation of this block
  };

  BlockEstimate EstimateBlock(torch::jit::Block* block);
  void Visit(torch::jit::Node* node, Frame& frame, std::size_t index);
  bool VisitStructure(torch::jit::Node* node);
  bool VisitByRunning(torch::jit::Node* node, Frame& frame, NodeProbe& seen);
  void VisitBlocks(torch::jit::Node* node, Frame& frame, NodeProbe& seen,
                   std::int64_t& original_hill_bytes);
  void VisitByType(torch::jit::Node* node, Frame& frame, NodeProbe& seen);

  KnownValue FromResult(const OpCost::Result& result, const std::vector<KnownValue>& tensors,
                        const std::vector<std::int32_t>& new_storages);
  // A tensor that is new, or whose storage nobody knows.
  std::int32_t NewStorage(std::int64_t bytes, torch::jit::Value* value, Frame& frame,
                          NodeProbe& seen);
  std::int64_t BytesOf(torch::jit::Value* value, const std::vector<KnownValue>& arguments);
  KnownValue Known(torch::jit::Value* value);

  OpCosts& costs_;
  std::chrono::steady_clock::time_point deadline_;
  PlanBlock plan_block_;
  std::unordered_map<const torch::jit::Value*, KnownValue> known_;
  std::vector<std::int64_t> storage_bytes_;
  std::int64_t num_guessed_ = 0;
  std::int64_t num_not_run_ = 0;
};

}  // namespace torch_ext::jit
