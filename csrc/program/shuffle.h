// For tests: any edits that are allowed, at random.
#pragma once

#include <cstdint>

#include "program/edits.h"
#include "program/hazards.h"
#include "program/levers/repeat.h"
#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::program {

struct RandomEdits {
  sched::Order order;  // of the program given, and its hoisted copies; it allows all the edits
  Edits edits;
};

// Some hoists, as many overwrites as can be done together, and an order that they and the hazards
// allow: all at random. O(overwritable * edges).
RandomEdits Shuffled(const Program& program, std::uint64_t seed, const HazardRules& rules = {});

// An order that the hazards allow, and runs beside it that the rules of levers/repeat.h do.
// O(ops * what they read).
Runs RandomRuns(const Program& program, std::uint64_t seed);

}  // namespace torch_ext::program
