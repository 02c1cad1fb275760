#include "jit/hazards.h"

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <algorithm>
#include <exception>
#include <optional>

#include "jit/effects.h"
#include "jit/nodes.h"

namespace torch_ext::jit {
namespace {

using torch::jit::AliasDb;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// Why nothing may pass the node itself (not its inner blocks); empty if something may.
std::string WhyBarrier(const Node* node, const OperatorEffects& effects, const HazardRules& rules) {
  const std::string kind = node->kind().toQualString();
  if (effects.is_stateful) return rules.stateful ? kind + ": changes what other ops do" : "";
  const bool is_unknown = rules.unknown && !effects.undeclared.empty();
  return is_unknown ? kind + ": " + effects.undeclared : "";
}

// The values that the node itself may write to.
std::vector<Value*> WrittenValues(Node* node, const OperatorEffects& effects,
                                  const HazardRules& rules) {
  std::vector<Value*> written;
  const auto add = [&](const std::vector<std::size_t>& positions) {
    for (const std::size_t i : positions) {
      if (i < node->inputs().size()) written.push_back(node->input(i));
    }
  };
  if (rules.mutation) add(effects.writes);
  if (rules.statistics) add(effects.statistics);
  return written;
}

void KeepOnce(std::vector<Value*>& values) {
  std::sort(values.begin(), values.end(),
            [](Value* a, Value* b) { return a->unique() < b->unique(); });
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

// All that a node and its inner blocks touch, so far as it can be written to at all.
std::vector<Value*> MutableValues(Node* node) {
  std::vector<Value*> values;
  ForEachInnerNode(node, [&](Node* inner) {
    for (Value* v : inner->inputs()) {
      if (IsMutable(v)) values.push_back(v);
    }
    for (Value* v : inner->outputs()) {
      if (IsMutable(v)) values.push_back(v);
    }
    for (torch::jit::Block* block : inner->blocks()) {
      for (Value* v : block->outputs()) {
        if (IsMutable(v)) values.push_back(v);
      }
    }
  });
  KeepOnce(values);
  return values;
}

class Finder {
 public:
  Finder(const AliasDb& alias_db, const std::vector<Node*>& nodes, const std::vector<Probe>& probes,
         const HazardRules& rules)
      : alias_db_(alias_db), nodes_(nodes), probes_(probes), rules_(rules) {}

  Hazards Find() {
    const auto n = static_cast<std::int32_t>(nodes_.size());
    barrier_.assign(n, 0);
    side_effect_.assign(n, 0);
    random_.assign(n, 0);
    collective_.assign(n, 0);
    writes_outside_.assign(n, 0);
    written_.resize(n);
    FindOutside();
    FindUndeclaredAliases();
    for (std::int32_t i = 0; i < n; ++i) Classify(i);
    if (!hazards_.refusal.empty()) return std::move(hazards_);
    OrderMutations();
    OrderBarriers();
    if (rules_.random) Chain(random_);
    if (rules_.side_effect) Chain(side_effect_);
    Chain(collective_);
    if (rules_.outlives) OrderSideEffectsAgainstWhatOutlives();
    return std::move(hazards_);
  }

 private:
  // Values that come from outside the block or from an attribute, and constants.
  void FindOutside() {
    if (nodes_.empty()) return;
    const torch::jit::Block* block = nodes_[0]->owningBlock();
    for (Node* node : nodes_) {
      for (Value* v : ReadValues(node)) {
        const bool made_here =
            v->node()->owningBlock() == block && v->node() != block->param_node();
        if (v->node()->kind() == c10::prim::Constant) {
          if (IsMutable(v)) constants_.push_back(v);
        } else if (!made_here && IsMutable(v)) {
          outside_.push_back(v);
        }
      }
      ForEachInnerNode(node, [&](Node* inner) {
        if (inner->kind() == c10::prim::GetAttr && IsMutable(inner->output())) {
          outside_.push_back(inner->output());
        }
        if (inner->kind() == c10::prim::Constant && IsMutable(inner->output())) {
          constants_.push_back(inner->output());
        }
      });
    }
    KeepOnce(outside_);
    KeepOnce(constants_);
  }

  void FindUndeclaredAliases() {
    if (!rules_.mutation) return;
    for (Node* node : nodes_) {
      ForEachInnerNode(node, [&](Node* inner) {
        if (!HidesAliases(inner)) return;
        std::vector<Value*> values(inner->outputs().begin(), inner->outputs().end());
        for (Value* v : inner->inputs()) {
          if (IsMutable(v) && v->node()->kind() != c10::prim::Constant) values.push_back(v);
        }
        undeclared_aliases_.push_back(std::move(values));
      });
    }
  }

  // Adds what `written` may share memory with through ops that do not declare it. AliasDb knows the
  // rest: each of these alone is enough for it to find the views of it.
  void AddUndeclaredAliases(std::vector<Value*>& written) const {
    std::vector<char> added(undeclared_aliases_.size(), 0);
    for (bool again = !written.empty(); again;) {
      again = false;
      for (std::size_t k = 0; k < undeclared_aliases_.size(); ++k) {
        if (added[k] || !alias_db_.mayContainAlias(written, undeclared_aliases_[k])) continue;
        written.insert(written.end(), undeclared_aliases_[k].begin(), undeclared_aliases_[k].end());
        added[k] = 1;
        again = true;
      }
    }
  }

  void Classify(std::int32_t i) {
    Node* node = nodes_[i];
    std::string why;
    ForEachInnerNode(node, [&](Node* inner) {
      const OperatorEffects effects = EffectsOf(inner);
      for (Value* v : WrittenValues(inner, effects, rules_)) written_[i].push_back(v);
      if (why.empty()) why = WhyBarrier(inner, effects, rules_);
      side_effect_[i] |= effects.has_side_effect;
      random_[i] |= effects.draws_random_numbers;
      collective_[i] |= effects.is_collective;
    });
    AddUndeclaredAliases(written_[i]);
    if (rules_.unknown && rules_.mutation && why.empty() && alias_db_.isMutable(node) &&
        written_[i].empty()) {
      why = std::string(node->kind().toQualString()) + ": may write to what it does not declare";
    }
    if (!why.empty()) {
      barrier_[i] = 1;
      hazards_.barriers.push_back(why);
    }
    for (const Probe& probe : probes_) random_[i] |= probe.nodes[i].uses_random_state;
    for (Value* v : written_[i]) {
      if (!IsMutable(v)) continue;
      if (alias_db_.mayContainAlias(v, constants_)) {
        hazards_.refusal = "'" + std::string(node->kind().toQualString()) +
                           "' may write to a constant of the graph";
      }
      writes_outside_[i] |= alias_db_.mayContainAlias(v, outside_);
    }
    hazards_.writes_outside |= writes_outside_[i] || barrier_[i];
  }

  bool MayWriteTo(std::int32_t writer, const std::vector<Value*>& touched) const {
    for (Value* w : written_[writer]) {
      for (Value* t : touched) {
        if (w == t || alias_db_.mayContainAlias(w, t)) return true;
      }
    }
    return false;
  }

  void OrderMutations() {
    const auto n = static_cast<std::int32_t>(nodes_.size());
    std::vector<std::vector<Value*>> touched(n);
    for (std::int32_t i = 0; i < n; ++i) touched[i] = MutableValues(nodes_[i]);
    for (std::int32_t writer = 0; writer < n; ++writer) {
      if (written_[writer].empty()) continue;
      for (std::int32_t other = 0; other < n; ++other) {
        if (other == writer || !MayWriteTo(writer, touched[other])) continue;
        hazards_.edges.emplace_back(std::min(writer, other), std::max(writer, other));
      }
    }
  }

  void OrderBarriers() {
    std::int32_t last = -1;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(nodes_.size()); ++i) {
      if (last >= 0) hazards_.edges.emplace_back(last, i);
      if (!barrier_[i]) continue;
      for (std::int32_t j = last + 1; j < i; ++j) hazards_.edges.emplace_back(j, i);
      last = i;
    }
  }

  void Chain(const std::vector<char>& members) {
    std::int32_t last = -1;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(nodes_.size()); ++i) {
      if (!members[i]) continue;
      if (last >= 0) hazards_.edges.emplace_back(last, i);
      last = i;
    }
  }

