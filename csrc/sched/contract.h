// Chains of ops as ops of smaller graphs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/graph.h"
#include "sched/profile.h"

namespace torch_ext::sched {

// Ops in a fixed order, and its canonical profile; each segment covers the next `num_ops` ops.
struct Chain {
  std::vector<OpId> ops;
  std::vector<Segment> segments;
};

// One op per segment of the chains, in the original order as far as the chains allow it; runs[i]
// are the ops behind op i of the graph.
struct Contraction {
  Graph graph;
  std::vector<std::vector<OpId>> runs;

  Order Expand(const Order& order) const;
};
Contraction Contract(const Graph& graph, const std::vector<Chain>& chains);

// Makes small graphs of chains in O(their ops, edges and buffers), and a sort; looking up what each
// needs in tables of the whole graph.
class Contractor {
 public:
  explicit Contractor(const Graph& graph);

  // Of an op in an isolated region, or one that is a region: see RegionTree::Node::open_depth.
  Segment SegmentOf(OpId v) const;

  // The ops of a region as chains u -> w in which w is u's only successor in the region and u is
  // w's only predecessor in it, in order of their first ops. ReadsOnlyOwn is about these until the
  // next call.
  std::vector<std::vector<OpId>> PrivateChains(std::span<const OpId> ops);

  // Is every buffer that may die at `v` read by v's chain alone?
  bool ReadsOnlyOwn(OpId v) const;

  // `chains` hold all ops of an isolated region, each after the chains it depends on. Buffers that
  // outlive the region are kept; those that live through it without being freed are left out.
  // `parts`: chains [parts[i], parts[i + 1]) are incomparable with all others.
  Contraction Contract(const std::vector<Chain>& chains, const std::vector<std::size_t>& parts);

 private:
  // A run of ops as an op of a smaller graph, before it is added there.
  struct Run {
    std::vector<OpId> ops;
    std::vector<BufferId> reads;   // of the smaller graph
    std::vector<BufferId> writes;  // ... which no other run writes
    std::vector<OpId> after;
    std::int64_t hill_bytes;
  };

  std::int64_t Size(BufferId b) const { return graph_.buffer(b).size_bytes; }
  void Connect(Run& run, std::int32_t id, OpId last_op, Graph& small,
               std::vector<BufferId>& touched);
  // The original order of the first ops, as far as precedence allows it.
  static void SortByFirstOp(std::vector<Run>& runs);
  // Equal parts are interchangeable: any order can be changed into one that starts them in the
  // order they are listed in, and if they are chains, one in which none overtakes an earlier one.
  void BreakSymmetry(const Graph& small, std::vector<Run>& runs,
                     const std::vector<std::size_t>& part_begin) const;

  const Graph& graph_;
  std::vector<OpId> last_use_;          // per buffer, -1 if unread
  std::vector<std::int32_t> run_of_;    // per op, -1 outside
  std::vector<BufferId> local_;         // per buffer, -1 outside
  std::vector<std::int32_t> chain_of_;  // per op: its private chain
};

}  // namespace torch_ext::sched
