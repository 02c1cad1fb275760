#include "jit/values.h"

#include <ATen/ATen.h>
#include <ATen/NestedTensorImpl.h>
#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>
#include <ATen/quantized/Quantizer.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>
#include <unordered_set>

namespace torch_ext::jit {
namespace {

constexpr const char* kNotComparable = ": what it holds cannot be compared";

const void* StorageId(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->storage().unsafeGetStorageImpl();
}

class Walker {
 public:
  Walker(bool enter_modules, const std::function<void(const at::Tensor&)>& visit)
      : enter_modules_(enter_modules), visit_(visit) {}

  bool Walk(const c10::IValue& value) {
    if (value.isTensor()) {
      const at::Tensor& tensor = value.toTensor();
      if (!tensor.defined()) return true;
      visit_(tensor);
      return HasMemory(tensor);
    }
    if (value.isList()) {
      bool known = true;
      for (const c10::IValue& element : value.toListRef()) known &= Walk(element);
      return known;
    }
    if (value.isTuple()) {
      bool known = true;
      for (const c10::IValue& element : value.toTupleRef().elements()) known &= Walk(element);
      return known;
    }
    if (value.isGenericDict()) {
      bool known = true;
      for (const auto& entry : value.toGenericDict()) {
        known &= Walk(entry.key());
        known &= Walk(entry.value());
      }
      return known;
    }
    if (value.isObject()) {
      const auto object = value.toObject();
      if (object->type()->is_module() && !enter_modules_) return true;
      if (!seen_.insert(object.get()).second) return true;
      bool known = true;
      for (const c10::IValue& slot : object->slots()) known &= Walk(slot);
      return known;
    }
    return value.isNone() || value.isScalar() || value.isString() || value.isDevice() ||
           value.isEnum() || value.isGenerator() || value.isStream();
  }

 private:
  const bool enter_modules_;
  const std::function<void(const at::Tensor&)>& visit_;
  std::unordered_set<const void*> seen_;
};

// The memory of a tensor as numbers of another type, some for each element. No kernel of the
// tensor's own type is needed: the rarer ones have few.
at::Tensor MemoryAs(c10::ScalarType dtype, const at::Tensor& tensor) {
  char* start = const_cast<char*>(static_cast<const char*>(tensor.storage().data()));
  if (ElementsPerByte(tensor.scalar_type()) > 1) {
    return at::from_blob(start, {static_cast<std::int64_t>(tensor.storage().nbytes())}, dtype);
  }
  const auto element_bytes = static_cast<std::int64_t>(tensor.element_size());
  const std::int64_t numbers = element_bytes / static_cast<std::int64_t>(c10::elementSize(dtype));
  const bool is_dense = tensor.is_non_overlapping_and_dense();
  std::vector<std::int64_t> sizes = is_dense ? std::vector{tensor.numel()} : tensor.sizes().vec();
  std::vector<std::int64_t> strides =
      is_dense ? std::vector<std::int64_t>{1} : tensor.strides().vec();
  for (std::int64_t& stride : strides) stride *= numbers;
  sizes.push_back(numbers);
  strides.push_back(1);
  return at::from_blob(start + tensor.storage_offset() * element_bytes, sizes, strides, dtype);
}

bool SameBytes(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor bytes_a = MemoryAs(at::kByte, a).contiguous();
  const at::Tensor bytes_b = MemoryAs(at::kByte, b).contiguous();
  return bytes_a.numel() == 0 ||
         std::memcmp(bytes_a.const_data_ptr(), bytes_b.const_data_ptr(), bytes_a.nbytes()) == 0;
}

// Equal bit by bit, NaN equal to NaN. Same dtype, sizes and strides are given.
bool SameElements(at::Tensor a, at::Tensor b) {
  a = a.cpu();
  b = b.cpu();
  if (SameBytes(a, b)) return true;
  if (!a.is_floating_point() && !a.is_complex()) return false;
  const c10::ScalarType real = c10::toRealValueType(a.scalar_type());
  a = MemoryAs(real, a);
  b = MemoryAs(real, b);
  const at::Tensor nan = at::isnan(a);
  const at::Tensor bytes_differ = MemoryAs(at::kByte, a).ne(MemoryAs(at::kByte, b));
  const at::Tensor differ = bytes_differ.any(/*dim=*/-1).view(nan.sizes());
  return nan.equal(at::isnan(b)) && !differ.logical_and(nan.logical_not()).any().item<bool>();
}

// The tensors that one without memory of its own consists of; nothing if they are not known.
std::optional<std::vector<at::Tensor>> PartsOf(const at::Tensor& tensor) {
  if (tensor.key_set().has(c10::DispatchKey::Python)) return std::nullopt;
  if (tensor.is_meta()) return std::vector<at::Tensor>();
  if (tensor.is_nested()) {
    return std::vector{at::native::get_nested_tensor_impl(tensor)->get_unsafe_storage_as_tensor(),
                       tensor._nested_tensor_size(), tensor._nested_tensor_strides(),
                       tensor._nested_tensor_storage_offsets()};
  }
  switch (tensor.layout()) {
    case at::kSparse:
      return std::vector{tensor._indices(), tensor._values()};
    case at::kSparseCsr:
    case at::kSparseBsr:
      return std::vector{tensor.crow_indices(), tensor.col_indices(), tensor.values()};
    case at::kSparseCsc:
    case at::kSparseBsc:
      return std::vector{tensor.ccol_indices(), tensor.row_indices(), tensor.values()};
    case at::kMkldnn:
      return std::vector{tensor.to_dense()};
    default:
      return std::nullopt;
  }
}

// However it lies in memory: torch copies some of them in another way.
bool SamePart(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg() &&
         SameElements(a.contiguous(), b.contiguous());
}

std::string DifferenceOfParts(const at::Tensor& a, const at::Tensor& b, const std::string& where) {
  const auto parts_a = PartsOf(a), parts_b = PartsOf(b);
  if (!parts_a || !parts_b || parts_a->size() != parts_b->size()) {
    return where + kNotComparable;
  }
  if (!a.is_nested() && a.sizes() != b.sizes()) return where + ": shapes differ";
  if (a.layout() == at::kSparse && a.is_coalesced() != b.is_coalesced()) {
    return where + ": only one is coalesced";
  }
  return std::ranges::equal(*parts_a, *parts_b, SamePart) ? std::string()
                                                          : where + ": values differ";
}

// Another tensor of the same memory.
at::Tensor ShallowCopy(const at::Tensor& tensor) {
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(
      c10::VariableVersion(0), /*allow_tensor_metadata_change=*/true));
}

}  // namespace

