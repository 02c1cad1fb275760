#include "jit/repeats.h"

#include <torch/csrc/jit/ir/alias_analysis.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/builder.h"
#include "jit/effects.h"
#include "jit/nodes.h"
#include "jit/origins.h"
#include "jit/to_program.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
using torch::jit::WithInsertPoint;

bool IsTensor(const Value* value) {
  return value->type()->kind() == c10::TypeKind::TensorType;
}

// Which input of a node makes it another one for torch.
class Disguises {
 public:
  explicit Disguises(const std::vector<Node*>& nodes) {
    for (Node* node : nodes) {
      const auto read = ReadValues(node);
      if (!std::ranges::any_of(read, [&](const Value* value) { return Varies(value); })) continue;
      varying_.insert(node->outputs().begin(), node->outputs().end());
    }
  }

  // Nothing if there is none.
  std::optional<std::size_t> InputOf(const Node* node) const {
    const auto first = [&](const auto& test) -> std::optional<std::size_t> {
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (Varies(node->input(i)) && test(node->input(i))) return i;
      }
      return std::nullopt;
    };
    if (const auto tensor = first(IsTensor)) return tensor;
    return first([&](const Value* value) {
      return MakesList(value->node()) && InputOf(value->node()).has_value();
    });
  }

 private:
  // Does it depend on what the call is given?
  bool Varies(const Value* value) const {
    if (value->type()->is_module()) return false;
    return varying_.contains(value) || value->node()->kind() == c10::prim::Param;
  }

  // Of tensors that are there, or views of them: a second one takes no memory.
  static bool MakesList(const Node* node) {
    static constexpr auto kKinds = std::to_array<std::string_view>(
        {"prim::ListConstruct", "prim::ConstantChunk", "aten::chunk", "aten::split",
         "aten::split_with_sizes", "aten::unbind"});
    return IsOneOf(node, kKinds);
  }

  std::unordered_set<const Value*> varying_;
};

// Views of their first input in every run.
bool MakesView(const Node* node) {
  static constexpr auto kKinds = std::to_array<std::string_view>(
      {"aten::view", "aten::transpose", "aten::permute", "aten::t", "aten::movedim",
       "aten::squeeze", "aten::unsqueeze", "aten::alias", "aten::detach", "aten::select",
       "aten::slice", "aten::narrow", "aten::expand"});
  return IsOneOf(node, kKinds);
}

// Is what the value shares memory with the same in every run?
bool IsCertain(const Value* value, const Origins& origins) {
  Node* node = const_cast<Node*>(value->node());
  const bool is_older = node->kind() == c10::prim::Param || node->kind() == c10::prim::Constant ||
                        node->kind() == c10::prim::GetAttr;
  if (is_older || !IsMutable(value) || origins.IsNew(value)) return true;
  if (node->kind() == c10::prim::ListConstruct) {
    return std::ranges::all_of(node->inputs(),
                               [&](const Value* input) { return IsCertain(input, origins); });
  }
  const bool writes_to_first = EffectsOf(node).writes == std::vector<std::size_t>{0};
  return node->blocks().empty() && IsTensor(value) && (MakesView(node) || writes_to_first) &&
         IsCertain(node->input(0), origins);
}

// Can it be looked into? Then a probe tells what memory it lies in.
bool IsPlain(const Value* value) {
  const c10::TypePtr& type = value->type();
  const auto list = type->cast<c10::ListType>();
  return IsTensor(value) || !MayHoldTensors(type) ||
         (list && list->getElementType()->kind() == c10::TypeKind::TensorType);
}

