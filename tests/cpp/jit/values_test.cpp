#include "jit/values.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

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

// Makes a tensor of a rare kind from numbers.
using Make = std::function<at::Tensor(const at::Tensor&)>;

std::vector<std::pair<std::string, Make>> RareKinds() {
  const auto of_type = [](at::ScalarType dtype) {
    return [=](const at::Tensor& x) { return x.to(dtype); };
  };
  const auto of_bytes = [](at::ScalarType dtype) {
    return [=](const at::Tensor& x) { return x.to(at::kByte).view(dtype); };
  };
  const auto quantized = [](at::ScalarType dtype) {
    return [=](const at::Tensor& x) { return at::quantize_per_tensor(x, 1, 0, dtype); };
  };
  return {
      {"float8", of_type(at::kFloat8_e4m3fn)},
      {"uint16", of_type(at::kUInt16)},
      {"bits", of_bytes(at::kBits8)},
      {"int4", of_bytes(at::kInt4)},
      {"float4", of_bytes(at::kFloat4_e2m1fn_x2)},
      {"int4, transposed", [=](const at::Tensor& x) { return of_bytes(at::kInt4)(x).t(); }},
      {"int4, a slice", [=](const at::Tensor& x) { return of_bytes(at::kInt4)(x).slice(1, 1); }},
      {"complex", of_type(at::kComplexDouble)},
      {"conjugate", [](const at::Tensor& x) { return x.to(at::kComplexFloat).conj(); }},
      {"negative", [](const at::Tensor& x) { return x.to(at::kFloat8_e5m2)._neg_view(); }},
      {"quint8", quantized(at::kQUInt8)},
      {"quint4x2", quantized(at::kQUInt4x2)},
      {"bytes as quint8", of_bytes(at::kQUInt8)},
      {"by rows",
       [](const at::Tensor& x) {
         const at::Tensor scales = at::ones({2}, at::kDouble), zeros = at::zeros({2}, at::kLong);
         return at::quantize_per_channel(x, scales, zeros, 0, at::kQInt8);
       }},
      {"sparse", [](const at::Tensor& x) { return x.to_sparse(); }},
      {"rows", [](const at::Tensor& x) { return x.to_sparse_csr(); }},
      {"columns", [](const at::Tensor& x) { return x.to_sparse_csc(); }},
      {"blocks", [](const at::Tensor& x) { return x.to_sparse_bsr({1, 2}); }},
      {"opaque", [](const at::Tensor& x) { return x.to_mkldnn(); }},
      {"nested",
       [](const at::Tensor& x) { return at::_nested_tensor_from_tensor_list({x, x.slice(0, 1)}); }},
  };
}

TEST(RareKinds, AreCopiedAndComparedByTheirBits) {
  const at::Tensor x = torch::tensor({{1.0F, 0.0F, 2.0F, 3.0F}, {0.0F, 4.0F, 5.0F, 6.0F}});
  const at::Tensor y = torch::tensor({{1.0F, 0.0F, 2.0F, 3.0F}, {0.0F, 4.0F, 5.0F, 7.0F}});
  for (const auto& [kind, make] : RareKinds()) {
    const at::Tensor made = make(x);
    const c10::IValue copy = ValueCopier().Copy(made);
    EXPECT_EQ(Difference(made, copy), "") << kind;
    EXPECT_EQ(Difference(make(x), copy), "") << kind;
    EXPECT_NE(Difference(make(y), copy), "") << kind;
    EXPECT_NE(Difference(x, copy), "") << kind;
    EXPECT_FALSE(made.has_storage() && made.storage().is_alias_of(copy.toTensor().storage()))
        << kind;
  }
}

TEST(ValueCopier, ViewsOfAQuantizedTensorBecomeViewsOfOneCopy) {
  const at::Tensor x = at::quantize_per_tensor(torch::arange(6, torch::kFloat), 1, 0, at::kQUInt8);
  ValueCopier copier;
  const at::Tensor a = copier.Copy(x).toTensor();
  const at::Tensor b = copier.Copy(x.view({2, 3})).toTensor();
  EXPECT_EQ(a.data_ptr(), b.data_ptr());
  EXPECT_NE(a.data_ptr(), x.data_ptr());
  EXPECT_EQ(b.q_scale(), 1);
}

