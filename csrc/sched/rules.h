// What a planner may be told to do without.
#pragma once

#include <array>
#include <utility>

namespace torch_ext::sched {

// Switched off to measure what each brings and to show that nothing depends on it: no combination
// changes a proven optimum.
struct Rules {
  bool series_cuts = true;      // blocks between series cuts are planned on their own
  bool regions = true;          // isolated regions are replaced by dominant chains
  bool symmetry = true;         // equal parts keep one sequence
  bool safe_steps = true;       // searches take what cannot hurt without branching
  bool safe_runs = true;        // ... and steps that such steps make good again
  bool closure_bound = true;    // a lower bound by each op
  bool neighbour_bound = true;  // ... and by an op with its last predecessor or first successor
  bool precedences = true;      // what every lower order must obey is found and obeyed
  bool improvement = true;      // two-chain merges around the peak
};

inline constexpr std::array<std::pair<const char*, bool Rules::*>, 9> kRuleNames = {{
    {"series_cuts", &Rules::series_cuts},
    {"regions", &Rules::regions},
    {"symmetry", &Rules::symmetry},
    {"safe_steps", &Rules::safe_steps},
    {"safe_runs", &Rules::safe_runs},
    {"closure_bound", &Rules::closure_bound},
    {"neighbour_bound", &Rules::neighbour_bound},
    {"precedences", &Rules::precedences},
    {"improvement", &Rules::improvement},
}};

}  // namespace torch_ext::sched
