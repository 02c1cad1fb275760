#include "jit/fixed_numbers.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/ir/irparser.h>
#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

namespace torch_ext::jit {
namespace {

using torch::jit::Graph;

std::shared_ptr<Graph> Parsed(const std::string& text) {
  auto graph = std::make_shared<Graph>();
  torch::jit::parseIR(text, graph.get());
  return graph;
}

FixedNumbers Found(const std::shared_ptr<Graph>& graph) {
  return FindFixedNumbers(graph, {torch::ones({4, 6})});
}

std::vector<std::int64_t> Numbers(const FixedNumbers& found) {
  std::vector<std::int64_t> numbers;
  for (const auto& [place, constant] : found.constants) {
    if (constant.isInt()) numbers.push_back(constant.toInt());
  }
  return numbers;
}

TEST(FixedNumbers, SizesAndWhatIsComputedFromThem) {
  const std::shared_ptr<Graph> graph = Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %two : int = prim::Constant[value=2]()
  %y : Tensor = aten::relu(%x)
  %rows : int = aten::size(%y, %zero)
  %columns : int = aten::size(%y, %one)
  %tensor : Tensor = prim::NumToTensor(%rows)
  %half : Tensor = aten::floor_divide(%tensor, %two)
  %number : int = aten::Int(%half)
  %sizes : int[] = prim::ListConstruct(%number, %two, %columns)
  %z : Tensor = aten::view(%y, %sizes)
  return (%z))IR");
  const FixedNumbers found = Found(graph);
  EXPECT_EQ(Numbers(found), (std::vector<std::int64_t>{4, 6, 2}));
  EXPECT_EQ(found.sizes[0], (std::vector<std::int64_t>{4, 6}));
  FixNumbers(graph, found);
  EXPECT_EQ(graph->toString().find("aten::size"), std::string::npos);
  EXPECT_EQ(graph->toString().find("ListConstruct"), std::string::npos);
}

TEST(FixedNumbers, WhatDependsOnValuesIsNone) {
  const FixedNumbers found = Found(Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %where : Tensor = aten::nonzero(%x)
  %rows : int = aten::size(%where, %zero)
  return (%rows))IR"));
  EXPECT_TRUE(found.empty());
}

TEST(FixedNumbers, AnOverloadThatTellsPlacesIsNone) {
  const FixedNumbers found = Found(Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %places : Tensor[] = aten::where(%x)
  %rows : Tensor, %columns : Tensor = prim::ListUnpack(%places)
  %number : int = aten::size(%rows, %zero)
  return (%number))IR"));
  EXPECT_TRUE(found.empty());
}

TEST(FixedNumbers, WhatIsInAListThatGrowsIsNotKnown) {
  const FixedNumbers found = Found(Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %parts : Tensor[] = prim::ListConstruct(%x)
  %more : Tensor = aten::relu(%x)
  %longer : Tensor[] = aten::append(%parts, %more)
  %all : Tensor = aten::cat(%parts, %zero)
  %rows : int = aten::size(%all, %zero)
  %number : int = aten::len(%parts)
  return (%rows, %number))IR"));
  EXPECT_TRUE(found.empty());
}

TEST(FixedNumbers, SizesThatChangeInPlaceAreNone) {
  const FixedNumbers found = Found(Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %y : Tensor = aten::relu(%x)
  %z : Tensor = aten::unsqueeze_(%y, %zero)
  %rows : int = aten::size(%y, %zero)
  return (%rows))IR"));
  EXPECT_TRUE(found.empty());
}

TEST(FixedNumbers, NumbersThatChangeInPlaceAreNone) {
  const FixedNumbers found = Found(Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %rows : int = aten::size(%x, %zero)
  %tensor : Tensor = prim::NumToTensor(%rows)
  %more : Tensor = aten::add_(%tensor, %one, %one)
  %number : int = aten::Int(%tensor)
  return (%number))IR"));
  EXPECT_TRUE(found.empty());
}

TEST(FixedNumbers, AListThatGrowsStaysOne) {
  const std::shared_ptr<Graph> graph = Parsed(R"IR(
graph(%x : Tensor):
  %zero : int = prim::Constant[value=0]()
  %rows : int = aten::size(%x, %zero)
  %sizes : int[] = prim::ListConstruct(%rows)
  %longer : int[] = aten::append(%sizes, %rows)
  return (%sizes))IR");
  FixNumbers(graph, Found(graph));
  EXPECT_NE(graph->toString().find("ListConstruct"), std::string::npos);
}

}  // namespace
}  // namespace torch_ext::jit