TEST(ValueCopier, AModuleIsCopiedWithItsTensorsOfAnyType) {
  torch::jit::Module module("module");
  const at::Tensor bytes = torch::arange(6, torch::kByte);
  module.register_buffer("small", bytes.view(at::kInt4));
  module.register_buffer("same", bytes.view({2, 3}));
  const torch::jit::Module copy(ValueCopier().Copy(module._ivalue()).toObject());
  EXPECT_EQ(Difference(module._ivalue(), copy._ivalue()), "");
  EXPECT_EQ(copy.attr("small").toTensor().data_ptr(), copy.attr("same").toTensor().data_ptr());
  EXPECT_NE(copy.attr("small").toTensor().data_ptr(), bytes.data_ptr());
}

TEST(ValueComparer, TellsQuantizersApart) {
  const at::Tensor x = torch::zeros({2, 3});
  const auto by_rows = [&](const std::vector<double>& scales, std::int64_t axis) {
    const auto channels = static_cast<std::int64_t>(scales.size());
    return at::quantize_per_channel(x, torch::tensor(scales, at::kDouble),
                                    at::zeros({channels}, at::kLong), axis, at::kQUInt8);
  };
  const at::Tensor quantized = at::quantize_per_tensor(x, 1, 0, at::kQUInt8);
  EXPECT_NE(Difference(quantized, at::quantize_per_tensor(x, 2, 0, at::kQUInt8)), "");
  EXPECT_NE(Difference(quantized, by_rows({1, 1}, 0)), "");
  EXPECT_NE(Difference(by_rows({1, 1}, 0), by_rows({1, 2}, 0)), "");
  EXPECT_NE(Difference(by_rows({1, 1}, 0), by_rows({1, 1, 1}, 1)), "");
  // Zero as 0, and as 3 where 3 stands for zero.
  const at::Tensor shifted = at::quantize_per_tensor(x + 3, 1, 0, at::kQUInt8);
  EXPECT_NE(Difference(shifted, at::quantize_per_tensor(x, 1, 3, at::kQUInt8)), "");
}

TEST(ValueComparer, WhatCannotBeComparedIsADifference) {
  const at::Tensor no_quantizer = at::empty({0}, at::kQUInt8);
  EXPECT_EQ(Difference(no_quantizer, no_quantizer), "output: what it holds cannot be compared");
}

TEST(ValueComparer, NanOfASmallTypeEqualsNanButMinusZeroIsNotZero) {
  const auto float8 = [](std::vector<std::uint8_t> bits) {
    return torch::tensor(at::ArrayRef<std::uint8_t>(bits), at::kByte).view(at::kFloat8_e5m2);
  };
  EXPECT_EQ(Difference(float8({0x7E, 0x3C}), float8({0x7F, 0x3C})), "");
  EXPECT_NE(Difference(float8({0x7E, 0x3C}), float8({0x7F, 0x3D})), "");
  EXPECT_NE(Difference(float8({0x00}), float8({0x80})), "");
}

TEST(ValueComparer, NanIsLookedForInEachPartOfAComplexNumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto complex = [](double real, double imaginary) {
    return at::complex(torch::tensor({real, 0.0}), torch::tensor({imaginary, 0.0}));
  };
  EXPECT_EQ(Difference(complex(nan, 1), complex(-nan, 1)), "");
  EXPECT_NE(Difference(complex(nan, 1), complex(nan, 2)), "");
  EXPECT_NE(Difference(complex(1, 0), complex(1, 0).conj()), "");
}

TEST(ValueComparer, TellsWhetherASparseTensorIsCoalesced) {
  const at::Tensor x = torch::eye(2).to_sparse();
  EXPECT_NE(Difference(x, at::sparse_coo_tensor(x.indices(), x.values(), {2, 2})), "");
}

}  // namespace
}  // namespace torch_ext::jit
