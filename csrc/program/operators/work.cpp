#include "program/operators/work.h"

#include <functional>
#include <string>
#include <unordered_map>

namespace torch_ext::program {
namespace {

// Each number of the result is a sum over a line of weights.
std::int64_t OfWeights(const Call& call) {
  const auto weight = call.shapes.find("weight");
  if (weight == call.shapes.end() || weight->second.empty() || weight->second[0] == 0) return 0;
  return NumElements(call.result) * (NumElements(weight->second) / weight->second[0]);
}

// Or over a line of that argument.
auto OfLines(const char* argument) {
  return [argument](const Call& call) -> std::int64_t {
    const auto left = call.shapes.find(argument);
    if (left == call.shapes.end() || left->second.empty()) return 0;
    return NumElements(call.result) * left->second.back();
  };
}

// Each query with each key, and again with each value.
std::int64_t OfAttention(const Call& call) {
  const auto query = call.shapes.find("query"), key = call.shapes.find("key");
  if (query == call.shapes.end() || key == call.shapes.end()) return 0;
  if (key->second.size() < 2) return 0;
  return 2 * NumElements(query->second) * key->second[key->second.size() - 2];
}

using Count = std::function<std::int64_t(const Call&)>;

const std::unordered_map<std::string, Count>& Counts() {
  static const std::unordered_map<std::string, Count> kCounts = {
      {"aten::conv1d", OfWeights},
      {"aten::conv2d", OfWeights},
      {"aten::convolution", OfWeights},
      {"aten::_convolution", OfWeights},
      {"aten::linear", OfWeights},
      {"aten::addmm", OfLines("mat1")},
      {"aten::mm", OfLines("self")},
      {"aten::bmm", OfLines("self")},
      {"aten::matmul", OfLines("self")},
      {"aten::scaled_dot_product_attention", OfAttention},
      {"aten::_native_multi_head_attention", OfAttention},
  };
  return kCounts;
}

}  // namespace

std::int64_t Multiplications(const Call& call) {
  const auto count = Counts().find(call.oper);
  return count == Counts().end() ? 0 : count->second(call);
}

}  // namespace torch_ext::program
