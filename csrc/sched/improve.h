// Anytime improvement of an order: for graphs that no theorem covers.
//
// The neighbourhood is the two-chain merge (merge.h). Take a window around the peak and any subset
// of its ops; the subset keeps its relative order, so does the rest, and the best of all
// interleavings of the two is a shortest path on a grid. The order at hand is one of the paths, so
// no step makes it worse. Costs are steep in the hills, which stands for comparing profiles from
// their highest hill down: a step that lowers one of two equally high hills counts.
//
// Several orders are improved side by side and crossed: a subset in the order of one parent, the
// rest in the order of the other, joined by the same merge.
//
// Works on any graph; proves nothing. The smallest kind of graph where it fails: two ops of a chain
// pair must change places with a third chain in between, and no subset of the window has both.
// Time of a step: one merge of a window (merge.h). Memory: O(ops) for each order.
// Determinism: seeded, and bounded by counted work; a larger budget continues the same search.
#pragma once

#include <cstdint>
#include <vector>

#include "sched/budget.h"
#include "sched/graph.h"

namespace torch_ext::sched {

class Improver {
 public:
  // `orders` are valid orders of `graph`, at least one; equal ones are dropped.
  Improver(const Graph& graph, std::vector<Order> orders);
  ~Improver();
  Improver(Improver&&) noexcept;

  // Goes on until no hill is above `floor_bytes` or the budget is spent.
  void Run(std::int64_t floor_bytes, Budget& budget);

  const Order& best() const;
  std::int64_t peak_bytes() const;

 private:
  class Search;
  void Admit(Search child);

  std::vector<Search> searches_;  // one per order, best first
  std::uint64_t round_ = 0;
};

}  // namespace torch_ext::sched
