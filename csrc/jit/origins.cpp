#include "jit/origins.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "jit/effects.h"
#include "jit/nodes.h"

namespace torch_ext::jit {
namespace {

using torch::jit::AliasDb;
using torch::jit::Node;
using torch::jit::Value;

// Views of all that they are given.
bool KeepsWhole(const Node* node) {
  static constexpr auto kWhole = std::to_array<std::string_view>(
      {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::flatten", "aten::unflatten",
       "aten::transpose", "aten::permute", "aten::t", "aten::movedim", "aten::squeeze",
       "aten::unsqueeze", "aten::contiguous", "aten::dropout", "aten::alias", "aten::detach"});
  return std::ranges::find(kWhole, node->kind().toQualString()) != kWhole.end();
}

// Does it put one value into another: into a list, a dict, an attribute?
bool FillsContainer(Node* node) {
  return AnyInnerNode(node, [](Node* inner) {
    const OperatorEffects effects = EffectsOf(inner);
    return effects.changes_metadata || std::ranges::any_of(effects.writes, [&](std::size_t i) {
             return inner->input(i)->type()->kind() != c10::TypeKind::TensorType;
           });
  });
}

// May the output hold memory of any of the inputs, without torch telling of which?
bool MayHoldAll(Node* node) {
  return !node->blocks().empty() || node->maybeSchema() == nullptr || HidesAliases(node);
}

// A tensor that the schema calls new. AliasDb knows that too, and yet takes it for a view of all
// that is kept somewhere, the inputs of the graph among them, once it has been in a list.
bool IsNewTensor(const Node* node, const Value* output) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema != nullptr && output->offset() < schema->returns().size() &&
         schema->returns()[output->offset()].alias_info() == nullptr &&
         output->type()->kind() == c10::TypeKind::TensorType;
}

bool ChangesFirstInput(const Node* node) {
  return node->maybeSchema() != nullptr &&
         EffectsOf(const_cast<Node*>(node)).writes == std::vector<std::size_t>{0};
}

// The new memory of the block that the value is all of; null if it may be another's.
const Value* MemoryMadeIn(const torch::jit::Block* block, const Value* value) {
  const Node* node = value->node();
  if (node->owningBlock() != block || !node->blocks().empty()) return nullptr;
  if (IsNewTensor(node, value) && !HidesAliases(const_cast<Node*>(node))) return value;
  return ChangesFirstInput(node) ? MemoryMadeIn(block, node->input(0)) : nullptr;
}

// Does an If return new memory, each output its own, whichever block runs?
bool IsChoiceOfNewTensors(Node* node) {
  return node->kind() == c10::prim::If &&
         std::ranges::all_of(node->blocks(), [](torch::jit::Block* block) {
           std::unordered_set<const Value*> made;
           return std::ranges::all_of(block->outputs(), [&](const Value* output) {
             const Value* memory = MemoryMadeIn(block, output);
             return memory != nullptr && made.insert(memory).second;
           });
         });
}

}  // namespace

Origins::Origins(const AliasDb& alias_db, const std::vector<Node*>& nodes,
                 const std::vector<program::Effects>& effects) {
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    AddNode(alias_db, static_cast<program::OpId>(i), nodes[i], effects[i]);
  }
  if (nodes.empty()) return;
  for (const Value* result : nodes[0]->owningBlock()->outputs()) {
    for (const std::size_t id : Of(result)) is_ours_[id] = 0;
  }
}

void Origins::AddNode(const AliasDb& alias_db, program::OpId op, Node* node,
                      const program::Effects& effects) {
  std::vector<Value*> read;
  for (Value* value : ReadValues(node)) {
    if (IsMutable(value)) read.push_back(value);
  }
  Ids touched = All(read);
  const bool are_new = IsChoiceOfNewTensors(node);
  const bool is_simple = node->blocks().empty() || are_new;
  for (Value* output : node->outputs()) {
    if (!IsMutable(output)) continue;
    const bool may_hold_all = MayHoldAll(node), is_new = IsNewTensor(node, output);
    std::vector<Value*> held;
    for (Value* value : read) {
      const bool is_told = !is_new && alias_db.mayContainAlias(value, output);
      if (!are_new && (may_hold_all || is_told)) held.push_back(value);
    }
    const bool is_given_whole = !node->inputs().empty() && held.size() == 1 &&
                                held[0] == node->input(0) && IsWhole(held[0]);
    const bool keeps_whole = KeepsWhole(node) || ChangesFirstInput(node);
    is_whole_[output] = is_simple && (held.empty() || (is_given_whole && keeps_whole));
    if (is_simple && held.empty()) new_.insert(output);
    Ids ids = All(held);
    ids.push_back(is_ours_.size());
    touched.push_back(is_ours_.size());
    is_ours_.push_back(1);
    touchers_.emplace_back();
    ids_[output] = std::move(ids);
  }
  const bool keeps_unseen = effects.is_stateful || !effects.undeclared.empty() ||
                            effects.is_collective || effects.changes_metadata ||
                            FillsContainer(node);
  for (const std::size_t id : touched) {
    if (keeps_unseen) is_ours_[id] = 0;
    touchers_[id].push_back(op);
  }
}

const Origins::Ids& Origins::Of(const Value* value) const {
  const auto found = ids_.find(value);
  return found == ids_.end() ? outside_ : found->second;
}

Origins::Ids Origins::All(const std::vector<Value*>& values) const {
  Ids all;
  for (const Value* value : values) {
    const Ids& ids = Of(value);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  std::ranges::sort(all);
  all.erase(std::ranges::unique(all).begin(), all.end());
  return all;
}

bool Origins::IsOurs(const Value* value) const {
  return std::ranges::all_of(Of(value), [&](std::size_t id) { return is_ours_[id] != 0; });
}

bool Origins::IsWhole(const Value* value) const {
  const auto found = is_whole_.find(value);
  return found != is_whole_.end() && found->second;
}

bool Origins::MayShare(const Value* a, const Value* b) const {
  return std::ranges::any_of(Of(a),
                             [&](std::size_t id) { return std::ranges::binary_search(Of(b), id); });
}

std::vector<program::OpId> Origins::Touchers(const Value* value) const {
  std::vector<program::OpId> ops;
  for (const std::size_t id : Of(value)) {
    ops.insert(ops.end(), touchers_[id].begin(), touchers_[id].end());
  }
  std::ranges::sort(ops);
  ops.erase(std::ranges::unique(ops).begin(), ops.end());
  return ops;
}

}  // namespace torch_ext::jit
