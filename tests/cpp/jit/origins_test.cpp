// Origins against torch's AliasDb, for all pairs of values: never fewer pairs that may share.
#include "jit/origins.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "jit/effects.h"
#include "jit/interference.h"
#include "jit/nodes.h"
#include "jit/prepare.h"
#include "support/modules.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Node;
using torch::jit::Value;

struct Subject {
  explicit Subject(const std::string& source) : module(Define(source)) {
    graph = ForwardGraph(module);
    PrepareGraph(graph);
    nodes = OpNodes(graph->block());
    alias_db.emplace(graph);
    origins.emplace(*alias_db, nodes, FindInterference(*alias_db, nodes, {}).effects);
  }

  Value* Result(const std::string& oper) const {
    for (Node* node : nodes) {
      if (node->kind().toQualString() == oper) return node->output(0);
    }
    throw std::invalid_argument(oper);
  }

  torch::jit::Module module;
  std::shared_ptr<torch::jit::Graph> graph;
  std::vector<Node*> nodes;
  std::optional<torch::jit::AliasDb> alias_db;
  std::optional<Origins> origins;
};

const char* const kPrograms[] = {
    R"(
    def forward(self, x):
        y = x.mul(2)
        a, b = y.chunk(2)
        z = a.t().contiguous()
        return torch.relu(z) + b
    )",
    R"(
    def forward(self, x):
        y = x.mul(2)
        parts = [y, x.add(1)]
        first = parts[0]
        parts.append(first.view(-1))
        return torch.cat(parts)
    )",
    R"(
    def forward(self, x):
        y = x.mul(2)
        z = y
        for i in range(3):
            z = z.view(-1)
            y = torch.relu(z)
        if bool(y.sum() > 0):
            w = y
        else:
            w = z.add(1)
        return w.mul_(2)
    )",
    R"(
    def forward(self, x):
        y = torch.dropout(x.mul(2), 0.5, False)
        named = {"y": y, "z": y.expand_as(x)}
        pair = (y, named["z"])
        return pair[0].add_(1) + named["y"].reshape(-1).sum()
    )",
};

TEST(Origins, NoPairThatTorchSeesIsMissed) {
  int shared = 0, apart = 0;
  for (const char* source : kPrograms) {
    const Subject subject(source);
    std::vector<Value*> values;
    for (Node* node : subject.nodes) {
      for (Value* output : node->outputs()) {
        if (IsMutable(output)) values.push_back(output);
      }
    }
    for (Value* a : values) {
      for (Value* b : values) {
        const bool may_share = subject.origins->MayShare(a, b);
        const bool are_held_elsewhere = !subject.origins->IsOurs(a) && !subject.origins->IsOurs(b);
        if (subject.alias_db->mayContainAlias(a, b)) {
          ASSERT_TRUE(may_share || are_held_elsewhere)
              << *subject.graph << a->debugName() << " " << b->debugName();
        }
        (may_share ? shared : apart) += 1;
      }
    }
  }
  EXPECT_GT(shared, 50);
  EXPECT_GT(apart, 50);
}

TEST(Origins, AViewHasThoseOfWhatItIsOf) {
  const Subject subject(kPrograms[0]);
  const Origins& origins = *subject.origins;
  EXPECT_TRUE(origins.MayShare(subject.Result("aten::contiguous"), subject.Result("aten::mul")));
  EXPECT_FALSE(origins.MayShare(subject.Result("aten::relu"), subject.Result("aten::mul")));
  EXPECT_TRUE(origins.IsOurs(subject.Result("aten::contiguous")));
  EXPECT_TRUE(origins.IsWhole(subject.Result("aten::relu")));
  EXPECT_FALSE(origins.IsWhole(subject.Result("aten::t")));   // of a part
  EXPECT_FALSE(origins.IsOurs(subject.Result("aten::add")));  // the result
  EXPECT_FALSE(origins.IsOurs(subject.graph->inputs()[1]));
}

// What an If makes of y, by the lines of its blocks.
Subject Choice(const std::string& then, const std::string& otherwise) {
  return Subject(R"(
    def forward(self, x):
        y = x.mul(2)
        if bool(y.sum() > 0):
            )" + then +
                 R"(
        else:
            )" + otherwise +
                 R"(
        return a.sum() + b.sum() + y.sum()
    )");
}

TEST(Origins, AnIfThatMakesNewMemoryHoldsNoOther) {
  const Subject both = Choice("a, b = y.relu(), y.add(1).add_(2)", "a, b = y.neg(), y.exp()");
  const Node* choice = both.Result("prim::If")->node();
  ASSERT_EQ(choice->outputs().size(), 2);
  for (const Value* output : choice->outputs()) {
    EXPECT_TRUE(both.origins->IsOurs(output) && both.origins->IsWhole(output));
    EXPECT_TRUE(both.origins->IsNew(output));
    EXPECT_FALSE(both.origins->MayShare(output, both.Result("aten::mul")));
  }
  EXPECT_FALSE(both.origins->MayShare(choice->output(0), choice->output(1)));
  for (const char* other :
       {"a, b = y, y.exp()", "a, b = y.relu(), y.view(-1)", "a, b = y.relu(), y.add_(2)"}) {
    const Subject subject = Choice("a, b = y.relu(), y.add(1)", other);
    const Node* node = subject.Result("prim::If")->node();
    EXPECT_FALSE(subject.origins->IsNew(node->output(0))) << other;
    EXPECT_TRUE(subject.origins->MayShare(node->output(1), subject.Result("aten::mul"))) << other;
  }
  for (const char* other : {"a = y.exp()\n            b = a", "a = y.exp()\n            b = a.t()",
                            "a = y.exp()\n            b = a.add_(1)"}) {
    const Subject subject = Choice("a, b = y.relu(), y.add(1)", other);
    const Node* node = subject.Result("prim::If")->node();
    if (node->outputs().size() < 2) continue;
    EXPECT_TRUE(subject.origins->MayShare(node->output(0), node->output(1))) << other;
  }
}

TEST(Origins, WhatIsPutIntoAContainerIsNotOurs) {
  const Subject subject(kPrograms[1]);
  EXPECT_FALSE(subject.origins->IsOurs(subject.Result("aten::mul")));
}

TEST(Origins, TouchersAreThoseOfViewsToo) {
  const Subject subject(kPrograms[0]);
  std::vector<std::string> kinds;
  for (const program::OpId op : subject.origins->Touchers(subject.Result("aten::mul"))) {
    kinds.emplace_back(subject.nodes[op]->kind().toQualString());
  }
  const std::vector<std::string> expected{"aten::mul", "aten::chunk",      "prim::ListUnpack",
                                          "aten::t",   "aten::contiguous", "aten::relu",
                                          "aten::add"};
  EXPECT_EQ(kinds, expected);
}

}  // namespace
}  // namespace torch_ext::jit
