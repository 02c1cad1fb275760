// What must keep its order. Raw moves of nodes pass every check of the JIT and compute something
// else, so each trap has a rule here, and each rule a test named after it (hazards_test.cpp).
//
// Rules give order edges between nodes, on top of the data flow. When in doubt a node is a barrier:
// everything before it stays before, everything after stays after.
//   mutation       a write against every read and write of what may alias it: through views, list
//                  elements, inner blocks (torch's AliasDb), and through ops that return what they
//                  were given although their schemas do not tell (HidesAliases)
//   statistics     running statistics of batch norm in training are written, the schema does not
//                  tell
//   random         ops that draw random numbers, among themselves, inner blocks included
//   side_effect    prints, raises, assertions, warnings among themselves
//   outlives       these against random ops and writes to memory that outlives the call: an
//                  exception must find them as they were
//   unknown        calls that are not inlined, custom ops without alias annotation, nodes AliasDb
//                  knows more about than we do: barriers
//   stateful       forks and waits, contexts, what changes the state other ops run in: barriers
// Collectives of several processes keep their order among themselves; no rule switches that off,
// for one process cannot notice. What an operator does is looked up in one table for both doors:
// operator_effects.h.
#pragma once

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/ir.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "jit/probe.h"

namespace torch_ext::jit {

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

struct Hazards {
  // (earlier, later): indices of op nodes that keep this order.
  std::vector<std::pair<std::int32_t, std::int32_t>> edges;
  std::vector<std::string> barriers;  // "kind: why" of each barrier, for the report
  bool writes_outside = false;        // may write to inputs, parameters, buffers or attributes
  std::string refusal;                // not empty: nothing can be said about this graph, and why
};

// `nodes` are OpNodes of one block; `alias_db` is of the whole graph.
Hazards FindHazards(const torch::jit::AliasDb& alias_db,
                    const std::vector<torch::jit::Node*>& nodes, const std::vector<Probe>& probes,
                    const HazardRules& rules = {});

// `nodes` are OpNodes of the graph's block; `probes` (one for each example) add what was seen.
Hazards FindHazards(const std::shared_ptr<torch::jit::Graph>& graph,
                    const std::vector<torch::jit::Node*>& nodes, const std::vector<Probe>& probes,
                    const HazardRules& rules = {});

}  // namespace torch_ext::jit
