// Why nothing, or nothing more, was gained: as data, and the one English sentence for each kind.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "program/program.h"
#include "sched/plan.h"

namespace torch_ext::program {

enum class ReasonKind {
  kLeftAlone,    // nothing was planned; detail: why
  kNoMemory,     // no op takes memory
  kOptimal,      // no order runs the op with less than `bytes`
  kHeld,         // without hazards `bytes` would do; detail: a barrier, or empty
  kUncertain,    // no order is lower as planned, but only `bytes` are proven
  kUnproven,     // the search has ended above the bound `bytes`
  kRaisesOther,  // the order that is best for one example raises another's peak; detail: which
  kDiffers,      // verification failed; detail: what differs
  kRises,        // the measured peak rose from `bytes` to `other_bytes`
  kDoesNotFall,  // a gain was predicted, and the measured peak stays `bytes`
  kBelowBound,   // a run took `bytes`, less than the bound `other_bytes`
  kLoopIsLower,  // a captured training step takes `bytes`, its loop `other_bytes`
  kLossyTrace,   // what was planned is a trace, which is not the module; detail: what differs
  kNoStretch,    // nothing that can run in parts lowers the peak; detail: what keeps it from it
  kSlower,       // with slices `bytes` would do; detail: in what part of the time
  kNotTried,     // slices are found by running them, and nothing was run
  kBelowFloor,   // whatever runs again, an op needs `bytes`; detail: which, and what with
  kMissed,       // `bytes` is the least that was found; detail: the time; `other_bytes` are proven
  kNoBudget,     // repeats cost time, and there is no memory budget
  kNoTimes,      // of a bare graph: no op says what another run takes
};

inline constexpr std::array<std::pair<const char*, ReasonKind>, 20> kReasonNames = {{
    {"left_alone", ReasonKind::kLeftAlone},
    {"no_memory", ReasonKind::kNoMemory},
    {"optimal", ReasonKind::kOptimal},
    {"held", ReasonKind::kHeld},
    {"uncertain", ReasonKind::kUncertain},
    {"unproven", ReasonKind::kUnproven},
    {"raises_other", ReasonKind::kRaisesOther},
    {"differs", ReasonKind::kDiffers},
    {"rises", ReasonKind::kRises},
    {"does_not_fall", ReasonKind::kDoesNotFall},
    {"below_bound", ReasonKind::kBelowBound},
    {"loop_is_lower", ReasonKind::kLoopIsLower},
    {"lossy_trace", ReasonKind::kLossyTrace},
    {"no_stretch", ReasonKind::kNoStretch},
    {"slower", ReasonKind::kSlower},
    {"not_tried", ReasonKind::kNotTried},
    {"below_floor", ReasonKind::kBelowFloor},
    {"missed", ReasonKind::kMissed},
    {"no_budget", ReasonKind::kNoBudget},
    {"no_times", ReasonKind::kNoTimes},
}};

struct Reason {
  ReasonKind kind = ReasonKind::kLeftAlone;
  std::string detail;
  std::int64_t bytes = 0;
  std::int64_t other_bytes = 0;
  // Of kOptimal: the op, and what must be alive while it runs, largest first.
  std::string op, source;
  std::vector<std::pair<std::string, std::int64_t>> buffers;
  std::int64_t workspace_bytes = 0;
  bool is_over_overwrites = false;  // whatever ops overwrite, too
};

std::string NameOf(ReasonKind kind);
ReasonKind ReasonNamed(const std::string& name);  // throws std::invalid_argument

// A sentence without capital letter and full stop; several are joined by "; ".
std::string English(const Reason& reason);
std::string English(const std::vector<Reason>& reasons);

// Why the plan gains nothing: empty if it gains something. Plans the program once more, without
// its hazards, where these may be why. `with_overwrites`: its bound is over all of them, too.
std::vector<Reason> WhyNoGain(const Program& program, const sched::Plan& plan,
                              const sched::PlanOptions& options, bool with_overwrites = false);

}  // namespace torch_ext::program
