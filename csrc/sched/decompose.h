// Cutting a graph into pieces that can be scheduled on their own.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched {

// The positions k of `order` (0 < k < n) at which a series cut lies: every one of the first k ops
// precedes every later op. Any valid order finds the same cuts, for the first part of a cut is a
// prefix of every order. Buffers may cross a cut freely, so skip connections do not break it.
//
//        b
//      /   \                     cuts | of  a b c d e:   a | b c | d | e
//    a       d --- e             (the skip a -> e crosses all of them)
//     \\   /     /
//      \ c      /
//       `------'
//
// Source: the series step of theory for two-terminal and precedence series-parallel orders (Valdes,
// Tarjan, Lawler 1982), generalised to cuts without a single separating op: the k-cut exists if and
// only if each op that is maximal in the first part has a direct edge to each op that is minimal in
// the rest. Counting these three quantities for all k at once takes O(ops + edges).
std::vector<std::int32_t> SeriesCuts(const Graph& graph, std::span<const OpId> order);

// A run of consecutive ops of an order as a graph of its own: what ran before has run, what comes
// after has not. Buffers born earlier are inputs, buffers used later are kept; those that only pass
// by are summed in one kept input, so peaks of the slice are absolute peaks.
struct Slice {
  Graph graph;
  std::vector<OpId> ops;  // op i of `graph` is op ops[i] of the graph it was cut from
};

// Cuts out order[begin, end). Time: O(ops and buffers of the slice) given the cutter's index.
class Slicer {
 public:
  Slicer(const Graph& graph, std::span<const OpId> order);
  Slice Cut(std::int32_t begin, std::int32_t end) const;

 private:
  const Graph& graph_;
  std::vector<OpId> order_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> last_use_;           // per buffer: position of its last user
  std::vector<std::int64_t> live_before_bytes_;  // per position
};

}  // namespace torch_ext::sched
