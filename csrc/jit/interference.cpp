#include "jit/interference.h"

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

std::vector<Value*> InputsAt(Node* node, const std::vector<std::size_t>& positions) {
  std::vector<Value*> values;
  for (const std::size_t i : positions) {
    if (i < node->inputs().size()) values.push_back(node->input(i));
  }
  return values;
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
  Finder(const AliasDb& alias_db, const std::vector<Node*>& nodes, const std::vector<Probe>& probes)
      : alias_db_(alias_db), nodes_(nodes), probes_(probes) {}

  Interference Find() {
    FindOutside();
    FindUndeclaredAliases();
    for (std::size_t i = 0; i < nodes_.size(); ++i) Classify(i);
    if (!found_.refusal.empty()) return std::move(found_);
    FindConflicts();
    return std::move(found_);
  }

 private:
  // What a node itself, or a node of its inner blocks, writes to.
  struct Written {
    std::vector<Value*> values;
    std::vector<std::size_t> groups;  // the undeclared ones that may hold some of the values
  };
  struct Writes {
    Written declared, statistics;
  };

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

  void FindGroups(Written& written) const {
    if (written.values.empty()) return;
    for (std::size_t group = 0; group < undeclared_groups_.size(); ++group) {
      if (alias_db_.mayContainAlias(written.values, undeclared_groups_[group])) {
        written.groups.push_back(group);
      }
    }
  }

  // May what is written be in memory that is reached through `values`?
  bool MayMeet(const Written& written, const std::vector<Value*>& values) const {
    return alias_db_.mayContainAlias(written.values, values) ||
           std::ranges::any_of(written.groups, [&](std::size_t group) {
             return alias_db_.mayContainAlias(undeclared_groups_[group], values);
           });
  }

  void Classify(std::size_t i) {
    Node* node = nodes_[i];
    Writes& writes = writes_.emplace_back();
    program::Effects& effects = found_.effects.emplace_back();
    ForEachInnerNode(node, [&](Node* inner) {
      const OperatorEffects own = EffectsOf(inner);
      for (Value* v : InputsAt(inner, own.writes)) writes.declared.values.push_back(v);
      for (Value* v : InputsAt(inner, own.statistics)) writes.statistics.values.push_back(v);
      // What is stateful is a barrier as such.
      if (!own.is_stateful && effects.undeclared.empty() && !own.undeclared.empty()) {
        const std::string of =
            inner == node ? "" : inner->kind().toQualString() + std::string(": ");
        effects.undeclared = of + own.undeclared;
      }
      effects.is_stateful |= own.is_stateful;
      effects.has_side_effect |= own.has_side_effect;
      effects.draws_random_numbers |= own.draws_random_numbers;
      effects.is_collective |= own.is_collective;
    });
    for (const Probe& probe : probes_) {
      effects.draws_random_numbers |= probe.nodes[i].uses_random_state;
    }
    const bool is_known = effects.undeclared.empty() && !effects.is_stateful;
    const bool writes_nothing = writes.declared.values.empty() && writes.statistics.values.empty();
    if (is_known && writes_nothing && alias_db_.isMutable(node)) {
      effects.undeclared = "may write to what it does not declare";
    }
    FindGroups(writes.declared);
    FindGroups(writes.statistics);
    const auto may_write_to = [&](const std::vector<Value*>& values) {
      return MayMeet(writes.declared, values) || MayMeet(writes.statistics, values);
    };
    if (may_write_to(constants_)) {
      found_.refusal =
          "'" + std::string(node->kind().toQualString()) + "' may write to a constant of the graph";
    }
    effects.writes_outside = may_write_to(outside_);
    found_.writes_outside |=
        effects.writes_outside || effects.is_stateful || !effects.undeclared.empty();
  }

  void FindConflicts() {
    std::vector<std::vector<Value*>> touched;
    for (Node* node : nodes_) touched.push_back(MutableValues(node));
    // Groups are large, and many ops write to the same one: each is looked up once.
    std::vector<std::vector<char>> group_touched(undeclared_groups_.size());
    for (std::size_t group = 0; group < undeclared_groups_.size(); ++group) {
      for (const std::vector<Value*>& values : touched) {
        group_touched[group].push_back(
            alias_db_.mayContainAlias(undeclared_groups_[group], values));
      }
    }
    const auto add = [&](std::size_t writer, const Written& written, bool by_statistics) {
      if (written.values.empty()) return;
      for (std::size_t other = 0; other < nodes_.size(); ++other) {
        const auto is_touched = [&](std::size_t group) { return group_touched[group][other]; };
        if (other == writer) continue;
        if (!alias_db_.mayContainAlias(written.values, touched[other]) &&
            std::ranges::none_of(written.groups, is_touched)) {
          continue;
        }
        const auto [earlier, later] = std::minmax(writer, other);
        found_.conflicts.push_back({static_cast<program::OpId>(earlier),
                                    static_cast<program::OpId>(later), by_statistics});
      }
    };
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      add(i, writes_[i].declared, /*by_statistics=*/false);
      add(i, writes_[i].statistics, /*by_statistics=*/true);
    }
  }

  const AliasDb& alias_db_;
  const std::vector<Node*>& nodes_;
  const std::vector<Probe>& probes_;
  Interference found_;
  std::vector<Value*> outside_;    // what they hold outlives the block
  std::vector<Value*> constants_;  // mutable ones
  // Values that may share memory through ops that HidesAliases: those of a group with each other.
  std::vector<std::vector<Value*>> undeclared_groups_;
  std::vector<Writes> writes_;  // of each node
};

}  // namespace

Interference FindInterference(const AliasDb& alias_db, const std::vector<Node*>& nodes,
                              const std::vector<Probe>& probes) {
  return Finder(alias_db, nodes, probes).Find();
}

Interference FindInterference(const std::shared_ptr<Graph>& graph, const std::vector<Node*>& nodes,
                              const std::vector<Probe>& probes) {
  std::optional<AliasDb> alias_db;
  try {
    alias_db.emplace(graph);
  } catch (const std::exception& error) {
    Interference unknown;
    unknown.refusal = std::string("torch's alias analysis does not understand the graph: ") +
                      std::string(error.what()).substr(0, 200);
    return unknown;
  }
  return FindInterference(*alias_db, nodes, probes);
}

}  // namespace torch_ext::jit
