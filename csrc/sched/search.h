// Exact search over down-sets: the lowest peak of any order, or proof that none is lower.
//
// A bottleneck version of Dijkstra's algorithm: states are down-sets, the key of a state is the
// highest hill on the best way to it, and states leave the queue by rising key. When the goal
// leaves, its key is the optimum. When the budget ends first, the key that was next is a proven
// lower bound. Safe steps (State::TakeSafeSteps) are taken without branching, and no state is kept
// whose key reaches `below_bytes`, so an empty queue proves that no order is below that.
//
// Source: theory of down-sets as in Section 3 of Jin, Purohit, Svitkina, Vee, Wang, "New Tools for
// Peak Memory Scheduling", arXiv 2312.13526.
// Time, space: O(states * (width + ops / 64)); exponential in the width of the graph. Practical
// limit: about 60 ops of arbitrary structure, hundreds where the bound is tight.
// Ties: fewest ops left, then least live memory, then first found; the result is deterministic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <queue>
#include <tuple>
#include <vector>

#include "sched/budget.h"
#include "sched/graph.h"
#include "sched/state_space.h"

namespace torch_ext::sched {

// Looks for the goal or for other things, and can go on where a budget ended. Hills up to
// `floor_bytes`, a proven lower bound on the peak, are all the same to it.
class DownSetSearch {
 public:
  DownSetSearch(StateSpace space, std::int64_t floor_bytes, std::int64_t below_bytes);

  enum class Found { kGoal, kLowerValley, kNothing, kOutOfBudget };
  Found FindGoal(Budget& budget);
  // The lowest state that is below the start and can be reached under the lowest possible hills
  // (kLowerValley), if there is one.
  Found FindLowerValley(Budget& budget);
  // No way whose key reaches `below_bytes` counts any more.
  void LowerLimit(std::int64_t below_bytes) { below_bytes_ = std::min(below_bytes_, below_bytes); }
  std::int64_t UsedBytes() const;
  std::size_t num_open() const { return queue_.size(); }  // states that wait

  std::vector<OpId> StepsToFound();                      // after kGoal or kLowerValley
  std::int64_t key_bytes() const { return key_bytes_; }  // no goal has a lower key

 private:
  struct Node {
    std::int64_t key_bytes;
    std::int64_t live_bytes;
    std::int32_t parent;
    OpId op;  // the step from the parent; safe steps follow
    std::int32_t num_steps;
    bool settled;
  };
  struct Slot {
    std::int32_t node = -1;  // none
    std::uint32_t hash = 0;
  };
  struct Entry {
    std::int64_t key_bytes;
    std::int32_t steps_left;
    std::int64_t live_bytes;
    std::int32_t node;

    auto Key() const { return std::tie(key_bytes, steps_left, live_bytes, node); }
    bool operator<(const Entry& other) const { return Key() > other.Key(); }  // top: the smallest
  };

  // The next state to settle, -1 if none is left.
  std::int32_t Settle();
  bool Expand(std::int32_t from, Budget& budget);
  // `scratch_` holds the state; its bits are copied if it is new.
  void Push(std::int64_t live_bytes, std::int64_t key_bytes, std::int32_t parent, OpId op);
  // The node with the state in `scratch_`; -1, and a slot for the next node, if there is none.
  std::int32_t FindOrReserve();
  void GrowTable();
  const StateSpace::Word* BitsOf(std::int32_t node) const {
    return bits_.data() + static_cast<std::size_t>(node) * space_.words_per_state();
  }
  std::uint32_t Hash(const StateSpace::Word* set) const;

  StateSpace space_;
  std::int64_t below_bytes_;
  std::vector<Node> nodes_;
  std::vector<StateSpace::Word> bits_;  // of all nodes
  std::vector<Slot> table_;             // open addressing
  std::vector<StateSpace::Word> scratch_, parent_bits_;
  std::priority_queue<Entry> queue_;
  std::int64_t key_bytes_ = 0;
  std::int32_t found_ = -1;
};

}  // namespace torch_ext::sched
