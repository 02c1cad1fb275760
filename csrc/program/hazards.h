// What must keep its order. Raw moves of ops pass every check of a framework and compute something
// else, so each trap has a rule here, for all adaptors, and each rule a test named after it.
//
// Rules give order edges between ops, on top of the data flow. When in doubt an op is a barrier:
// everything before it stays before, everything after stays after.
//   mutation       a write against every read and write of what may be the same memory (conflicts,
//                  which adaptors find); and what changes metadata is a barrier, where views would
//                  be others
//   statistics     running statistics of batch norm in training are written, the schema does not
//                  tell
//   random         ops that draw random numbers, among themselves
//   side_effect    prints, raises, assertions, warnings among themselves
//   outlives       these against random ops and writes to memory that outlives the call: an
//                  exception must find them as they were
//   unknown        ops of which nobody knows what they write to: barriers
//   stateful       what changes the state that other ops run in: barriers
// Collectives of several processes keep their order among themselves; no rule switches that off,
// for one process cannot notice.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "program/program.h"

namespace torch_ext::program {

// Switched off only to show that a test finds what a rule prevents.
struct HazardRules {
  bool mutation = true;
  bool statistics = true;
  bool random = true;
  bool side_effect = true;
  bool outlives = true;
  bool unknown = true;
  bool stateful = true;
};

inline constexpr std::array<std::pair<const char*, bool HazardRules::*>, 7> kHazardRuleNames = {{
    {"mutation", &HazardRules::mutation},
    {"statistics", &HazardRules::statistics},
    {"random", &HazardRules::random},
    {"side_effect", &HazardRules::side_effect},
    {"outlives", &HazardRules::outlives},
    {"unknown", &HazardRules::unknown},
    {"stateful", &HazardRules::stateful},
}};

// (earlier, later), perhaps more than once. Linear in ops and conflicts, but for `outlives`: ops
// with side effects times ops that these must not pass.
using Edges = std::vector<std::pair<OpId, OpId>>;
Edges OrderEdges(const Program& program, const HazardRules& rules = {});

// Why nothing may pass the op, for reports; empty if something may.
std::string WhyBarrier(const Op& op, const HazardRules& rules = {});

}  // namespace torch_ext::program
