#include "program/levers/levers.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "program/lower.h"
#include "sched/simulate.h"
#include "sched/way_back.h"

namespace torch_ext::program {
namespace {

// Each op behind the one before it.
Program InPlace(Program program) {
  for (std::size_t v = 1; v < program.ops.size(); ++v) {
    program.ops[v].makers.push_back(static_cast<OpId>(v) - 1);
  }
  return program;
}

std::vector<OpId> AllOps(const Program& program) {
  std::vector<OpId> ops(program.ops.size());
  std::iota(ops.begin(), ops.end(), 0);
  return ops;
}

// The bottleneck of an edited program in the words of another one: an argument stands for all that
// was to be written over it.
std::optional<sched::Bottleneck> Bottleneck(const OverwritePlan& edited, const Overwritten& other) {
  std::optional<sched::Bottleneck> bottleneck = edited.plan.bottleneck;
  if (!bottleneck) return bottleneck;
  const auto place_of = [](const auto& values, auto value) {
    return std::ranges::find(values, value) - values.begin();
  };
  bottleneck->op =
      static_cast<OpId>(place_of(other.old_ops, edited.overwritten.old_ops[bottleneck->op]));
  for (BufferId& b : bottleneck->buffers) {
    b = other.new_buffers[place_of(edited.overwritten.new_buffers, b)];
  }
  return bottleneck;
}

// Those overwrites without which the peak of the plan would be higher. Without one of them there is
// more memory while its op runs, and at no other time. So edits are as few as the peak allows, as
// moves are: each costs a question in every call.
std::vector<std::size_t> Needed(const Program& program, const OverwritePlan& edited) {
  const sched::Graph graph = Lower(edited.overwritten.program);
  const sched::Profile profile = sched::Simulate(graph, edited.plan.order);
  std::vector<std::int64_t> hill_bytes(program.ops.size());
  for (std::size_t i = 0; i < edited.plan.order.size(); ++i) {
    hill_bytes[edited.overwritten.old_ops[edited.plan.order[i]]] = profile.hill_bytes[i];
  }
  std::vector<std::size_t> needed;
  for (const std::size_t i : edited.overwrites) {
    const Overwrite& overwrite = program.overwritable[i];
    const std::int64_t without = hill_bytes[overwrite.op] + program.buffers[overwrite.result].bytes;
    if (without > edited.plan.peak_bytes) needed.push_back(i);
  }
  return needed;
}

void HoldToBound(sched::Plan& plan, std::int64_t bound_bytes, sched::Proof proof) {
  plan.lower_bound_bytes = bound_bytes;
  plan.proof = proof == sched::Proof::kNone ? sched::Proof::kSearch : proof;
  if (!plan.is_optimal()) plan.DropProof();
}

}  // namespace

Levers LeversNamed(const std::vector<std::string>& names) {
  Levers levers{.order = false, .overwrite = false};
  for (const std::string& name : names) {
    if (name == "order") {
      levers.order = true;
    } else if (name == "overwrite") {
      levers.overwrite = true;
    } else {
      throw std::invalid_argument("there is no lever '" + name + "'; there are order, overwrite");
    }
  }
  return levers;
}

LeverPlan PlanLevers(const Program& program, const Levers& levers,
                     const sched::PlanOptions& options) {
  const Program& movable = levers.order ? program : InPlace(program);
  LeverPlan found{.program = program, .graph = Lower(movable), .old_ops = AllOps(program)};
  found.plan = sched::MakePlan(found.graph, options);
  const std::int64_t original_bytes = found.plan.original_peak_bytes;
  const std::int64_t ordered_bytes = found.plan.peak_bytes;
  if (levers.order) {
    found.uses.push_back({"order", original_bytes, ordered_bytes, found.plan.moved_ops});
  }
  if (!levers.overwrite) return found;
  if (!program.overwritable.empty()) {
    OverwritePlan edited = PlanOverwrites(movable, options);
    const double seconds = found.plan.seconds + edited.plan.seconds;
    const bool clock_stopped = found.plan.clock_stopped || edited.plan.clock_stopped;
    const bool is_lower = edited.plan.peak_bytes < ordered_bytes;
    if (is_lower) found.overwrites = Needed(program, edited);
    Overwritten kept = *WithOverwrites(program, found.overwrites);  // it has the plan's order, too
    const auto bottleneck = Bottleneck(edited, kept);
    if (is_lower) {
      found.plan = std::move(edited.plan);
      found.plan.original_peak_bytes = original_bytes;
      const sched::Order old_order = edited.overwritten.ToOldOps(std::move(found.plan.order));
      found.plan.moved_ops = sched::MovedOps(old_order);
      found.plan.order = kept.ToNewOps(old_order);
      found.old_ops = std::move(kept.old_ops);
      found.program = std::move(kept.program);
      found.graph = Lower(found.program);
    } else {
      HoldToBound(found.plan, edited.plan.lower_bound_bytes, edited.plan.proof);
    }
    found.plan.bottleneck = bottleneck;
    found.plan.seconds = seconds;
    found.plan.clock_stopped = clock_stopped;
  }
  found.uses.push_back({"overwrite", ordered_bytes, found.plan.peak_bytes,
                        static_cast<std::int64_t>(found.overwrites.size())});
  return found;
}

}  // namespace torch_ext::program