bool HasMemory(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage() || tensor.is_nested()) return false;
  if (tensor.key_set().has(c10::DispatchKey::Python)) return false;
  const c10::Storage& storage = tensor.storage();
  return storage.data() != nullptr || storage.nbytes() == 0;
}

std::int64_t ElementsPerByte(c10::ScalarType dtype) {
  if (dtype == at::kQUInt2x4) return 4;
  return dtype == at::kQUInt4x2 ? 2 : 1;
}

bool ForEachTensor(const c10::IValue& value, bool enter_modules,
                   const std::function<void(const at::Tensor&)>& visit) {
  return Walker(enter_modules, visit).Walk(value);
}

at::Tensor ValueCopier::CopyTensor(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  if (tensor.is_meta()) return ShallowCopy(tensor);
  if (!HasMemory(tensor)) return tensor.detach().clone();
  const c10::Storage& storage = tensor.storage();
  auto found = storages_.find(StorageId(tensor));
  if (found == storages_.end()) {
    const auto bytes = static_cast<std::int64_t>(storage.nbytes());
    at::Tensor raw = at::empty({bytes}, tensor.options().dtype(at::kByte).requires_grad(false));
    const at::Tensor source = at::empty({0}, raw.options()).set_(storage, 0, {bytes}, {1});
    raw.copy_(source);
    found = storages_.emplace(StorageId(tensor), raw.storage()).first;
  }
  if (at::isQIntType(tensor.scalar_type())) {  // the quantizer, if there is one, is kept
    at::Tensor copy = ShallowCopy(tensor);
    copy.unsafeGetTensorImpl()->set_storage_keep_dtype(found->second);
    return copy;
  }
  at::Tensor copy = at::empty({0}, tensor.options().requires_grad(false));
  copy.set_(found->second, tensor.storage_offset(), tensor.sizes(), tensor.strides());
  if (tensor.is_conj()) copy = copy.conj();
  if (tensor.is_neg()) copy = copy._neg_view();
  return copy.set_requires_grad(tensor.requires_grad());
}

