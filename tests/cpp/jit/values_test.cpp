#include "jit/values.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

namespace torch_ext::jit {
namespace {

std::string Difference(const c10::IValue& a, const c10::IValue& b) {
  return ValueComparer().Difference(a, b, "output");
}

TEST(ValueCopier, ViewsOfOneStorageBecomeViewsOfOneCopy) {
  const at::Tensor x = torch::arange(6, torch::kFloat);
  const at::Tensor transposed = x.view({2, 3}).t();
  ValueCopier copier;
  const at::Tensor a = copier.Copy(x).toTensor();
  const at::Tensor b = copier.Copy(transposed).toTensor();
  EXPECT_EQ(a.data_ptr(), b.data_ptr());
  EXPECT_NE(a.data_ptr(), x.data_ptr());
  EXPECT_EQ(b.strides(), transposed.strides());
  EXPECT_TRUE(b.equal(transposed));
}

TEST(ValueCopier, ContainersAreCopiedThroughAndThrough) {
  const at::Tensor x = torch::ones({2});
  c10::Dict<std::string, at::Tensor> dict;
  dict.insert("x", x);
  const c10::IValue value =
      c10::ivalue::Tuple::create({c10::List<at::Tensor>({x, x + 1}), dict, 3, "text"});
  const c10::IValue copy = ValueCopier().Copy(value);
  EXPECT_EQ(Difference(value, copy), "");
  x.add_(1);
  EXPECT_EQ(Difference(value, copy), "output[0][0]: values differ");
}

TEST(ValueComparer, NanEqualsNanButMinusZeroIsNotZero) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(Difference(torch::tensor({nan, 1.0}), torch::tensor({-nan, 1.0})), "");
  EXPECT_NE(Difference(torch::tensor({0.0}), torch::tensor({-0.0})), "");
  EXPECT_EQ(Difference(nan, nan), "");
  EXPECT_NE(Difference(0.0, -0.0), "");
}

TEST(ValueComparer, TellsDtypesShapesAndLayoutsApart) {
  EXPECT_NE(Difference(torch::ones({2}), torch::ones({2}, torch::kDouble)), "");
  EXPECT_NE(Difference(torch::ones({2}), torch::ones({1, 2})), "");
  EXPECT_NE(Difference(torch::ones({2, 2}), torch::ones({2, 2}).t()), "");
  EXPECT_NE(Difference(1, true), "");
  EXPECT_NE(Difference(torch::ones({2}), c10::IValue()), "");
}

TEST(ValueComparer, TellsWhatSharesMemory) {
  const at::Tensor x = torch::ones({2}), y = torch::ones({2});
  const auto pair = [](const at::Tensor& a, const at::Tensor& b) {
    return c10::ivalue::Tuple::create({a, b});
  };
  EXPECT_EQ(Difference(pair(x, x), pair(y, y)), "");
  EXPECT_EQ(Difference(pair(x, x), pair(x, y)),
            "output[1]: shares memory with something else than before");
}

}  // namespace
}  // namespace torch_ext::jit
