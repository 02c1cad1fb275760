#include "jit/estimate.h"

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <utility>

#include "jit/nodes.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Block;
using torch::jit::Node;
using torch::jit::Value;

void AddOnce(std::vector<std::int32_t>& ids, std::int32_t id) {
  if (std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
}

// All storages that the value or its elements may hold.
void AddStorages(const KnownValue& value, std::vector<std::int32_t>& storages) {
  for (const std::int32_t s : value.storages) AddOnce(storages, s);
  for (const KnownValue& element : value.elements) AddStorages(element, storages);
}

void AddTensors(const KnownValue& value, std::vector<KnownValue>& tensors) {
  if (value.tensor) tensors.push_back(value);
  for (const KnownValue& element : value.elements) AddTensors(element, tensors);
}

bool HoldsTensors(const c10::TypePtr& type) {
  if (type->kind() == c10::TypeKind::TensorType) return true;
  const auto& contained = type->containedTypes();
  return std::ranges::any_of(contained, HoldsTensors);
}

// What is true of both: the value of either branch.
KnownValue Join(const KnownValue& a, const KnownValue& b) {
  KnownValue joined;
  if (a.tensor == b.tensor) joined.tensor = a.tensor;
  AddStorages(a, joined.storages);
  AddStorages(b, joined.storages);
  return joined;
}

}  // namespace

BlockEstimate Estimator::Estimate(torch::jit::Graph& graph) {
  return EstimateBlock(graph.block());
}

BlockEstimate Estimator::EstimateBlock(Block* block) {
  Frame frame;
  const std::vector<Node*> nodes = OpNodes(block);
  frame.estimate.probe.nodes.resize(nodes.size());
  frame.estimate.original_hill_bytes.resize(nodes.size());
  for (std::size_t i = 0; i < nodes.size(); ++i) Visit(nodes[i], frame, i);
  std::vector<std::int32_t> returned;
  for (Value* value : block->outputs()) AddStorages(Known(value), returned);
  for (const std::int32_t s : returned) {
    if (const auto found = frame.local.find(s); found != frame.local.end()) {
      frame.estimate.probe.allocations[found->second].kept = true;
    }
  }
  return std::move(frame.estimate);
}

KnownValue Estimator::Known(Value* value) {
  if (const auto found = known_.find(value); found != known_.end()) return found->second;
  KnownValue known;
  if (value->node()->kind() == c10::prim::Constant) {
    const auto constant = torch::jit::toIValue(value);
    if (constant && constant->isTensor()) {
      const at::Tensor& tensor = constant->toTensor();
      known.tensor = ShapeOf(tensor);
      if (known.tensor && tensor.numel() == 1) known.content = ContentOf(tensor);
    } else if (constant && !HoldsTensors(value->type())) {
      known.scalar = constant;
    }
  } else {
    known.tensor = ShapeOf(value->type());
  }
  return known;
}

void Estimator::Visit(Node* node, Frame& frame, std::size_t index) {
  NodeProbe& seen = frame.estimate.probe.nodes[index];
  std::int64_t& original_hill_bytes = frame.estimate.original_hill_bytes[index];
  for (Value* value : ReadValues(node)) {
    std::vector<std::int32_t> storages;
    AddStorages(Known(value), storages);
    for (const std::int32_t s : storages) {
      if (const auto local = frame.local.find(s); local != frame.local.end()) {
        AddOnce(seen.reads, local->second);
      }
    }
  }
  if (VisitStructure(node)) return;
  if (!node->blocks().empty()) {
    VisitBlocks(node, frame, seen, original_hill_bytes);
    return;
  }
  if (!VisitByRunning(node, frame, seen)) VisitByType(node, frame, seen);
  original_hill_bytes = seen.hill_bytes;
}

