#include "jit/op_costs.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/Allocator.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <unordered_map>

#include "jit/effects.h"
#include "jit/values.h"
#include "memory/thread_meter.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Node;

// Zeros of the system that become memory only when they are written to.
at::Tensor StandIn(const TensorShape& shape) {
  const auto bytes = static_cast<std::size_t>(std::max<std::int64_t>(shape.StorageBytes(), 1));
  void* zeros = std::calloc(bytes, 1);
  TORCH_CHECK(zeros != nullptr, "no memory for a stand-in");
  at::Tensor tensor = at::from_blob(
      zeros, shape.sizes, shape.strides, [](void* p) { std::free(p); },
      at::TensorOptions().dtype(shape.dtype));
  if (shape.is_conj) tensor = tensor.conj();
  return shape.is_neg ? tensor._neg_view() : tensor;
}

// Is it a device, layout or type of which nothing may be made? Results may be quantized with 8
// bits, for which torch has all kernels.
bool AsksForTooMuch(const c10::Argument& argument, const c10::IValue& value) {
  if (value.isDevice()) return !value.toDevice().is_cpu();
  if (!value.isInt()) return false;
  if (argument.name() == "layout") return value.toLayout() != at::kStrided;
  if (!std::string_view(argument.name()).ends_with("dtype")) return false;
  const c10::ScalarType dtype = value.toScalarType();
  return !HasStandIn(dtype) && dtype != at::kQUInt8 && dtype != at::kQInt8;
}

// The values that the op is called with; every tensor is also noted in `tensors`. `all_known`
// becomes false if one has no content.
std::optional<c10::IValue> ToStandIns(const KnownValue& value, const c10::TypePtr& type,
                                      std::vector<at::Tensor>& tensors, bool& all_known) {
  if (value.scalar) return value.scalar;
  if (value.tensor) {
    if (!HasStandIn(value.tensor->dtype)) return std::nullopt;
    tensors.push_back(value.content ? value.content->clone() : StandIn(*value.tensor));
    all_known = all_known && value.content.has_value();
    return tensors.back();
  }
  if (!value.is_sequence) {
    // An optional tensor without a type: a parameter that may be missing, as bias=None.
    if (type->kind() == c10::TypeKind::OptionalType) return c10::IValue();
    return std::nullopt;
  }
  const auto list = type->cast<c10::ListType>();
  if (!list) return std::nullopt;
  c10::impl::GenericList elements(list->getElementType());
  for (const KnownValue& element : value.elements) {
    const auto stand_in = ToStandIns(element, list->getElementType(), tensors, all_known);
    if (!stand_in) return std::nullopt;
    elements.push_back(*stand_in);
  }
  return c10::IValue(elements);
}

std::string_view BytesOf(const at::Tensor& content) {
  return {static_cast<const char*>(content.const_data_ptr()), content.nbytes()};
}

void Describe(const KnownValue& value, std::ostream& key) {
  if (value.scalar) {
    key << value.scalar->tagKind() << ':' << *value.scalar;
  } else if (value.tensor) {
    key << value.tensor->dtype << value.tensor->sizes << value.tensor->strides
        << value.tensor->is_conj << value.tensor->is_neg;
    if (value.content) key << BytesOf(*value.content);
  } else if (value.is_sequence) {
    key << '[';
    for (const KnownValue& element : value.elements) {
      Describe(element, key);
      key << ',';
    }
    key << ']';
  } else {
    key << '?';
  }
  key << ';';
}

// What an op takes with the same arguments depends on these, too.
void DescribeSettings(std::ostream& key) {
  key << at::get_num_threads() << ',' << c10::get_default_dtype_as_scalartype() << ','
      << at::globalContext().deterministicAlgorithms() << at::globalContext().userEnabledMkldnn();
  if (at::autocast::is_autocast_enabled(at::kCPU)) {
    key << ',' << at::autocast::get_autocast_dtype(at::kCPU);
  }
  key << ':';
}

