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
    written_groups_.resize(n);
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
        AddUndeclaredGroup(values);
      });
    }
  }

  // Groups that share memory with the new one become one with it. AliasDb knows the rest: each of
  // the values alone is enough for it to find the views of it.
  void AddUndeclaredGroup(const std::vector<Value*>& values) {
    std::vector<Value*> group = values;
    std::erase_if(undeclared_groups_, [&](const std::vector<Value*>& other) {
      if (!alias_db_.mayContainAlias(values, other)) return false;
      group.insert(group.end(), other.begin(), other.end());
      return true;
    });
    KeepOnce(group);
    undeclared_groups_.push_back(std::move(group));
  }

  // May what node i writes to be in memory that is reached through `values`?
  bool MayWriteTo(std::int32_t i, const std::vector<Value*>& values) const {
    return alias_db_.mayContainAlias(written_[i], values) ||
           std::ranges::any_of(written_groups_[i], [&](std::size_t group) {
             return alias_db_.mayContainAlias(undeclared_groups_[group], values);
           });
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
    for (std::size_t group = 0; group < undeclared_groups_.size(); ++group) {
      if (alias_db_.mayContainAlias(written_[i], undeclared_groups_[group])) {
        written_groups_[i].push_back(group);
      }
    }
    if (rules_.unknown && rules_.mutation && why.empty() && alias_db_.isMutable(node) &&
        written_[i].empty()) {
      why = std::string(node->kind().toQualString()) + ": may write to what it does not declare";
    }
    if (!why.empty()) {
      barrier_[i] = 1;
      hazards_.barriers.push_back(why);
    }
    for (const Probe& probe : probes_) random_[i] |= probe.nodes[i].uses_random_state;
    if (MayWriteTo(i, constants_)) {
      hazards_.refusal =
          "'" + std::string(node->kind().toQualString()) + "' may write to a constant of the graph";
    }
    writes_outside_[i] = MayWriteTo(i, outside_);
    hazards_.writes_outside |= writes_outside_[i] || barrier_[i];
  }

  void OrderMutations() {
    const auto n = static_cast<std::int32_t>(nodes_.size());
    std::vector<std::vector<Value*>> touched(n);
    for (std::int32_t i = 0; i < n; ++i) touched[i] = MutableValues(nodes_[i]);
    // Groups are large, and many ops write to the same one: each is looked up once.
    std::vector<std::vector<char>> group_touched(undeclared_groups_.size());
    for (std::size_t group = 0; group < undeclared_groups_.size(); ++group) {
      for (std::int32_t i = 0; i < n; ++i) {
        const bool is_touched = alias_db_.mayContainAlias(undeclared_groups_[group], touched[i]);
        group_touched[group].push_back(is_touched);
      }
    }
    for (std::int32_t writer = 0; writer < n; ++writer) {
      if (written_[writer].empty()) continue;
      for (std::int32_t other = 0; other < n; ++other) {
        if (other == writer) continue;
        const bool meets = alias_db_.mayContainAlias(written_[writer], touched[other]) ||
                           std::ranges::any_of(written_groups_[writer], [&](std::size_t group) {
                             return group_touched[group][other];
                           });
        if (meets) hazards_.edges.emplace_back(std::min(writer, other), std::max(writer, other));
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
  std::vector<Value*> outside_;    // what they hold outlives the block
  std::vector<Value*> constants_;  // mutable ones
  // Values that may share memory through ops that HidesAliases: those of a group with each other.
  std::vector<std::vector<Value*>> undeclared_groups_;
  std::vector<std::vector<Value*>> written_;              // what each node itself writes to
  std::vector<std::vector<std::size_t>> written_groups_;  // and the groups that may hold it
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