  void OrderSideEffectsAgainstWhatOutlives() {
    const auto n = static_cast<std::int32_t>(nodes_.size());
    for (std::int32_t i = 0; i < n; ++i) {
      if (!side_effect_[i]) continue;
      for (std::int32_t j = 0; j < n; ++j) {
        if (j == i || !(random_[j] || writes_outside_[j])) continue;
        hazards_.edges.emplace_back(std::min(i, j), std::max(i, j));
      }
    }
  }

  const AliasDb& alias_db_;
  const std::vector<Node*>& nodes_;
  const std::vector<Probe>& probes_;
  const HazardRules& rules_;
  Hazards hazards_;
  std::vector<Value*> outside_;                          // what they hold outlives the block
  std::vector<Value*> constants_;                        // mutable ones
  std::vector<std::vector<Value*>> undeclared_aliases_;  // of each op that HidesAliases
  std::vector<std::vector<Value*>> written_;
  std::vector<char> barrier_, side_effect_, random_, collective_, writes_outside_;
};

}  // namespace

Hazards FindHazards(const AliasDb& alias_db, const std::vector<Node*>& nodes,
                    const std::vector<Probe>& probes, const HazardRules& rules) {
  return Finder(alias_db, nodes, probes, rules).Find();
}

Hazards FindHazards(const std::shared_ptr<Graph>& graph, const std::vector<Node*>& nodes,
                    const std::vector<Probe>& probes, const HazardRules& rules) {
  std::optional<AliasDb> alias_db;
  try {
    alias_db.emplace(graph);
  } catch (const std::exception& error) {
    Hazards hazards;
    hazards.refusal = std::string("torch's alias analysis does not understand the graph: ") +
                      std::string(error.what()).substr(0, 200);
    return hazards;
  }
  return FindHazards(*alias_db, nodes, probes, rules);
}

}  // namespace torch_ext::jit
