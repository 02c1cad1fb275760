// Runs that fit a memory budget at little extra time: see levers/repeat.h.
//
// GREEDY. The excess of a list of runs is the sum over positions of what is above the budget. A
// *gap* lies between two reads of an instance (or its making and a read) and holds it over
// positions with excess. Making the instance anew right before the later read closes the gap: its
// maker runs again, with the ops that wrote to it in place and the views of it that are read later;
// an input of these that is gone is made anew as well, or held on to. Of the most promising gaps
// the one is closed that costs the least time for each byte of excess it takes away, as judged, and
// those that cost about as little after it, until nothing is in excess. Then each repeat is tried
// without. What a repeat has to precede, an update of a parameter, moves behind the op that the
// repeat is for.
//
// A plan starts several times: from the order; from the order with the ops preferred that the cut
// of the bound runs again (repeat_bound.h); on a front from the runs of the budget before; and from
// what these found, with some repeats given up.
//
// All is counted work, so the runs depend on nothing but program, seconds of ops and budgets. Time
// of a step: O(runs) for each gap that is judged.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "program/levers/repeat.h"
#include "program/levers/repeat_bound.h"
#include "program/reason.h"
#include "sched/budget.h"
#include "sched/plan.h"

namespace torch_ext::program {

class RepeatSearch {
 public:
  // `order`: of all ops, valid.
  RepeatSearch(const Program& program, bool overwrite, const Runs& order);

  const Runs& order() const { return order_; }  // to start from: no higher, and lower between peaks

  struct Found {
    Runs runs;
    std::int64_t peak_bytes = 0;
    std::int64_t extra_nanoseconds = 0;
    bool fits = false;  // else as near as it came
  };
  // From valid runs on. `preferred`: ops that are to run again rather than others, if any are
  // given.
  Found Fit(Runs start, std::int64_t budget_bytes, sched::Budget& budget,
            std::span<const OpId> preferred = {});
  // From runs that fit the last budget on: gives some repeats up, closes the gaps anew at other
  // prices, and keeps what takes less time, until no more than `enough_nanoseconds` are extra. The
  // same numbers at random each time.
  Found Improve(Runs runs, std::int64_t enough_nanoseconds, sched::Budget& budget);

 private:
  class Moment;  // which values and instances there are before a position
  struct Gap {
    std::int32_t from = 0;      // the position after the read before, or after the making
    std::int32_t position = 0;  // of the later read; runs.size(): the end
    std::int32_t read = 0;
    std::int32_t instance = -1;
    std::int64_t relief_bytes = 0;  // at most, summed over positions
    std::int64_t nanoseconds = 0;   // at least
  };
  // What is held on to where it is gone but needed for a repeat.
  enum class Hold { kNothing, kSmall, kNotLarger, kAll };
  struct Batch {
    std::int32_t position = 0;
    std::vector<OpId> ops;
    std::vector<OpId> late;         // that have run, and that the repeats have to precede
    std::int64_t relief_bytes = 0;  // that of the gap
    bool is_doubtful = false;       // what is held on to for it seems to take as much
    std::int64_t nanoseconds = 0;
  };

  std::vector<Gap> FindGaps();
  std::int64_t ReliefBytes(std::int64_t bytes, std::int32_t from, std::int32_t to) const;
  std::optional<Batch> Closing(const Gap& gap, Hold hold, const Moment& moment) const;
  std::vector<Batch> BatchesFor(std::vector<Gap> gaps) const;
  Runs With(const Batch& batch, std::int32_t position) const;
  std::int32_t PositionNow(const Runs& before, std::int32_t position) const;
  // False if no way to close one helps.
  bool CloseGaps(sched::Budget& budget);
  Runs WithoutRepeat(std::size_t position) const;
  void RemoveNeedless(sched::Budget& budget);
  Rerunner::Judged Judge(std::span<const OpId> runs, sched::Budget& budget);

  Rerunner rerunner_;
  Runs order_, runs_;
  std::vector<std::int64_t> price_;  // per op, by which gaps are compared
  std::int64_t budget_bytes_ = 0;
  // Of the positions before one: how many are above the budget, and the sum of what is above it.
  std::vector<std::int64_t> in_excess_, excess_bytes_;
  Rerunner::Judged now_;
};

struct RepeatPlan {
  Runs runs;  // the order given if repeats do not lower the peak
  std::int64_t peak_bytes = 0;
  std::int64_t nanoseconds = 0;        // of all ops, each run once
  std::int64_t extra_nanoseconds = 0;  // of the repeats
  bool fits = false;
  RepeatBound::Floor floor;
  // Of the extra time of all runs that fit; nothing if none fit.
  std::optional<std::int64_t> extra_bound_nanoseconds;
  bool clock_stopped = false;
};

// `order`: of all ops, valid; else throws std::invalid_argument. Throws it too if the times of the
// ops are negative or their sum overflows.
RepeatPlan PlanRepeats(const Program& program, bool overwrite, const Runs& order,
                       std::int64_t budget_bytes, const sched::PlanOptions& options);

// Why a program with such repeats, and that peak, misses the budget.
Reason WhyMissed(const Program& program, const RepeatPlan& plan, std::int64_t peak_bytes);
// The op that needs the floor, where it comes from, and what has to be there then: for people.
std::string WhatNeedsIt(const Program& program, const RepeatBound::Floor& floor);

// An order, which takes no extra time, and the same for budgets evenly spread between the peak of
// the order given and the floor, `count` at most: none follows the first that is missed, whose plan
// is the lowest that is found. Bounds are of runs that need no more than the plan. No plan is
// better in both than another: with each the peak falls, and the extra time rises. The budgets
// share the time budget.
std::vector<RepeatPlan> PlanRepeatFront(const Program& program, bool overwrite, const Runs& order,
                                        int count, const sched::PlanOptions& options);

}  // namespace torch_ext::program
