// The state of every search: which ops have run, and what memory that leaves alive.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched {

// Forward: from the first op to the last. Backward: from the last op to the first, un-running ops.
// Peaks are the same either way; searches differ in what they decide first.
enum class Direction { kForward, kBackward };

// The ops run so far (down-set), the memory then alive, and the ops that may step next.
//
// A step forward runs an op; a step backward un-runs one. Either way
//     hill(v) = live before v + Graph::HillBytes(v),   live after v = live before v + net(v).
class State {
 public:
  // The state before the first step: nothing has run (forward) or everything has (backward).
  State(const Graph& graph, Direction direction);

  struct Move {
    std::int64_t hill_bytes;  // memory while the op runs
    std::int64_t live_bytes;  // memory once the step is taken
  };

  Move Look(OpId v) const;       // O(reads + writes of v)
  void Step(OpId v, Move move);  // `v` must be in ready()
  std::int64_t live_bytes() const { return live_bytes_; }
  const std::vector<OpId>& ready() const { return ready_; }  // ascending
  std::int32_t num_steps() const { return num_steps_; }

  // Goes round the ready ops, takes those that keep within `limit_bytes` and do not raise memory,
  // and appends them to `steps`, until none is left. Returns the number of ops looked at. Such a
  // step is *safe*: if any order from here keeps within the limit, so does one that starts with it.
  // (Exchange: moving the op to the front adds at most net(v) <= 0 to every hill it passes, because
  // net can only fall as more ops have run before it: live is submodular. Backwards the mirror
  // image holds.)
  std::int64_t TakeSafeSteps(std::int64_t limit_bytes, std::vector<OpId>& steps);

 private:
  std::int64_t NetBytes(OpId v) const;

  const Graph* graph_;
  Direction direction_;
  std::vector<std::int32_t> users_left_;  // per buffer: its users that have not run
  std::vector<std::int32_t> waits_for_;   // per op: neighbours that must step before it
  std::vector<OpId> ready_;
  std::int64_t live_bytes_ = 0;
  std::int32_t num_steps_ = 0;
};

}  // namespace torch_ext::sched