c10::IValue ValueCopier::Copy(const c10::IValue& value) {
  if (value.isTensor()) return CopyTensor(value.toTensor());
  if (value.isTuple()) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      elements.push_back(Copy(element));
    }
    return c10::ivalue::Tuple::createNamed(std::move(elements),
                                           value.type()->expect<c10::TupleType>());
  }
  if (value.isList()) {
    const c10::List<c10::IValue> list = value.toList();
    c10::List<c10::IValue> copy(list.elementType());
    for (const c10::IValue& element : value.toListRef()) copy.push_back(Copy(element));
    return copy;
  }
  if (value.isGenericDict()) {
    const auto dict = value.toGenericDict();
    c10::Dict<c10::IValue, c10::IValue> copy(dict.keyType(), dict.valueType());
    for (const auto& entry : dict) copy.insert(Copy(entry.key()), Copy(entry.value()));
    return copy;
  }
  if (!value.isPtrType() || value.isString()) return value;
  c10::IValue::HashIdentityIValueMap copies;
  ForEachTensor(value, /*enter_modules=*/true,
                [&](const at::Tensor& tensor) { copies.emplace(tensor, CopyTensor(tensor)); });
  return value.deepcopy(copies);
}

std::string ValueComparer::TensorDifference(const at::Tensor& a, const at::Tensor& b,
                                            const std::string& where) {
  if (a.defined() != b.defined()) return where + ": only one is defined";
  if (!a.defined()) return {};
  if (a.scalar_type() != b.scalar_type() || a.layout() != b.layout() || a.device() != b.device()) {
    return where + ": dtype, layout or device differ";
  }
  if (!HasMemory(a) || !HasMemory(b)) return DifferenceOfParts(a, b, where);
  if (a.sizes() != b.sizes()) return where + ": shapes differ";
  if (a.strides() != b.strides() || a.storage_offset() != b.storage_offset() ||
      a.is_conj() != b.is_conj() || a.is_neg() != b.is_neg()) {
    return where + ": memory layouts differ";
  }
  if (a.is_quantized() && !a.quantizer()->equalTo(b.quantizer())) {
    return where + ": quantizers differ";
  }
  kept_alive_.push_back(a);
  kept_alive_.push_back(b);
  const std::size_t label = first_seen_a_.size();
  if (first_seen_a_.emplace(StorageId(a), label).first->second !=
      first_seen_b_.emplace(StorageId(b), label).first->second) {
    return where + ": shares memory with something else than before";
  }
  return SameElements(a, b) ? std::string() : where + ": values differ";
}

std::string ValueComparer::Difference(const c10::IValue& a, const c10::IValue& b,
                                      const std::string& where) {
  if (a.tagKind() != b.tagKind()) return where + ": kinds differ";
  const auto first_difference = [&](const auto& as, const auto& bs) -> std::string {
    if (as.size() != bs.size()) return where + ": lengths differ";
    for (std::size_t i = 0; i < as.size(); ++i) {
      std::string why = Difference(as[i], bs[i], where + "[" + std::to_string(i) + "]");
      if (!why.empty()) return why;
    }
    return {};
  };
  if (a.isTensor()) {
    try {
      return TensorDifference(a.toTensor(), b.toTensor(), where);
    } catch (const std::exception&) {  // of a kind that lacks what others have
      return where + kNotComparable;
    }
  }
  if (a.isTuple()) return first_difference(a.toTupleRef().elements(), b.toTupleRef().elements());
  if (a.isList()) return first_difference(a.toListRef(), b.toListRef());
  if (a.isGenericDict()) {
    std::vector<c10::IValue> as, bs;  // insertion order is part of the result
    for (const auto& entry : a.toGenericDict()) {
      as.push_back(entry.key());
      as.push_back(entry.value());
    }
    for (const auto& entry : b.toGenericDict()) {
      bs.push_back(entry.key());
      bs.push_back(entry.value());
    }
    return first_difference(as, bs);
  }
  if (a.isCustomClass()) {
    torch::jit::Function* state = a.toObjectRef().type()->findMethod("__getstate__");
    if (state == nullptr) return a.is(b) ? std::string() : where + kNotComparable;
    return Difference((*state)({a}), (*state)({b}), where);
  }
  if (a.isObject()) return first_difference(a.toObject()->slots(), b.toObject()->slots());
  if (a.isDouble()) {
    const double x = a.toDouble(), y = b.toDouble();
    return std::memcmp(&x, &y, sizeof x) == 0 || (x != x && y != y) ? std::string()
                                                                    : where + ": values differ";
  }
  if (a.isNone() || a.isScalar() || a.isString() || a.isDevice()) {
    return a == b ? std::string() : where + ": values differ";
  }
  return {};  // futures, capsules, streams: nothing to compare
}

}  // namespace torch_ext::jit