// Results that tell of a tensor's shape and not of its content, which a stand-in does not have.
bool ReadsShapesOnly(Node* node) {
  static constexpr std::array<std::string_view, 13> kKinds = {"aten::size",
                                                              "aten::dim",
                                                              "aten::len",
                                                              "aten::numel",
                                                              "aten::stride",
                                                              "prim::dtype",
                                                              "prim::device",
                                                              "prim::layout",
                                                              "aten::is_complex",
                                                              "aten::is_floating_point",
                                                              "aten::storage_offset",
                                                              "prim::is_cuda",
                                                              "aten::__contains__"};
  return std::ranges::find(kKinds, node->kind().toQualString()) != kKinds.end();
}

// Takes what an op gave back apart.
class ResultReader {
 public:
  ResultReader(bool trust_content, bool trust_scalars, const std::vector<at::Tensor>& inputs,
               const memory::ThreadMeter& meter, OpCost& cost)
      : trust_content_(trust_content),
        trust_scalars_(trust_scalars),
        inputs_(inputs),
        meter_(meter),
        cost_(cost) {}

  // Nothing if the value holds what cannot be looked into.
  std::optional<OpCost::Result> Read(const c10::IValue& value) {
    OpCost::Result result;
    if (value.isTensor()) {
      const at::Tensor& tensor = value.toTensor();
      result.tensor = ShapeOf(tensor);
      if (!result.tensor) return std::nullopt;
      if (trust_content_) result.content = ContentOf(tensor);
      const void* address = tensor.storage().data();
      for (std::size_t i = 0; i < inputs_.size(); ++i) {
        if (inputs_[i].storage().data() == address) result.shares_input = static_cast<int>(i);
      }
      if (const std::int64_t bytes = meter_.LiveBytesAt(address); bytes > 0) {
        const auto next = static_cast<int>(cost_.new_bytes.size());
        const auto [number, is_new] = numbers_.emplace(address, next);
        if (is_new) cost_.new_bytes.push_back(bytes);
        result.new_storage = number->second;
      }
    } else if (value.isTensorList()) {
      result.is_sequence = true;
      for (const at::Tensor& element : value.toTensorVector()) {
        auto inner = Read(element);
        if (!inner) return std::nullopt;
        result.elements.push_back(std::move(*inner));
      }
    } else if (value.isNone() || value.isScalar() || value.isString() || value.isDevice() ||
               value.isIntList() || value.isBoolList() || value.isDoubleList()) {
      if (trust_scalars_) result.scalar = value;
    } else {
      return std::nullopt;
    }
    return result;
  }

 private:
  const bool trust_content_;
  const bool trust_scalars_;
  const std::vector<at::Tensor>& inputs_;
  const memory::ThreadMeter& meter_;
  OpCost& cost_;
  std::unordered_map<const void*, int> numbers_;  // of new storages
};

}  // namespace

std::int64_t TensorShape::StorageBytes() const {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    last += (sizes[i] - 1) * strides[i];
  }
  if (const std::int64_t packed = ElementsPerByte(dtype); packed > 1 && !sizes.empty()) {
    const std::int64_t rows = c10::multiply_integers(sizes) / sizes.back();  // each begins a byte
    return rows * ((sizes.back() + packed - 1) / packed);
  }
  return (last + 1) * static_cast<std::int64_t>(c10::elementSize(dtype));
}

bool HasStandIn(c10::ScalarType dtype) {
  // A list of what is known to be one, so that a type that torch adds is not.
  static constexpr auto kNumbers =
      std::to_array<c10::ScalarType>({at::kByte,          at::kChar,
                                      at::kShort,         at::kInt,
                                      at::kLong,          at::kUInt16,
                                      at::kUInt32,        at::kUInt64,
                                      at::kBool,          at::kHalf,
                                      at::kBFloat16,      at::kFloat,
                                      at::kDouble,        at::kComplexHalf,
                                      at::kComplexFloat,  at::kComplexDouble,
                                      at::kFloat8_e4m3fn, at::kFloat8_e4m3fnuz,
                                      at::kFloat8_e5m2,   at::kFloat8_e5m2fnuz,
                                      at::kFloat8_e8m0fnu});
  return std::ranges::find(kNumbers, dtype) != kNumbers.end();
}

