#include "jit/nodes.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "jit/prepare.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

TEST(ReadValues, FindsWhatOnlyABlockInsideOfABlockReturns) {
  const torch::jit::Module module = Define(R"(
    def forward(self, x, outer: bool, inner: bool):
        y = torch.relu(x)
        z = torch.sin(x)
        if outer:
            z = z + 1
            if inner:
                z = y
        return z
    )");
  std::shared_ptr<torch::jit::Graph> graph = ForwardGraph(module);
  PrepareGraph(graph);
  torch::jit::Node* relu = nullptr;
  torch::jit::Node* choice = nullptr;
  for (torch::jit::Node* node : OpNodes(graph->block())) {
    if (node->kind() == c10::aten::relu) relu = node;
    if (node->kind() == c10::prim::If) choice = node;
  }
  ASSERT_TRUE(relu != nullptr && choice != nullptr);
  EXPECT_EQ(std::ranges::count(ReadValues(choice), relu->output()), 1);
}

}  // namespace
}  // namespace torch_ext::jit
