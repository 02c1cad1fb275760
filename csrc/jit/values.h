// What values hold: the storages reachable from them, copies of them, and whether two are the same
// bit for bit.
#pragma once

#include <ATen/core/ivalue.h>

#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

namespace torch_ext::jit {

using Stack = std::vector<c10::IValue>;

// Is the tensor strided, and its memory all there is to see? Not so are sparse, nested and opaque
// tensors, those of the meta device, and what classes of Python make of others.
bool HasMemory(const at::Tensor& tensor);

// How many share a byte: more than one of the packed types of quantized tensors.
std::int64_t ElementsPerByte(c10::ScalarType dtype);

// Calls `visit` for every tensor inside `value`: lists, tuples, dicts and objects are entered,
// modules only if `enter_modules`. Returns false if something may hold memory that cannot be looked
// into (futures, capsules, tensors without memory of their own).
bool ForEachTensor(const c10::IValue& value, bool enter_modules,
                   const std::function<void(const at::Tensor&)>& visit);

// Deep copies that keep what they share: two views of one storage become two views of one copy.
class ValueCopier {
 public:
  c10::IValue Copy(const c10::IValue& value);

 private:
  at::Tensor CopyTensor(const at::Tensor& tensor);
  std::unordered_map<const void*, c10::Storage> storages_;
};

// Compares two results of the same program, each with its own inputs and state. Calls of
// `Difference` must pair up the same places of both sides, for it also compares the pattern of
// shared storages across all calls: what aliases on one side must alias on the other.
class ValueComparer {
 public:
  // Empty if equal; else where and how they differ, e.g. "output[1]: values differ". Values are
  // compared bit by bit, except that NaN equals NaN.
  std::string Difference(const c10::IValue& a, const c10::IValue& b, const std::string& where);

 private:
  std::string TensorDifference(const at::Tensor& a, const at::Tensor& b, const std::string& where);
  std::unordered_map<const void*, std::size_t> first_seen_a_;
  std::unordered_map<const void*, std::size_t> first_seen_b_;
  std::vector<at::Tensor> kept_alive_;  // so that no address is seen twice
};

}  // namespace torch_ext::jit
