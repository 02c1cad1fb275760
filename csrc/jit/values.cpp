#include "jit/values.h"

#include <ATen/ATen.h>
#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>

#include <cstring>
#include <unordered_set>

namespace torch_ext::jit {
namespace {

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
      return tensor.has_storage();
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

// Equal bit by bit, NaN equal to NaN. Same dtype and sizes are given.
bool SameElements(at::Tensor a, at::Tensor b) {
  if (a.is_quantized()) return SameElements(a.int_repr(), b.int_repr());
  a = a.resolve_conj().resolve_neg().contiguous();
  b = b.resolve_conj().resolve_neg().contiguous();
  if (a.numel() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0) {
    return true;
  }
  if (a.is_complex()) return SameElements(at::view_as_real(a), at::view_as_real(b));
  if (!a.is_floating_point()) return false;
  const at::Tensor nan = at::isnan(a);
  if (!nan.equal(at::isnan(b))) return false;
  a = a.masked_fill(nan, 0);
  b = b.masked_fill(nan, 0);
  return std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace

bool ForEachTensor(const c10::IValue& value, bool enter_modules,
                   const std::function<void(const at::Tensor&)>& visit) {
  return Walker(enter_modules, visit).Walk(value);
}

at::Tensor ValueCopier::CopyTensor(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  if (!tensor.has_storage() || tensor.is_quantized()) return tensor.detach().clone();
  const c10::Storage& storage = tensor.storage();
  auto found = storages_.find(StorageId(tensor));
  if (found == storages_.end()) {
    const auto bytes = static_cast<std::int64_t>(storage.nbytes());
    at::Tensor raw = at::empty({bytes}, tensor.options().dtype(at::kByte).requires_grad(false));
    const at::Tensor source = at::empty({0}, raw.options()).set_(storage, 0, {bytes}, {1});
    raw.copy_(source);
    found = storages_.emplace(StorageId(tensor), raw.storage()).first;
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
  return value.isPtrType() && !value.isString() ? value.deepcopy() : value;
}

std::string ValueComparer::TensorDifference(const at::Tensor& a, const at::Tensor& b,
                                            const std::string& where) {
  if (a.defined() != b.defined()) return where + ": only one is defined";
  if (!a.defined()) return {};
  if (a.scalar_type() != b.scalar_type() || a.layout() != b.layout() || a.device() != b.device()) {
    return where + ": dtype, layout or device differ";
  }
  if (a.sizes() != b.sizes()) return where + ": shapes differ";
  if (a.layout() == at::kSparse) {
    const at::Tensor ca = a.coalesce(), cb = b.coalesce();
    if (ca._nnz() != cb._nnz()) return where + ": numbers of non-zeros differ";
    return SameElements(ca.indices(), cb.indices()) && SameElements(ca.values(), cb.values())
               ? std::string()
               : where + ": values differ";
  }
  if (!a.has_storage()) {
    return SameElements(a.to_dense(), b.to_dense()) ? std::string() : where + ": values differ";
  }
  if (a.strides() != b.strides() || a.storage_offset() != b.storage_offset()) {
    return where + ": memory layouts differ";
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
  if (a.isTensor()) return TensorDifference(a.toTensor(), b.toTensor(), where);
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