// Fills what is known of the nodes one by one. Returns for each whether that is so in every run.
std::vector<char> AddNodes(program::Program& program, const std::vector<Node*>& nodes,
                           const Probe& probe, const Origins& origins) {
  const Disguises disguises(nodes);
  std::vector<char> is_certain;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    Node* node = nodes[i];
    const NodeProbe& seen = probe.nodes[i];
    program::Op& op = program.ops[i];
    const auto is_read = [&](program::BufferId b) { return std::ranges::count(op.reads, b) > 0; };
    std::ranges::copy_if(seen.holds, std::back_inserter(op.aliases), is_read);
    bool all_certain = node->blocks().empty();
    const auto is_certain_value = [&](const Value* value) { return IsCertain(value, origins); };
    all_certain &= std::ranges::all_of(node->inputs(), is_certain_value);
    all_certain &= std::ranges::all_of(node->outputs(), is_certain_value);
    const OperatorEffects effects = EffectsOf(node);
    for (const std::size_t input : effects.writes) {
      const std::optional<SeenTensor>& written = SeenBy(node, seen, node->input(input));
      if (!written || !is_read(written->allocation)) {
        all_certain = false;
      } else if (std::ranges::count(op.mutates, written->allocation) == 0) {
        op.mutates.push_back(written->allocation);
      }
    }
    op.effects.runs_once |= !node->blocks().empty() || !effects.statistics.empty() ||
                            effects.changes_metadata || !disguises.InputOf(node) ||
                            !std::ranges::all_of(node->outputs(), IsPlain);
    is_certain.push_back(all_certain);
  }
  return is_certain;
}

}  // namespace

void AddRepeating(program::Program& program, const std::shared_ptr<Graph>& graph,
                  const std::vector<Node*>& nodes, const Probe& probe) {
  std::vector<program::Effects> all_effects;
  for (const program::Op& op : program.ops) all_effects.push_back(op.effects);
  const torch::jit::AliasDb alias_db(graph);
  const std::vector<char> is_certain =
      AddNodes(program, nodes, probe, Origins(alias_db, nodes, all_effects));
  // Who writes to what may be shared otherwise in another run, and all that it may meet.
  std::vector<char> is_doubtful(nodes.size(), 0);
  for (const program::Conflict& conflict : program.conflicts) {
    if (is_certain[conflict.earlier] && is_certain[conflict.later]) continue;
    is_doubtful[conflict.earlier] = is_doubtful[conflict.later] = 1;
  }
  for (program::Conflict& conflict : program.conflicts) {
    program::Effects& earlier = program.ops[conflict.earlier].effects;
    program::Effects& later = program.ops[conflict.later].effects;
    if (is_doubtful[conflict.earlier] || is_doubtful[conflict.later]) {
      earlier.runs_once = later.runs_once = true;
    }
    conflict.is_inside =
        !conflict.by_statistics && !earlier.writes_outside && !later.writes_outside;
  }
}

program::Program Certain(program::Program program, const std::vector<Node*>& nodes,
                         const std::vector<char>& certain, Probe probe,
                         const Interference& interference) {
  KeepCertain(certain, probe);
  const program::Program bare = ToProgram(nodes, probe, interference);
  program.buffers = bare.buffers;
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    program.ops[i].reads = bare.ops[i].reads;
    program.ops[i].workspace_bytes = bare.ops[i].workspace_bytes;
    if (!certain[i]) program.ops[i].nanoseconds = 0;
  }
  // A copy that is made beforehand stands for the argument, which may be gone.
  for (const program::Copy& copy : program.copyable) {
    if (copy.is_read_beside) continue;
    std::erase_if(program.ops[copy.op].reads,
                  [&](program::BufferId b) { return std::ranges::count(copy.reads, b) > 0; });
  }
  program.copyable.clear();
  for (program::Op& op : program.ops) {
    const auto is_unread = [&](program::BufferId b) {
      return std::ranges::count(op.reads, b) == 0;
    };
    std::erase_if(op.aliases, is_unread);
    std::erase_if(op.mutates, is_unread);
  }
  std::erase_if(program.overwritable, [&](const program::Overwrite& use) {
    if (std::ranges::count(program.ops[use.op].reads, use.argument) > 0) return false;
    program.buffers[use.result].bytes = 0;  // it may still take none of its own
    return true;
  });
  return program;
}

