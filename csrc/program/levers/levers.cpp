#include "program/levers/levers.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "program/levers/hoist.h"
#include "program/lower.h"
#include "sched/arena_order.h"
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
// was to be written over it, and an op for its copies.
std::optional<sched::Bottleneck> Bottleneck(const Program& original, const sched::Plan& plan,
                                            const Edited& edited, const Edited& other) {
  std::optional<sched::Bottleneck> bottleneck = plan.bottleneck;
  if (!bottleneck) return bottleneck;
  const auto place_of = [](const auto& values, auto value) {
    return static_cast<std::size_t>(std::ranges::find(values, value) - values.begin());
  };
  const auto found = [&](OpId old_op) { return place_of(other.old_ops, old_op); };
  OpId old_op = edited.old_ops[bottleneck->op];
  if (found(old_op) == other.old_ops.size()) {
    old_op = original.copyable[old_op - original.ops.size()].op;
  }
  bottleneck->op = static_cast<OpId>(found(old_op));
  std::vector<BufferId> buffers;
  for (const BufferId b : bottleneck->buffers) {
    const std::size_t old_buffer = place_of(edited.new_buffers, b);
    if (old_buffer < other.new_buffers.size()) {
      buffers.push_back(other.new_buffers[old_buffer]);
      continue;
    }
    const std::string& copy = edited.program.buffers[b].name;
    const auto same = std::ranges::find(other.program.buffers, copy, &Buffer::name);
    if (same == other.program.buffers.end()) continue;  // its op makes it
    buffers.push_back(static_cast<BufferId>(same - other.program.buffers.begin()));
  }
  bottleneck->buffers = std::move(buffers);
  return bottleneck;
}

// Edits are as few as the peak of an order allows, as moves are: each costs a question in every
// call. Hoists first: what they free may make up for an overwrite, and no overwrite for a hoist.
void KeepNeeded(const Program& program, const sched::Order& old_order, std::int64_t peak_bytes,
                Edits& edits) {
  const auto is_enough = [&](const std::vector<std::size_t>& hoists) {
    const std::optional<Edited> edited = WithEdits(program, {hoists, edits.overwrites});
    if (!edited) return false;
    const sched::Graph graph = Lower(edited->program);
    const sched::Order order = edited->ToNewOps(old_order);
    return sched::IsValidOrder(graph, order) && sched::PeakBytes(graph, order) <= peak_bytes;
  };
  if (!edits.hoists.empty() && is_enough({})) edits.hoists.clear();
  const auto undo_some = [&] {
    const std::size_t before = edits.hoists.size();
    for (std::size_t i = before; i-- > 0;) {
      std::vector<std::size_t> fewer = edits.hoists;
      fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
      if (is_enough(fewer)) edits.hoists = std::move(fewer);
    }
    return edits.hoists.size() < before;
  };
  while (undo_some()) {  // an early copy stands in the way of others: now more may be undone
  }
  // Without an overwrite there is more memory while its op runs, and at no other time.
  const Edited edited = *WithEdits(program, edits);
  const sched::Order order = edited.ToNewOps(old_order);
  const sched::Profile profile = sched::Simulate(Lower(edited.program), order);
  std::vector<std::int64_t> hill_bytes(program.ops.size() + program.copyable.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    hill_bytes[edited.old_ops[order[i]]] = profile.hill_bytes[i];
  }
  std::erase_if(edits.overwrites, [&](std::size_t i) {
    const Overwrite& overwrite = program.overwritable[i];
    return hill_bytes[overwrite.op] + program.buffers[overwrite.result].bytes <= peak_bytes;
  });
}

sched::Order WithoutCopies(const Program& program, sched::Order old_order) {
  std::erase_if(old_order, [&](OpId v) { return v >= OldOpOfCopy(program, 0); });
  return old_order;
}