// Lists and tuples made and taken apart: they hold what they hold, and take nothing.
bool Estimator::VisitStructure(Node* node) {
  const c10::Symbol kind = node->kind();
  if (kind == c10::prim::ListConstruct || kind == c10::prim::TupleConstruct) {
    KnownValue made;
    made.is_sequence = true;
    bool all_scalars = kind == c10::prim::ListConstruct;
    for (Value* input : node->inputs()) {
      made.elements.push_back(Known(input));
      all_scalars = all_scalars && made.elements.back().scalar.has_value();
    }
    if (all_scalars && !node->inputs().empty()) {  // an int[] is one argument
      const auto type = node->output()->type()->expect<c10::ListType>()->getElementType();
      c10::impl::GenericList list(type);
      for (const KnownValue& element : made.elements) list.push_back(*element.scalar);
      made = {};
      made.scalar = c10::IValue(list);
    }
    known_[node->output()] = std::move(made);
    return true;
  }
  if (kind == c10::prim::ListUnpack || kind == c10::prim::TupleUnpack) {
    const KnownValue whole = Known(node->input());
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      KnownValue& part = known_[node->output(i)];
      if (whole.is_sequence && whole.elements.size() == node->outputs().size()) {
        part = whole.elements[i];
      } else {
        part.tensor = ShapeOf(node->output(i)->type());
        AddStorages(whole, part.storages);
      }
    }
    return true;
  }
  return false;
}

std::int32_t Estimator::NewStorage(std::int64_t bytes, Value* value, Frame& frame,
                                   NodeProbe& seen) {
  const auto storage = static_cast<std::int32_t>(storage_bytes_.size());
  storage_bytes_.push_back(bytes);
  const auto id = static_cast<std::int32_t>(frame.estimate.probe.allocations.size());
  frame.local[storage] = id;
  frame.estimate.probe.allocations.push_back({bytes, false, value->debugName(), {}, {}});
  seen.writes.push_back(id);
  return storage;
}

KnownValue Estimator::FromResult(const OpCost::Result& result,
                                 const std::vector<KnownValue>& tensors,
                                 const std::vector<std::int32_t>& new_storages) {
  KnownValue known;
  known.tensor = result.tensor;
  known.content = result.content;
  known.scalar = result.scalar;
  known.is_sequence = result.is_sequence;
  if (result.new_storage >= 0) known.storages.push_back(new_storages[result.new_storage]);
  if (result.shares_input >= 0) AddStorages(tensors[result.shares_input], known.storages);
  for (const OpCost::Result& element : result.elements) {
    known.elements.push_back(FromResult(element, tensors, new_storages));
  }
  return known;
}

bool Estimator::VisitByRunning(Node* node, Frame& frame, NodeProbe& seen) {
  if (!MayRunOnStandIns(node)) return false;
  std::vector<KnownValue> arguments, tensors;
  for (Value* input : node->inputs()) {
    arguments.push_back(Known(input));
    AddTensors(arguments.back(), tensors);
  }
  const bool may_run = std::chrono::steady_clock::now() < deadline_;
  const std::shared_ptr<const OpCost> cost = costs_.Find(node, arguments, may_run);
  if (!cost) return false;
  std::vector<std::int32_t> new_storages;
  for (const std::int64_t bytes : cost->new_bytes) {
    new_storages.push_back(NewStorage(bytes, node->output(0), frame, seen));
  }
  seen.hill_bytes = cost->hill_bytes;
  if (node->maybeSchema() != nullptr && node->schema().is_mutable()) {
    for (auto& [value, known] : known_) known.content.reset();  // whoever it was that was written
  }
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    known_[node->output(i)] = FromResult(cost->results[i], tensors, new_storages);
  }
  return true;
}

