#include "program/operators/work.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace torch_ext::program {
namespace {

using Shapes = std::map<std::string, std::vector<std::int64_t>>;

std::int64_t Count(const std::string& oper, const Shapes& shapes,
                   const std::vector<std::int64_t>& result) {
  return Multiplications({oper, shapes, {}, result});
}

TEST(Work, ALineOfWeightsForEachNumber) {
  EXPECT_EQ(Count("aten::_convolution", {{"input", {2, 3, 8, 8}}, {"weight", {5, 3, 2, 2}}},
                  {2, 5, 7, 7}),
            2 * 5 * 7 * 7 * (3 * 2 * 2));
  EXPECT_EQ(
      Count("aten::convolution", {{"input", {2, 6, 8, 8}}, {"weight", {6, 1, 3, 3}}}, {2, 6, 6, 6}),
      2 * 6 * 6 * 6 * (3 * 3));  // depthwise
  EXPECT_EQ(Count("aten::linear", {{"input", {4, 7}}, {"weight", {3, 7}}}, {4, 3}), 4 * 3 * 7);
  EXPECT_EQ(Count("aten::addmm", {{"mat1", {4, 7}}, {"mat2", {7, 3}}}, {4, 3}), 4 * 3 * 7);
  EXPECT_EQ(Count("aten::bmm", {{"self", {2, 4, 7}}, {"mat2", {2, 7, 3}}}, {2, 4, 3}),
            2 * 4 * 3 * 7);
}

TEST(Work, QueriesMeetKeysAndValues) {
  EXPECT_EQ(Count("aten::scaled_dot_product_attention",
                  {{"query", {2, 4, 7, 8}}, {"key", {2, 4, 9, 8}}, {"value", {2, 4, 9, 8}}},
                  {2, 4, 7, 8}),
            2 * (2 * 4 * 7 * 8 * 9));
}

TEST(Work, OthersAreNotCounted) {
  EXPECT_EQ(Count("aten::relu", {{"self", {4, 7}}}, {4, 7}), 0);
  EXPECT_EQ(Count("aten::linear", {}, {4, 3}), 0);
  EXPECT_EQ(Count("aten::linear", {{"weight", {0, 3}}}, {4, 0}), 0);
}

}  // namespace
}  // namespace torch_ext::program
