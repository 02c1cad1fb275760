// The lever *overwrite*: an op writes its result into the storage of an argument that dies with it.
//
// In the program, result and argument become ONE buffer: it lives from the maker of the argument to
// the last reader of the result, and the op makes nothing. That needs every other op that touches
// the argument to run before, which become edges, and so the program lowers to an ordinary graph:
// every proof of the core stands. Nothing in the core knows of overwriting.
//
// THEOREM. Over all orders and all choices of overwrites, the lowest peak is that of the lowest
// program among those that WithOverwrites gives for a set of overwrites.
//   An order with choices is an order of that program: the edges say that the argument was dead.
//   Its hills are the same, for what is alive after any op is the same: the argument is dead, and
//   the result has its bytes.
//
// An overwrite is *forced* if all others that may touch the argument are ancestors of the op. Then
// it adds no edge, and no order has a higher hill with it than without, so it is done before
// planning. (Two arguments of one op may both be forced: any one will do, for both die there.)
//
// All others are choices. RELAXATION: split an op with an open choice in two, the op without its
// result and a step behind it that makes the result. An order with a choice made, or not made, is
// an order of the relaxed program with no higher hill: with it the argument is dead before the
// second step, and without it the second step has at most the hill of the op. So a bound of the
// relaxed program is one over all orders and all its open choices. Branch and bound over choices
// ends where the lowest open bound meets the best program found.
//
// BOUND. Overwriting changes no state, only the hill of the op itself, and that by the bytes of its
// result at most: what is alive after an op is the same. So over all orders and choices the peak is
// at least what is alive in the cheapest state in which an op can run (a minimum cut, bound.h),
// with its results and its workspace, less the results that may overwrite. The relaxation is better
// where few choices are open; it may put off the second steps of many ops, which this bound does
// not.
//
// Attack: overwrite_test.cpp, against all orders and all choices, by dynamic programming over sets
// of ops that shares no code with this.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "program/edits.h"
#include "program/program.h"
#include "sched/graph.h"
#include "sched/plan.h"

namespace torch_ext::program {

// `overwrites` are places in `overwritable`. Nothing if they cannot all be done: no order has them.
std::optional<Edited> WithOverwrites(const Program& program,
                                     std::span<const std::size_t> overwrites);

// Places in `program.overwritable` of all that are forced, at most one for each result and
// argument. O(overwritable * edges) at worst, mostly linear.
std::vector<std::size_t> ForcedOverwrites(const Program& program);

struct OverwritePlan {
  std::vector<std::size_t> overwrites;  // places in `overwritable`
  Edited edited;
  sched::Plan plan;  // of it; the bound, and so what is proven, is over all choices as well
};

// The lowest plan over orders and choices that is found; never higher than the original. Work: one
// plan, and where there are choices up to three for each node of branch and bound; those below the
// root have a sixteenth of the budget each.
OverwritePlan PlanOverwrites(const Program& program, const sched::PlanOptions& options,
                             int most_nodes = 32);

}  // namespace torch_ext::program
