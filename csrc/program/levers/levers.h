// PlanLevers(program, levers): the program with the least memory that these levers give, whichever
// adaptor it comes from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "program/levers/overwrite.h"
#include "program/program.h"
#include "program/reason.h"
#include "sched/graph.h"
#include "sched/plan.h"

namespace torch_ext::program {

// Which kinds of edits are asked for. Without `order` the ops stay in their places. The lever
// overwrite hoists copies, too. Slices and repeats have to be tried (levers/slice.h,
// levers/repeat.h): adaptors do, and what is edited so is planned here as any other program.
// Addresses are planned where a program runs (memory/arena.h); what `place` asks for here is, of
// orders of equal peak, one that needs a lower arena.
struct Levers {
  bool order = true;
  bool overwrite = true;
  bool slice = false;
  bool repeat = false;
  bool place = false;
};

// Throws std::invalid_argument for a name that is none.
Levers LeversNamed(const std::vector<std::string>& names);

// What a lever did, after those before it.
struct LeverUse {
  std::string name;
  std::int64_t peak_bytes_before = 0;
  std::int64_t peak_bytes_after = 0;
  std::int64_t edits = 0;            // moved ops; overwrites and hoists; slices; repeats
  std::vector<Reason> reasons = {};  // why it was given up, if it was
  double extra_seconds = 0;          // for each call, as measured
};

// A stretch that runs in parts (levers/slice.h), by names.
struct SliceUse {
  std::string name;                 // of the op that stands for it
  std::vector<std::string> ops;     // that run in parts, in their order
  std::string result;               // the last value that is made in parts
  std::vector<std::int64_t> shape;  // of it
  int dimension = 0;                // of it
  std::int64_t parts = 0;
};

// A second or later run of an op (levers/repeat.h), by names.
struct RepeatUse {
  std::string name, op;  // "NAME/2" and NAME
  std::int64_t nanoseconds = 0;
  Label label = {};
};

// What ops take, as measured one by one and rounded, where repeats were planned.
struct RepeatTimes {
  std::int64_t nanoseconds = 0;        // of all ops, each run once
  std::int64_t extra_nanoseconds = 0;  // of the repeats
  // Of every order and every use of repeats that fits the budget; nothing where repeats do
  // not meet it. It says nothing of slices.
  std::optional<std::int64_t> extra_bound_nanoseconds;
  std::vector<std::pair<std::string, std::int64_t>> op_nanoseconds = {};  // a run of each op
};

struct LeverPlan {
  Program program;            // with the edits done; else the one given
  sched::Graph graph;         // that program, as the core sees it
  sched::Plan plan;           // of that graph; its original peak and moved ops are of the one given
  std::vector<OpId> old_ops;  // of each op: what it was (edits.h)
  Edits edits;                // none unless they lower the peak
  std::vector<LeverUse> uses;  // one for each lever asked for
  bool lowers_arena = false;   // place has found an order that needs a lower one
};

// The bound is over all orders, and all choices of edits where these are asked for, whether or not
// any is used. No peak is higher than the original's. Where nothing can be edited it is one plan;
// else see PlanOverwrites.
LeverPlan PlanLevers(const Program& program, const Levers& levers,
                     const sched::PlanOptions& options);

}  // namespace torch_ext::program
