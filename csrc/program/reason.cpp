#include "program/reason.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "program/amount.h"
#include "program/hazards.h"
#include "program/lower.h"

namespace torch_ext::program {
namespace {

// All that must be alive together while the bottleneck runs.
Reason OptimalAt(const Program& program, const sched::Bottleneck& bottleneck) {
  const Op& op = program.ops[bottleneck.op];
  Reason reason{.kind = ReasonKind::kOptimal,
                .bytes = bottleneck.bytes,
                .op = op.name,
                .source = op.label.source,
                .workspace_bytes = op.workspace_bytes};
  for (const BufferId b : bottleneck.buffers) {
    reason.buffers.emplace_back(program.buffers[b].name, program.buffers[b].bytes);
  }
  std::ranges::stable_sort(reason.buffers, std::greater<>(),
                           &std::pair<std::string, std::int64_t>::second);
  return reason;
}

std::string EnglishOptimal(const Reason& reason) {
  constexpr std::size_t kMost = 4;
  std::string text = "the original order is optimal";
  if (reason.is_over_overwrites) text += ", whatever ops overwrite";
  text += ": no order runs " + reason.op;
  if (!reason.source.empty()) text += " (" + reason.source + ")";
  text += " with less than " + Amount(reason.bytes);
  for (std::size_t i = 0; i < reason.buffers.size() && i < kMost; ++i) {
    const auto& [name, bytes] = reason.buffers[i];
    text += (i == 0 ? ", for these must be alive together: " : ", ") + name + " " + Amount(bytes);
  }
  if (reason.buffers.size() > kMost) text += ", ...";
  if (reason.workspace_bytes > 0) {
    text += " and its scratch memory " + Amount(reason.workspace_bytes);
  }
  return text;
}

}  // namespace

std::string NameOf(ReasonKind kind) {
  return std::ranges::find(kReasonNames, kind, [](const auto& known) { return known.second; })
      ->first;
}

ReasonKind ReasonNamed(const std::string& name) {
  const auto found = std::ranges::find(kReasonNames, name,
                                       [](const auto& known) { return std::string(known.first); });
  if (found == kReasonNames.end()) throw std::invalid_argument("there is no reason '" + name + "'");
  return found->second;
}

std::string English(const Reason& reason) {
  const std::string bytes = Amount(reason.bytes), other_bytes = Amount(reason.other_bytes);
  switch (reason.kind) {
    case ReasonKind::kLeftAlone:
    case ReasonKind::kLossyTrace:
      return reason.detail;
    case ReasonKind::kNoMemory:
      return "no op takes memory, so there is nothing to order";
    case ReasonKind::kOptimal:
      return EnglishOptimal(reason);
    case ReasonKind::kHeld:
      return "ops that write in place, draw random numbers or have side effects hold others in "
             "place; without that " +
             bytes + " would do" +
             (reason.detail.empty() ? "" : " (not passed by anything: " + reason.detail + ")");
    case ReasonKind::kUncertain:
      return "no order is lower by the sizes that were planned, but what loops, lists and tasks "
             "hold, and how much older memory is released when, is not certain; proven is " +
             bytes;
    case ReasonKind::kUnproven:
      return "no better order was found within the budget; the lower bound is " + bytes;
    case ReasonKind::kRaisesOther:
      return reason.detail;
    case ReasonKind::kDiffers:
      return "verification failed: " + reason.detail;
    case ReasonKind::kRises:
      return "verification failed: the measured peak rose from " + bytes + " to " + other_bytes;
    case ReasonKind::kDoesNotFall:
      return "a gain was predicted, but the measured peak stays " + bytes +
             ", so the original is kept";
    case ReasonKind::kBelowBound:
      return "the program ran with less (" + std::to_string(reason.bytes) +
             " bytes) than the bound of the captured graph (" + std::to_string(reason.other_bytes) +
             " bytes): it ran other sizes than were planned, so nothing is proven";
    case ReasonKind::kLoopIsLower:
      return "the captured step needs more than the eager loop (" + bytes + " against " +
             other_bytes + "), which is kept";
    case ReasonKind::kNoStretch:
      return "no further ops that can run in parts lower the peak" +
             (reason.detail.empty() ? "" : "; " + reason.detail);
    case ReasonKind::kSlower:
      return "with slices " + bytes + " would do, in " + reason.detail +
             " of the time: give a memory budget to have them";
    case ReasonKind::kNotTried:
      return "slices are found by running ops in parts: optimize and fx.reorder do, analyze "
             "does not";
    case ReasonKind::kBelowFloor:
      return "no order and no repeats get below " + bytes + ": " + reason.detail;
    case ReasonKind::kMissed:
      return "the budget is not met: with repeats " + bytes + " is the least that was found, for " +
             reason.detail + " of the time of all ops; proven is that less than " + other_bytes +
             " is impossible";
    case ReasonKind::kNoBudget:
      return "repeats cost time: give a memory budget to have them";
    case ReasonKind::kNoTimes:
      return "no op may run again: give those that may the nanoseconds that a run takes";
  }
  return {};
}

std::string English(const std::vector<Reason>& reasons) {
  std::string text;
  for (const Reason& reason : reasons) text += (text.empty() ? "" : "; ") + English(reason);
  return text;
}

std::vector<Reason> WhyNoGain(const Program& program, const sched::Plan& plan,
                              const sched::PlanOptions& options, bool with_overwrites) {
  if (plan.peak_bytes < plan.original_peak_bytes) return {};
  if (program.ops.empty() || plan.original_peak_bytes == 0) {
    return {{.kind = ReasonKind::kNoMemory}};
  }
  std::vector<Reason> reasons;
  if (plan.is_optimal() && plan.bottleneck) {
    reasons.push_back(OptimalAt(program, *plan.bottleneck));
    reasons.back().is_over_overwrites = with_overwrites;
  }
  if (!OrderEdges(program).empty()) {
    Program free = program;
    free.conflicts.clear();
    for (Op& op : free.ops) op.effects = {};
    const std::int64_t free_bytes = sched::MakePlan(Lower(free), options).peak_bytes;
    if (free_bytes < plan.peak_bytes) {
      Reason held{.kind = ReasonKind::kHeld, .bytes = free_bytes};
      for (const Op& op : program.ops) {
        if (held.detail.empty()) held.detail = WhyBarrier(op);
      }
      reasons.push_back(std::move(held));
    }
  }
  if (reasons.empty()) {
    reasons.push_back({.kind = ReasonKind::kUnproven, .bytes = plan.lower_bound_bytes});
  }
  return reasons;
}

}  // namespace torch_ext::program
