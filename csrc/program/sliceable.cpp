#include "program/sliceable.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>

#include "program/operators/work.h"

namespace torch_ext::program {
namespace {

const Tensor* Find(const Program& program, const std::string& value) {
  const auto found = program.tensors.find(value);
  return found == program.tensors.end() ? nullptr : &found->second;
}

bool IsFloat(const std::string& dtype) {
  return dtype.find("float") != std::string::npos;
}

bool IsDecidedByTensors(const Program& program, const std::vector<Argument>& arguments,
                        const Tensor& result) {
  if (!IsFloat(result.dtype)) return true;
  return std::ranges::any_of(arguments, [&](const Argument& argument) {
    return std::ranges::any_of(argument.values, [&](const std::string& value) {
      const Tensor* tensor = Find(program, value);
      return tensor != nullptr && IsFloat(tensor->dtype);
    });
  });
}

// By values, where the table names arguments. Nothing if a part is needed of a value that the
// adaptor knows nothing of.
std::optional<Slicing> OfValues(const Program& program, const Slicing& slicing,
                                const std::vector<Argument>& arguments) {
  Slicing of_values = slicing;
  of_values.needs.clear();
  std::map<std::string, Need> need_of;
  for (const Argument& argument : arguments) {
    const auto need =
        std::ranges::find(slicing.needs, argument.name, &std::pair<std::string, Need>::first);
    const Need wanted = need == slicing.needs.end() ? Need() : need->second;
    std::optional<std::int64_t> size;
    for (const std::string& value : argument.values) {
      const auto [known, is_new] = need_of.emplace(value, wanted);
      if (known->second != wanted) return std::nullopt;
      if (!is_new || wanted.dimension == Need::kWhole) continue;
      const Tensor* tensor = Find(program, value);
      if (tensor == nullptr) return std::nullopt;
      if (wanted.dimension >= static_cast<int>(tensor->shape.size())) return std::nullopt;
      if (size.value_or(tensor->shape[wanted.dimension]) != tensor->shape[wanted.dimension]) {
        return std::nullopt;
      }
      size = tensor->shape[wanted.dimension];
      of_values.needs.emplace_back(value, wanted);
    }
  }
  return of_values;
}

}  // namespace

void AddSlicings(Program& program, OpId op, const std::vector<Argument>& arguments,
                 std::map<std::string, CallConstant> constants) {
  Op& called = program.ops[op];
  if (called.outputs.size() != 1) return;
  const Tensor* result = Find(program, called.outputs[0]);
  if (result == nullptr || !IsDecidedByTensors(program, arguments, *result)) return;
  Call call{called.oper, {}, std::move(constants), result->shape};
  for (const Argument& argument : arguments) {
    if (argument.values.empty()) continue;
    const Tensor* first = Find(program, argument.values[0]);
    if (first != nullptr) call.shapes[argument.name] = first->shape;
  }
  called.multiplications = Multiplications(call);
  for (int d = 0; d < static_cast<int>(result->shape.size()); ++d) {
    const std::optional<Slicing> slicing = SlicingOf(call, d);
    called.slicings.push_back(slicing ? OfValues(program, *slicing, arguments) : std::nullopt);
  }
}

void SetThreads(Program& program, int threads) {
  std::int64_t elements = 32;
  for (std::int64_t share = 2; share <= threads; ++share) {
    elements = std::lcm(elements, 32 * share);
    if (elements > (std::int64_t{1} << 40)) break;  // no run is that long
  }
  program.run_elements = elements;
  program.threads = threads;
}

}  // namespace torch_ext::program