void Estimator::VisitBlocks(Node* node, Frame& frame, NodeProbe& seen,
                            std::int64_t& original_hill_bytes) {
  if (node->kind() == c10::prim::Loop) {  // what is carried in; numbers change from turn to turn
    Block* body = node->blocks()[0];
    for (std::size_t i = 1; i < body->inputs().size(); ++i) {
      KnownValue carried = Known(node->input(i + 1));
      carried.scalar.reset();
      carried.content.reset();
      known_[body->inputs()[i]] = std::move(carried);
    }
  }
  const auto first_inside = static_cast<std::int32_t>(storage_bytes_.size());
  for (Block* block : node->blocks()) {
    const BlockPeaks peaks = plan_block_(block, EstimateBlock(block));
    seen.hill_bytes = std::max(seen.hill_bytes, peaks.planned_bytes);
    original_hill_bytes = std::max(original_hill_bytes, peaks.original_bytes);
  }
  const std::size_t first = node->kind() == c10::prim::Loop ? 1 : 0;  // after the condition
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    Value* output = node->output(i);
    KnownValue result;
    bool is_first = true;
    for (Block* block : node->blocks()) {
      const KnownValue returned = Known(block->outputs()[first + i]);
      result = std::exchange(is_first, false) ? Join(returned, returned) : Join(result, returned);
    }
    if (first == 1) result = Join(result, Known(node->input(i + 2)));  // no turn at all
    if (!result.tensor) result.tensor = ShapeOf(output->type());
    // Storages made inside count as made by this node: of those only the largest, for one branch
    // is taken, or one turn is the last.
    std::vector<std::int32_t> outside;
    std::int64_t made_bytes = 0;
    for (const std::int32_t s : result.storages) {
      if (s < first_inside) {
        outside.push_back(s);
      } else {
        made_bytes = std::max(made_bytes, storage_bytes_[s]);
      }
    }
    result.storages = std::move(outside);
    if (made_bytes > 0) result.storages.push_back(NewStorage(made_bytes, output, frame, seen));
    known_[output] = std::move(result);
  }
  std::int64_t made_bytes = 0;
  for (const std::int32_t a : seen.writes) made_bytes += frame.estimate.probe.allocations[a].bytes;
  seen.hill_bytes = std::max(seen.hill_bytes, made_bytes);
  original_hill_bytes = std::max(original_hill_bytes, made_bytes);
}

void Estimator::VisitByType(Node* node, Frame& frame, NodeProbe& seen) {
  std::vector<KnownValue> arguments;
  std::vector<std::int32_t> held;
  for (Value* input : node->inputs()) {
    arguments.push_back(Known(input));
    AddStorages(arguments.back(), held);
  }
  if (node->kind() == c10::prim::GetAttr) {  // what attributes hold is outside
    known_[node->output()].tensor = ShapeOf(node->output()->type());
    return;
  }
  if (node->kind() == c10::prim::SetAttr) {
    for (const std::int32_t s : held) {
      const auto local = frame.local.find(s);
      if (local != frame.local.end()) frame.estimate.probe.allocations[local->second].kept = true;
    }
    return;
  }
  const c10::FunctionSchema* schema = node->maybeSchema();
  bool handles_tensors = !held.empty();
  for (std::size_t i = 0; i < node->outputs().size(); ++i) {
    Value* output = node->output(i);
    if (!HoldsTensors(output->type())) continue;
    handles_tensors = true;
    KnownValue& result = known_[output];
    result.tensor = ShapeOf(output->type());
    const c10::AliasInfo* made = schema != nullptr && i < schema->returns().size()
                                     ? schema->returns()[i].alias_info()
                                     : nullptr;
    const bool is_new = schema != nullptr && made == nullptr && result.tensor.has_value();
    if (!is_new) {
      result.storages = held;  // a view, or nobody knows
      if (made != nullptr || output->type()->kind() != c10::TypeKind::TensorType) continue;
    }
    const std::int64_t bytes = BytesOf(output, arguments);
    result.storages.push_back(NewStorage(bytes, output, frame, seen));
    seen.hill_bytes += bytes;
  }
  // What a list is given it holds from now on.
  for (std::size_t i = 0; schema != nullptr && i < node->inputs().size(); ++i) {
    const bool is_known = i < schema->arguments().size();
    const c10::AliasInfo* info = is_known ? schema->arguments()[i].alias_info() : nullptr;
    const bool is_container = node->input(i)->type()->kind() != c10::TypeKind::TensorType;
    if (info == nullptr || !info->isWrite() || !is_container) continue;
    known_[node->input(i)] = {};
    known_[node->input(i)].storages = held;
  }
  num_not_run_ += handles_tensors;
}

std::int64_t Estimator::BytesOf(Value* value, const std::vector<KnownValue>& arguments) {
  if (const auto shape = ShapeOf(value->type())) return shape->StorageBytes();
  ++num_guessed_;
  std::int64_t largest = 0;
  for (const KnownValue& argument : arguments) {
    if (argument.tensor) largest = std::max(largest, argument.tensor->StorageBytes());
  }
  return largest;
}

}  // namespace torch_ext::jit
