// Cutting a graph into pieces that can be scheduled on their own.
#pragma once

#include <climits>
#include <cstdint>
#include <span>
#include <vector>

#include "sched/graph.h"
#include "sched/names.h"

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

// The regions of a graph, recursively: modules of its precedence order, that is sets of ops to
// which every op outside stands in one and the same relation (before, after or incomparable).
struct RegionTree {
  using Kind = RegionKind;
  struct Node {
    Kind kind;
    std::int32_t begin, end;  // its ops are ops[begin, end), a valid order
    std::int32_t parent;
    std::int32_t depth;
    std::int32_t first_child = 0, num_children = 0;  // consecutive nodes, after their parent
    // The depth of the shallowest parallel node at which a buffer closes that this node's ops and
    // others incomparable with all of it read; kClosed if there is none. A node is *isolated* if it
    // is closed: what it does to memory does not depend on what runs around it.
    std::int32_t open_depth = kClosed;
    // Of a child of a parallel node: the first sibling it shares a dying buffer with, by way of
    // others perhaps; itself if it shares none.
    std::int32_t coupled_with = 0;
  };
  static constexpr std::int32_t kClosed = INT32_MAX;

  std::vector<OpId> ops;
  std::vector<Node> nodes;  // nodes[0] is the root; none for an empty graph
};

// Series nodes are cut at all their series cuts, parallel nodes into all their components; what is
// neither is prime and stays whole, as do nodes deeper than `most_depth`. Time: O((ops + edges) *
// depth), and what lies too deep for a small multiple of ops + edges stays whole too.
RegionTree FindRegions(const Graph& graph, std::int32_t most_depth = INT32_MAX);

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