namespace {

class Rerun {
 public:
  Rerun(Block* block, const std::vector<Node*>& nodes)
      : block_(block), nodes_(nodes), disguises_(nodes) {}

  void Run(program::OpId v) {
    Node* node = nodes_[v];
    Node* run = graph().createClone(node, [&](Value* value) { return Now(value); });
    const int alike = seen_[{v, run->inputs().vec()}]++;
    if (alike > 0) {
      const std::size_t i = InputOf(node);
      run->replaceInput(i, Disguised(node->input(i), run->input(i), alike));
    }
    block_->appendNode(run);
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      latest_[node->output(i)] = run->output(i);
    }
    runs_.push_back(run);
  }

  void Finish() {
    Node* end = block_->return_node();
    for (std::size_t i = 0; i < end->inputs().size(); ++i) end->replaceInput(i, Now(end->input(i)));
    for (std::size_t i = nodes_.size(); i-- > 0;) nodes_[i]->destroy();
    for (std::size_t i = 0; i < runs_.size(); ++i) Mark(runs_[i], static_cast<std::int64_t>(i));
    graph().lint();
  }

 private:
  Graph& graph() { return *block_->owningGraph(); }

  Value* Now(Value* value) const {
    const auto found = latest_.find(value);
    return found == latest_.end() ? value : found->second;
  }

  std::size_t InputOf(const Node* node) const {
    const std::optional<std::size_t> input = disguises_.InputOf(node);
    TORCH_INTERNAL_ASSERT(input, "torch_ext: ", node->kind().toQualString(),
                          " would run again, and torch would take both runs for one");
    return *input;
  }

  // Another value for torch than the latest of the original's, and the same to compute with.
  Value* Disguised(Value* original, Value* now, int times) {
    if (IsTensor(now)) {
      std::vector<Value*>& views = views_[now];
      const WithInsertPoint at_end(block_);
      while (views.size() < static_cast<std::size_t>(times)) {
        Value* last = views.empty() ? now : views.back();
        views.push_back(Builder(original->node()).Tensor("aten::alias", {last}));
      }
      return views[times - 1];
    }
    Node* maker = now->node();
    const std::size_t i = InputOf(original->node());
    Value* part = Disguised(original->node()->input(i), maker->input(i), times);
    Node* copy = graph().createClone(maker, [](Value* value) { return value; });
    copy->replaceInput(i, part);
    return block_->appendNode(copy)->output(original->offset());
  }

  Block* block_;
  const std::vector<Node*>& nodes_;
  Disguises disguises_;
  std::unordered_map<Value*, Value*> latest_;  // what stands for a value of the original nodes
  std::map<std::pair<program::OpId, std::vector<Value*>>, int> seen_;  // runs with those inputs
  std::unordered_map<Value*, std::vector<Value*>> views_;              // each is one of the last
  std::vector<Node*> runs_;
};

}  // namespace

void ApplyRuns(Block* block, const std::vector<Node*>& nodes, const program::Runs& runs) {
  Rerun rerun(block, nodes);
  for (const program::OpId v : runs) rerun.Run(v);
  rerun.Finish();
}

void NameRuns(program::Program& program, const std::vector<std::int64_t>& marks,
              const program::Program& runs) {
  for (std::size_t b = 0; b < program.buffers.size(); ++b) {
    program.buffers[b].name = "again.buffer." + std::to_string(b);
  }
  for (std::size_t v = 0; v < program.ops.size(); ++v) {
    program::Op& op = program.ops[v];
    if (marks[v] == kUnmarked) {
      op.name = "again.view." + std::to_string(v);
      continue;
    }
    const program::Op& run = runs.ops[marks[v]];
    op.name = run.name;
    if (op.writes.size() != run.writes.size()) continue;
    for (std::size_t i = 0; i < op.writes.size(); ++i) {
      program.buffers[op.writes[i]].name = runs.buffers[run.writes[i]].name;
    }
  }
}

}  // namespace torch_ext::jit