// The plan stays, and what is known by another one is that nothing is below its bound.
void HoldToBound(sched::Plan& plan, const sched::Plan& other) {
  plan.lower_bound_bytes = other.lower_bound_bytes;
  plan.proof = other.proof == sched::Proof::kNone ? sched::Proof::kSearch : other.proof;
  plan.bottleneck = other.bottleneck;
  plan.seconds = other.seconds;
  plan.clock_stopped = other.clock_stopped;
  if (!plan.is_optimal()) plan.DropProof();
}

// Of orders of equal peak one that needs a lower arena.
void Place(const Program& program, const sched::PlanOptions& options, LeverPlan& found) {
  sched::ArenaOrder lowered = sched::LowerArena(found.graph, found.plan.order, options);
  found.lowers_arena = lowered.height_bytes < lowered.given_height_bytes;
  found.plan.order = std::move(lowered.order);
  sched::Order old_order;
  for (const OpId v : found.plan.order) old_order.push_back(found.old_ops[v]);
  found.plan.moved_ops = sched::MovedOps(WithoutCopies(program, std::move(old_order)));
  found.plan.peak_bytes = sched::PeakBytes(found.graph, found.plan.order);  // no higher
  found.uses.back().peak_bytes_after = found.plan.peak_bytes;
}

LeverPlan PlanEdits(const Program& program, const Levers& levers,
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
  if (!program.overwritable.empty() || !program.copyable.empty()) {
    std::vector<std::size_t> copies(program.copyable.size());
    std::iota(copies.begin(), copies.end(), 0);
    const Edited hoisted = WithHoists(movable, copies);
    OverwritePlan best = PlanOverwrites(hoisted.program, options);
    best.edited.old_ops = hoisted.ToOldOps(std::move(best.edited.old_ops));
    const sched::Order old_order = best.edited.ToOldOps(std::move(best.plan.order));
    const bool is_lower = best.plan.peak_bytes < ordered_bytes;
    if (is_lower) {
      found.edits = {std::move(copies), std::move(best.overwrites)};
      KeepNeeded(movable, old_order, best.plan.peak_bytes, found.edits);
    }
    Edited kept = *WithEdits(program, found.edits);  // it has the plan's order, too
    best.plan.bottleneck = Bottleneck(program, best.plan, best.edited, kept);
    best.plan.seconds += found.plan.seconds;
    best.plan.clock_stopped |= found.plan.clock_stopped;
    if (is_lower) {
      best.plan.original_peak_bytes = original_bytes;
      best.plan.order = kept.ToNewOps(old_order);
      best.plan.moved_ops = sched::MovedOps(WithoutCopies(program, old_order));
      found.plan = std::move(best.plan);
      found.old_ops = std::move(kept.old_ops);
      found.program = std::move(kept.program);
      found.graph = Lower(found.program);
    } else {
      HoldToBound(found.plan, best.plan);
    }
  }
  found.uses.push_back(
      {"overwrite", ordered_bytes, found.plan.peak_bytes,
       static_cast<std::int64_t>(found.edits.overwrites.size() + found.edits.hoists.size())});
  return found;
}

}  // namespace

Levers LeversNamed(const std::vector<std::string>& names) {
  Levers levers{.order = false, .overwrite = false};
  for (const std::string& name : names) {
    if (name == "order") {
      levers.order = true;
    } else if (name == "overwrite") {
      levers.overwrite = true;
    } else if (name == "slice") {
      levers.slice = true;
    } else if (name == "repeat") {
      levers.repeat = true;
    } else if (name == "place") {
      levers.place = true;
    } else {
      throw std::invalid_argument("there is no lever '" + name +
                                  "'; there are order, overwrite, slice, repeat, place");
    }
  }
  return levers;
}

LeverPlan PlanLevers(const Program& program, const Levers& levers,
                     const sched::PlanOptions& options) {
  LeverPlan found = PlanEdits(program, levers, options);
  if (levers.place && levers.order) Place(program, options, found);
  return found;
}

}  // namespace torch_ext::program
