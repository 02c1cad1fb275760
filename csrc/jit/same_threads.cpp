#include "jit/same_threads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "jit/builder.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Node;
using torch::jit::Value;

constexpr std::int64_t kNumbers = 512;

// Each number and its negative, in an order at random.
at::Tensor NumbersThatCancelOut(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto uniform = [&] { return static_cast<double>(random()) / 4294967296.0; };
  std::vector<float> numbers;
  while (static_cast<std::int64_t>(numbers.size()) < kNumbers) {
    const auto number = static_cast<float>((uniform() - 0.5) * std::exp(6 * uniform()));
    numbers.push_back(number);
    numbers.push_back(-number);
  }
  for (std::size_t i = numbers.size(); i > 1; --i) {
    std::swap(numbers[i - 1], numbers[random() % i]);
  }
  return at::tensor(numbers);
}

bool IsPrime(std::int64_t number) {
  for (std::int64_t d = 2; d * d <= number; ++d) {
    if (number % d == 0) return false;
  }
  return true;
}

// Enough for twice the threads, and one more, to have a share. A prime: equal shares of periodic
// numbers would have equal sums.
std::int64_t RowsForThreads() {
  std::int64_t rows = 2 * at::get_num_threads() * at::internal::GRAIN_SIZE / kNumbers + 1;
  while (!IsPrime(rows)) ++rows;
  return rows;
}

}  // namespace

Value* AskForThreads(Node* node) {
  const torch::jit::WithInsertPoint before(node);
  Builder build(*node->owningGraph());
  const std::int64_t rows = RowsForThreads();
  Value* none = build.Constant({});
  // Not a constant, or the executor would ask once and for all.
  Value* zero = build.Number(
      "aten::mul",
      {build.Number("aten::Int", {build.Ask("aten::is_grad_enabled", {})}), build.Constant(0)});
  Value* size = build.Numbers(
      "prim::ListConstruct",
      {build.Number("aten::add", {build.Constant(rows), zero}), build.Constant(kNumbers)});
  std::vector<Value*> are_equal;
  for (const std::uint32_t seed : {1U, 2U}) {
    const at::Tensor numbers = NumbersThatCancelOut(seed);
    const double expected = numbers.expand({rows, kNumbers}).sum().item<double>();
    Value* repeated =
        build.Tensor("aten::expand", {build.Constant(numbers), size, build.Constant(false)});
    Value* sum = build.Call("aten::Float", {build.Tensor("aten::sum", {repeated, none})},
                            c10::FloatType::get());
    are_equal.push_back(build.Equal(sum, build.Constant(expected)));
  }
  return build.All(are_equal);
}

}  // namespace torch_ext::jit
