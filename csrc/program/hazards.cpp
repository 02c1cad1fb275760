#include "program/hazards.h"

#include <algorithm>

namespace torch_ext::program {
namespace {

class Finder {
 public:
  Finder(const Program& program, const HazardRules& rules) : program_(program), rules_(rules) {}

  Edges Find() {
    for (const Conflict& conflict : program_.conflicts) {
      const bool holds = conflict.by_statistics ? rules_.statistics : rules_.mutation;
      if (holds) edges_.emplace_back(conflict.earlier, conflict.later);
    }
    OrderBarriers();
    if (rules_.random) Chain(&Effects::draws_random_numbers);
    if (rules_.side_effect) Chain(&Effects::has_side_effect);
    Chain(&Effects::is_collective);
    if (rules_.outlives) OrderSideEffectsAgainstWhatOutlives();
    return std::move(edges_);
  }

 private:
  OpId num_ops() const { return static_cast<OpId>(program_.ops.size()); }

  void OrderBarriers() {
    OpId last = sched::kNoOp;
    for (OpId v = 0; v < num_ops(); ++v) {
      if (last != sched::kNoOp) edges_.emplace_back(last, v);
      if (WhyBarrier(program_.ops[v], rules_).empty()) continue;
      for (OpId u = last + 1; u < v; ++u) edges_.emplace_back(u, v);
      last = v;
    }
  }

  void Chain(bool Effects::* has) {
    OpId last = sched::kNoOp;
    for (OpId v = 0; v < num_ops(); ++v) {
      if (!(program_.ops[v].effects.*has)) continue;
      if (last != sched::kNoOp) edges_.emplace_back(last, v);
      last = v;
    }
  }

  void OrderSideEffectsAgainstWhatOutlives() {
    for (OpId v = 0; v < num_ops(); ++v) {
      if (!program_.ops[v].effects.has_side_effect) continue;
      for (OpId u = 0; u < num_ops(); ++u) {
        const Effects& other = program_.ops[u].effects;
        if (u == v || !(other.draws_random_numbers || other.writes_outside)) continue;
        edges_.emplace_back(std::min(u, v), std::max(u, v));
      }
    }
  }

  const Program& program_;
  const HazardRules& rules_;
  Edges edges_;
};

}  // namespace

Edges OrderEdges(const Program& program, const HazardRules& rules) {
  return Finder(program, rules).Find();
}

std::string WhyBarrier(const Op& op, const HazardRules& rules) {
  const Effects& effects = op.effects;
  if (effects.is_stateful && rules.stateful) return op.oper + ": changes what other ops do";
  if (!effects.undeclared.empty() && rules.unknown) return op.oper + ": " + effects.undeclared;
  if (effects.changes_metadata && rules.mutation) return op.oper + ": changes what views are";
  return {};
}

}  // namespace torch_ext::program
