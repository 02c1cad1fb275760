// What no order and no use of repeats gets below: of memory, and of extra time under a budget.
//
// THEOREM. Take any runs that do what the program does, and the first run of any op v. All
// ancestors of v have run and no descendant has. A buffer that an ancestor made and that a
// descendant or the caller reads is either *held* then, or its maker runs again later: with those
// of its writers in place, among the ancestors, that a reader waits for. Of a run that comes later,
// too, each input is held or made again. So with
//     need(v) = what v reads and makes, its workspace, and what crosses and cannot be made again,
//     K, R    = buffers held beside that, and ops that run again: closed under the sentence above
// the memory of v is at least need(v) + min bytes(K), and under a budget
//     extra time >= min { time(R) : bytes(K) <= budget - need(v) }.
// What is neither before v nor after it may have run or not. Where it has not, its results cost
// nothing later, and its inputs are held or made again; where it has, they cost no less. So it
// counts as an op that runs again in no time. A result of v that may overwrite an argument weighs
// nothing, and what v reads is held for free. Nothing can be made again after an op that it has to
// precede (a deadline, levers/repeat.h).
//
// The second minimum is a knapsack with a closure. For any price per byte its Lagrangian dual is
// one minimum cut:
//     source --inf--> b                 b crosses
//     b --price * bytes--> again(b)     it is held
//     again(b) --inf--> m               or m, its maker or a writer, runs again
//     m --time--> sink;  m --inf--> b'  for each b' that m reads
// and cut - price * (budget - need(v)) is a bound for every price, concave in it. Prices are
// rational, and capacities are rounded down, which keeps it a bound. Newton's method on the two
// lines next to the budget finds the best price with few cuts.
//
// Attack: repeat_bound_test.cpp, against searches over lists of runs of small programs.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "program/levers/repeat.h"
#include "sched/budget.h"

namespace torch_ext::program {

class RepeatBound {
 public:
  RepeatBound(const Program& program, bool overwrite);

  struct Floor {
    OpId op = sched::kNoOp;  // that needs it; none: what the caller gets
    std::int64_t bytes = 0;
    std::vector<BufferId> buffers;  // that v reads or makes, or that cannot be made again
  };
  // `order`: of the ops, each once. Ops by falling hill in it, as long as that can help: a hill
  // without repeats is never below. One flow each.
  Floor FindFloor(std::span<const OpId> order, sched::Budget& budget) const;

  struct Extra {
    std::int64_t nanoseconds = 0;
    std::vector<OpId> again;  // that the cut at the best price runs again
  };
  // The highest bound over some ops that are above the budget in an order; nothing if the budget
  // cannot be met.
  std::optional<Extra> FindExtra(std::span<const OpId> order, std::int64_t budget_bytes,
                                 sched::Budget& budget) const;

 private:
  struct Question;
  Question Ask(OpId v) const;
  std::optional<Extra> FindExtra(OpId v, std::int64_t budget_bytes, sched::Budget& budget) const;

  Rerunner rerunner_;
  std::vector<std::vector<OpId>> before_, after_, readers_;  // per op, per op, per buffer
  std::vector<OpId> maker_;                                  // per buffer
};

}  // namespace torch_ext::program