std::optional<TensorShape> ShapeOf(const c10::TypePtr& type) {
  const auto tensor = type->cast<c10::TensorType>();
  if (!tensor || !tensor->scalarType() || !tensor->device() || !tensor->device()->is_cpu()) {
    return std::nullopt;
  }
  const auto sizes = tensor->sizes().concrete_sizes();
  if (!sizes) return std::nullopt;
  TensorShape shape{*tensor->scalarType(), *sizes, {}};
  if (const auto strides = tensor->strides().concrete_sizes()) {
    shape.strides = *strides;
  } else {
    shape.strides.assign(sizes->size(), 1);
    for (std::size_t i = sizes->size(); i-- > 1;) {
      shape.strides[i - 1] = shape.strides[i] * std::max<std::int64_t>((*sizes)[i], 1);
    }
  }
  return shape;
}

std::optional<TensorShape> ShapeOf(const at::Tensor& tensor) {
  if (!HasMemory(tensor) || !tensor.device().is_cpu()) return std::nullopt;
  return TensorShape{tensor.scalar_type(), tensor.sizes().vec(), tensor.strides().vec(),
                     tensor.is_conj(), tensor.is_neg()};
}

std::optional<at::Tensor> ContentOf(const at::Tensor& tensor) {
  constexpr std::int64_t kMostElements = 16;
  const std::optional<TensorShape> shape = ShapeOf(tensor);
  const bool is_known = shape && HasStandIn(shape->dtype) && !shape->is_conj && !shape->is_neg;
  if (!is_known || tensor.numel() > kMostElements) return std::nullopt;
  return tensor.detach().clone();
}

bool MayRunOnStandIns(Node* node) {
  const OperatorEffects effects = EffectsOf(node);
  if (effects.has_side_effect || effects.draws_random_numbers || effects.is_stateful) return false;
  if (!node->blocks().empty()) return false;
  if (!node->kind().is_aten() && !node->kind().is_prim()) return false;
  if (node->maybeOperator() == nullptr) return false;
  if (node->hasAttributes() && node->kind() != c10::prim::ConstantChunk) return false;
  const bool is_attribute =
      node->kind() == c10::prim::GetAttr || node->kind() == c10::prim::SetAttr;
  return !is_attribute &&
         node->getOperator().aliasAnalysisKind() != c10::AliasAnalysisKind::CONSERVATIVE;
}

std::shared_ptr<const OpCost> OpCosts::Find(Node* node, const std::vector<KnownValue>& arguments,
                                            bool may_run) {
  std::ostringstream text;
  text << node->kind().toQualString() << '.'
       << (node->maybeSchema() ? node->schema().overload_name() : "") << '/';
  DescribeSettings(text);
  for (const KnownValue& argument : arguments) Describe(argument, text);
  if (node->kind() == c10::prim::ConstantChunk) {
    text << node->i(c10::attr::chunks) << ',' << node->i(c10::attr::dim);
  }
  const std::string key = text.str();
  {
    const std::scoped_lock lock(mutex_);
    if (const auto found = known_.find(key); found != known_.end()) return found->second;
  }
  if (!may_run) return nullptr;

  const c10::FunctionSchema* schema = node->maybeSchema();
  std::shared_ptr<OpCost> cost = std::make_shared<OpCost>();
  try {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors;
    bool all_known = true;
    Stack stack;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      auto stand_in = ToStandIns(arguments[i], node->input(i)->type(), tensors, all_known);
      if (!stand_in) return nullptr;
      if (schema != nullptr && i < schema->arguments().size() &&
          AsksForTooMuch(schema->arguments()[i], *stand_in)) {
        return nullptr;
      }
      stack.push_back(std::move(*stand_in));
    }
    const auto meter = std::make_shared<memory::ThreadMeter>();
    {
      const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
      torch::jit::Operation operation = node->getOperation();
      operation(stack);
    }
    cost->hill_bytes = meter->hill_bytes();
    ResultReader reader(all_known, all_known || ReadsShapesOnly(node), tensors, *meter, *cost);
    for (const c10::IValue& value : stack) {
      auto result = reader.Read(value);
      if (!result) break;
      cost->results.push_back(std::move(*result));
    }
    if (cost->results.size() != node->outputs().size()) cost = nullptr;
  } catch (const std::exception&) {
    cost = nullptr;  // zeros do not please it
  }
  const std::scoped_lock lock(mutex_);
  return known_.emplace(key, std::move(cost)).first->second;
}

}  // namespace torch_ext::jit
