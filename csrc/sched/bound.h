// Lower bounds on the peak of every order, and the op that sets them.
//
// While op v runs, the ops that have run form a down-set S with all ancestors of v and without v
// and its descendants. So min over such S of live(S), plus v's hill, bounds the peak from below. It
// is a minimum closure problem, solved by one maximum flow (Picard 1976):
//
//     source --size--> b          buffer b alive from the start or from an ancestor of v
//     p --size--> b --inf--> u    buffer b is paid for when its producer p has run, user u has not
//     p --size--> sink            ... when b is kept or v or a descendant of v reads it
//     x --inf--> p                if x has run, so has its predecessor p
//
// with ancestors merged into the source, v and its descendants into the sink.
// Time: one Dinic flow over the ops incomparable with v and their buffers.
// Exact when: the best order reaches its peak in a state that is free to be the cheapest for that
// op; it is not when no single order can be that good for all ops at once.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sched/budget.h"
#include "sched/flow.h"
#include "sched/graph.h"

namespace torch_ext::sched {

// The lowest hill of `op` over the states in which the ops of `done` have run and those of
// `waiting` have not, and the smallest and the largest such state. `op` must not be before a `done`
// nor after a `waiting`.
struct LowestHill {
  std::int64_t bytes = 0;     // a lower bound, if not exact
  std::vector<char> has_run;  // per op, the smallest such state; empty if not exact
  std::vector<char> waits;    // per op: it has not run in the largest such state; empty likewise
  bool is_exact = false;      // false if the budget ended first
};
LowestHill FindLowestHill(const Graph& graph, OpId op, std::span<const OpId> done,
                          std::span<const OpId> waiting, Budget& budget);

// The same question about one op under many conditions: only differences are solved anew.
class HillFinder {
 public:
  HillFinder(const Graph& graph, OpId op, Budget& budget);

  const LowestHill& lowest() const { return lowest_; }
  bool IsFree(OpId x) const { return force_in_[x] >= 0; }  // neither before nor after the op
  // If the free op `x` has run, or has not; not exact once `enough_bytes` are reached.
  LowestHill Given(OpId x, bool has_run, std::int64_t enough_bytes, Budget& budget);

 private:
  FlowNetwork network_;
  std::vector<std::int32_t> node_of_;  // per op
  std::int64_t fixed_bytes_;
  std::vector<std::int32_t> force_in_, force_out_;  // edges, per op; -1 if it is not free
  LowestHill lowest_;
};

struct OpBound {
  OpId op = kNoOp;
  std::int64_t bytes = 0;         // no order runs `op` with less memory in use
  std::vector<BufferId> buffers;  // what is alive then: the cheapest state plus the op's outputs
};

// Less than the closure if the budget ends first: the op and what it reads and writes.
OpBound ClosureBound(const Graph& graph, OpId op, Budget& budget);

// The lowest live bytes of any state, the first and the last included; nothing if the budget ends
// first. One flow.
std::optional<std::int64_t> LowestLiveBytes(const Graph& graph, Budget& budget);

// A lower bound on the peak by `op` and its neighbours. Of the op's direct predecessors one runs
// last, and when it does all others have run; the cheapest choice of that one bounds the peak. The
// same with the direct successor that runs first. Only those count that are not implied by another.
// O(neighbours) flows; gives up when it cannot exceed `above_bytes`.
std::int64_t NeighbourBound(const Graph& graph, OpId op, std::int64_t above_bytes, Budget& budget);
// The highest, over the ops by falling hill in `order`, as far as the budget goes.
std::int64_t BestNeighbourBound(const Graph& graph, std::span<const OpId> order,
                                std::int64_t above_bytes, Budget& budget);

// The highest bound over all ops, lazily: ops by falling hill in an order, until no hill is above
// the best bound (a bound never exceeds a hill). Goes on where it stopped, with better orders too.
class ClosureBounds {
 public:
  explicit ClosureBounds(const Graph& graph);

  void Raise(std::span<const OpId> order, Budget& budget);
  const OpBound& best() const { return best_; }  // op is kNoOp until an op has been bounded

 private:
  const Graph* graph_;
  OpBound best_;
  std::vector<char> is_bounded_;  // per op
};

// ClosureBounds at once.
OpBound BestClosureBound(const Graph& graph, std::span<const OpId> order, Budget& budget);

}  // namespace torch_ext::sched
