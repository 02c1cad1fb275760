// Operators that can be run part by part: the one table for all adaptors.
//
// A part is an interval of one dimension of the result. The rule of an operator says which interval
// of each argument it needs, and what else of the call is another one for a part. Rules are about
// indices alone: whether a kernel gives the same bits in parts, and whether it takes less scratch
// memory, is up to the machine, and an adaptor has to try (levers/slice.h).
//
// Each rule is tested on calls of random shapes, whole against in parts
// (test_operators_slicing.py).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace torch_ext::program {

struct Interval {
  std::int64_t begin = 0, end = 0;

  std::int64_t length() const { return end - begin; }
  bool operator==(const Interval&) const = default;
};

// What an interval of a result needs of an argument: index i needs
// [i * step / per - before, i * step / per - before + extent) along `dimension`.
struct Need {
  static constexpr int kWhole = -1;
  int dimension = kWhole;  // of the argument, all of which is needed else
  std::int64_t step = 1;
  std::int64_t per = 1;     // or `step` is 1
  std::int64_t before = 0;  // padding of the argument reaches that far
  std::int64_t extent = 1;

  bool operator==(const Need&) const = default;

  // Nothing if no interval of the argument gives exactly that part. `size` is the argument's.
  std::optional<Interval> Of(Interval part, std::int64_t size) const;
};

// What a part is given of an argument, with which padding, and where its rows are in those that it
// makes.
struct PaddedPart {
  Interval argument;
  std::int64_t padding = 0;
  std::int64_t offset = 0;
};

// Of a tensor of that shape.
std::int64_t NumElements(const std::vector<std::int64_t>& shape);

// Of a need with padding.
PaddedPart Padded(const Need& need, Interval part, std::int64_t size);

// How an operator makes an interval of one dimension of its result.
struct Slicing {
  // By the name of the argument (in a program: of the value). Of all others the whole is needed.
  std::vector<std::pair<std::string, Need>> needs;
  // A list of numbers that names the size of the result in this dimension, and the place in it.
  std::string sizes;
  std::size_t sizes_place = 0;
  // A number that is the size of the result in this dimension.
  std::string size;
  // A list of numbers with the padding of this dimension. A part that does not touch a border has
  // none; one that does keeps it on both sides, and rows that are spoilt by it are cut off again.
  std::string padding;
  std::size_t padding_place = 0;
  // Kernels compute most elements by vectors, and those at the end of a run of elements one by one,
  // which may round otherwise: such elements must stay at the ends.
  bool minds_runs = false;
  int runs_from = 0;              // the first dimension of a run
  bool changes_argument = false;  // the result is the first argument, changed in place
  bool may_be_view = false;       // or the first argument itself

  // Of one of the needs, padded or not; nothing if it cannot be given.
  std::optional<PaddedPart> ArgumentOf(const Need& need, Interval part, std::int64_t size) const;
};

using CallConstant = std::variant<bool, std::int64_t, double, std::vector<std::int64_t>>;

// An operator as it is called.
struct Call {
  std::string oper;  // without its overload: "aten::relu"
  // Of arguments that are tensors, or lists of tensors that differ in no dimension that matters.
  std::map<std::string, std::vector<std::int64_t>> shapes;
  std::map<std::string, CallConstant> constants;  // those that are known
  std::vector<std::int64_t> result;               // its shape
};

std::vector<std::string> SliceableOperators();  // those with a rule, sorted

// Nothing if the operator cannot be run in parts of that dimension of its result, or is not known.
std::optional<Slicing> SlicingOf(const Call& call, int dimension);

}  // namespace torch_ext::program
