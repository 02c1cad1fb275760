// Precedences that every order below a given peak obeys, although no buffer asks for them.
//
// Let v and x be incomparable. If v cannot run below the peak in any state in which x has run,
// every order below the peak runs v before x; if it cannot in any state in which x has not, x
// before v; if neither is possible, no order is below the peak. One minimum cut (bound.h) answers
// each question, and the state behind a cut that stays below answers it for all other x at once, so
// few flows are needed. What is found is added to the graph, which makes later cuts higher; round
// after round.
//
// Proof: "x has run when v runs" or not, in every order; each added precedence holds in every order
// below the peak, so by induction over the additions the graph keeps all of those. A cycle among
// additions leaves none.
// Time: O(ops^2) flows at worst, in practice a few per op. Memory: an edge per precedence.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "sched/budget.h"
#include "sched/graph.h"

namespace torch_ext::sched {

class Tightener {
 public:
  explicit Tightener(Graph graph);

  enum class Result {
    kImpossible,  // no order is below the peak
    kExhausted,   // nothing more follows from single ops
    kOutOfBudget,
  };
  // Goes on where it stopped; a lower `below_bytes` starts anew with what was found.
  Result Tighten(std::int64_t below_bytes, Budget& budget);

  // With the precedences found so far, in an order that obeys them.
  const Graph& graph() const { return graph_; }
  const Order& ops() const { return ops_; }  // op i of it is op ops()[i] of the graph given
  std::int32_t num_precedences() const { return num_precedences_; }

 private:
  Result StartPass(Budget& budget);
  Result TightenAround(OpId original, Budget& budget);
  bool AddPrecedences(const std::vector<std::pair<OpId, OpId>>& pairs);

  Graph graph_;
  Order ops_;
  std::int64_t below_bytes_ = std::numeric_limits<std::int64_t>::max();
  std::vector<std::int64_t> lowest_bytes_;  // of the first ops of graph_: the lowest hill
  std::vector<OpId> pending_;  // of this pass, in ids of the graph given; the last is next
  bool found_ = false;         // something was added since this pass began
  std::int32_t num_precedences_ = 0;
};

}  // namespace torch_ext::sched
