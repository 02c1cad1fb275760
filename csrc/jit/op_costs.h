// What one op takes, learned by running it once on stand-ins: tensors of the right shape and no
// content. For the pass (pass.h), which sees types and no inputs.
//
// Stand-ins are zeros that take no memory until something writes to them, and none of the
// allocator's. Only pure ops of torch's own are run: nothing random, stateful or custom, so nothing
// of the user's is touched, the stream of random numbers included. What is learned is kept for the
// process.
//
// Stand-ins are made of a few kinds of tensors: strided ones of plain numbers. What is quantized,
// packed, sparse, nested or opaque is more than the zeros of its type, and kernels would read what
// is not there. An op that is given such a tensor, or asked for a type that is not known, is not
// run.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace torch_ext::jit {

struct TensorShape {
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;
  bool is_conj = false;  // what is read is the conjugate of what is stored
  bool is_neg = false;   // or its negative

  std::int64_t StorageBytes() const;  // from the first element to the last
  bool operator==(const TensorShape&) const = default;
};

// Are elements of the type plain numbers, so that zeros may stand in for them?
bool HasStandIn(c10::ScalarType dtype);

// The shape in a tensor's type, if it is complete and on the CPU.
std::optional<TensorShape> ShapeOf(const c10::TypePtr& type);

// The shape of a tensor in the CPU's memory; nothing for one that is not strided.
std::optional<TensorShape> ShapeOf(const at::Tensor& tensor);

// The tensor itself, if it is small and its elements are all there is to it.
std::optional<at::Tensor> ContentOf(const at::Tensor& tensor);

// An argument or result of an op as far as it is known.
struct KnownValue {
  std::optional<TensorShape> tensor;
  // Small tensors made of known numbers only, as tracing makes of sizes: shapes may depend on them.
  std::optional<at::Tensor> content;
  std::optional<c10::IValue> scalar;  // anything that holds no tensor: numbers, None, lists of them
  std::vector<KnownValue> elements;   // of a list or tuple
  bool is_sequence = false;
  // Storages that the value may hold, by the numbers of whoever asks; none for what is outside.
  std::vector<std::int32_t> storages;
};

struct OpCost {
  struct Result {
    std::optional<TensorShape> tensor;
    std::optional<at::Tensor> content;
    int new_storage = -1;   // the storage that the op made for it
    int shares_input = -1;  // the tensor among the arguments, in the order of a walk
    std::optional<c10::IValue> scalar;
    std::vector<Result> elements;
    bool is_sequence = false;
  };
  std::int64_t hill_bytes = 0;          // the most the op had taken at once
  std::vector<std::int64_t> new_bytes;  // of each storage it made and kept
  std::vector<Result> results;
};

// May the node be run on stand-ins?
bool MayRunOnStandIns(torch::jit::Node* node);

class OpCosts {
 public:
  // What the op takes with these arguments, one for each input of the node; nothing if one of them
  // is not known or the op raises. Runs the op if it has not been seen and `may_run`. Thread-safe.
  std::shared_ptr<const OpCost> Find(torch::jit::Node* node,
                                     const std::vector<KnownValue>& arguments, bool may_run);

 private:
  std::mutex mutex_;  // held for look-ups only, never while an op runs
  std::unordered_map<std::string, std::shared_ptr<const OpCost>> known_;  // null: it raises
};

}  // namespace torch_ext::jit
