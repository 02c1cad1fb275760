// The states of a graph as flat bits, for searches that hold millions of them.
//
// State (down_set.h) walks one way and counts; a StateSpace holds what all states share, and a
// state is two bit sets and a number. Both follow the same rules and are tested against each other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/down_set.h"
#include "sched/graph.h"
#include "sched/rules.h"

namespace torch_ext::sched {

class StateSpace {
 public:
  using Word = std::uint64_t;

  // The way from the down-set `from` to the down-set `to` (one flag per op; empty: nothing has run
  // and everything has). Forward needs from <= to and runs ops, backward to <= from and un-runs.
  StateSpace(const Graph& graph, Direction direction, std::span<const char> from = {},
             std::span<const char> to = {}, const Rules& rules = {});

  // A state's bits: the ops that have stepped (run or un-run), then those that may step next.
  std::size_t words_per_set() const { return words_; }
  std::size_t words_per_state() const { return 2 * words_; }
  const std::vector<Word>& start() const { return start_; }
  std::int64_t start_bytes() const { return start_bytes_; }
  std::int32_t num_steps() const { return num_steps_; }  // from the start to the goal

  static bool Contains(const Word* set, OpId v) { return (set[v >> 6] >> (v & 63)) & 1; }
  const Word* ready(const Word* state) const { return state + words_; }

  State::Move Look(const Word* state, std::int64_t live_bytes, OpId v) const;
  void Step(Word* state, OpId v) const { Step(state, v, nullptr); }

  // As State::TakeSafeSteps, none if the rules are without; appends to `steps` unless null and adds
  // to `num_looks`. Returns the live bytes afterwards.
  std::int64_t TakeSafeSteps(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                             std::vector<OpId>* steps, std::int64_t& num_looks);
  // Step v from a state without safe steps under the same limit, then the safe steps that follow.
  // What v does not touch cannot become safe unless memory falls below where it was.
  std::int64_t StepSafely(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes, OpId v,
                          std::int64_t& num_looks);

  // A step that raises memory, but followed by safe steps that it alone makes ready, which bring
  // memory back to where it was or below: a safe run. From a state without safe steps, whatever can
  // be reached can be reached under the same limit after this step. Returns kNoOp if there is none
  // or the rules are without.
  //
  // Proof: let S be the state, R the run. Between S and S + R no down-set is lower than S + R: one
  // without the first step is S itself; to any other add what is missing of R, in its order, and no
  // addition raises memory, because the net change of an op only falls when more has stepped. So
  // live(U + R) <= live(U) + live(S + R) - live(U & (S + R)) <= live(U) for every state U of a way
  // from S, and R can be moved to the front of that way.
  OpId FindSafeRun(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                   std::int64_t& num_looks);

  // Calls visit(v) for each op of a set, ascending.
  template <typename Visit>
  void ForEach(const Word* set, const Visit& visit) const {
    for (std::size_t w = 0; w < words_; ++w) {
      for (Word left = set[w]; left != 0; left &= left - 1) {
        visit(static_cast<OpId>(w * 64 + static_cast<std::size_t>(__builtin_ctzll(left))));
      }
    }
  }

 private:
  // A set of ops as the words in which it has any.
  struct Part {
    std::uint32_t word;
    Word bits;
  };
  struct Range {
    std::uint32_t begin, end;
  };
  struct Read {
    std::int64_t size_bytes;
    Range users;  // into parts_
  };
  Range AddParts(std::span<const OpId> ops);
  bool Waits(const Word* state, OpId v) const;
  bool MakesReady(Word* state, OpId v) const;  // `state` is as before afterwards
  // Marks in `touched`, unless null, the ops that may have become safe: those made ready, and the
  // readers of what v reads.
  void Step(Word* state, OpId v, Word* touched) const;
  // Takes safe steps among the ops in touched_, which it empties, but none that is in `except`,
  // unless null. Whenever memory falls below `low_bytes` all ops that are ready are touched.
  std::int64_t TakeTouched(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                           std::int64_t low_bytes, const Word* except, std::vector<OpId>* steps,
                           std::int64_t& num_looks);

  Direction direction_;
  Rules rules_;
  std::size_t words_;
  std::vector<Part> parts_;
  std::vector<Read> reads_;               // what may die, per op
  std::vector<Range> reads_of_;           // into reads_
  std::vector<OpId> next_;                // whom a step may make ready
  std::vector<Range> next_of_;            // into next_
  std::vector<Range> waits_for_;          // into parts_: who must have stepped before
  std::vector<Range> reads_with_;         // into parts_: the readers of what may die
  std::vector<std::int64_t> grow_bytes_;  // of the outputs that outlive the op itself
  std::vector<std::int64_t> hill_bytes_;
  std::vector<Word> start_;
  std::int64_t start_bytes_ = 0;
  std::int32_t num_steps_ = 0;
  std::vector<Word> touched_;  // empty between calls
  std::vector<Word> held_;     // so too: what would be safe if memory were lower
  std::vector<Word> run_;      // a state
};

}  // namespace torch_ext::sched
