// For tests: any edits that are allowed, at random.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "program/hazards.h"
#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::program {

struct RandomEdits {
  sched::Order order;                   // of the program given
  std::vector<std::size_t> overwrites;  // places in `overwritable`; this order allows them all
};

// As many overwrites as can be done together, taken at random, and an order that they and the
// hazards allow. O(overwritable * edges).
RandomEdits Shuffled(const Program& program, std::uint64_t seed, const HazardRules& rules = {});

}  // namespace torch_ext::program
