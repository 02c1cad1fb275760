// The table of what operators do: each rule, and all operators of torch at once.
#include "jit/operator_effects.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/library.h>

#include "jit/effects.h"

namespace torch_ext::jit {
namespace {

using Positions = std::vector<std::size_t>;

at::Tensor Same(const at::Tensor& x) {
  return x;
}

TORCH_LIBRARY(torch_ext_table_test, m) {
  m.def("unmarked(Tensor x) -> Tensor", Same);
  m.def("marked(Tensor(a!) x) -> Tensor(a!)");
  m.def("lucky(Tensor x, Generator? source=None) -> Tensor");
}

TEST(OperatorEffects, WhatTheSchemaMarksIsWritten) {
  EXPECT_EQ(EffectsOf("aten::add_", "Tensor", {}).writes, Positions{0});
  EXPECT_EQ(EffectsOf("aten::sin", "out", {}).writes, Positions{1});
  EXPECT_EQ(EffectsOf("aten::_foreach_add_", "Scalar", {}).writes, Positions{0});
  EXPECT_TRUE(EffectsOf("aten::add", "Tensor", {}).writes.empty());
  EXPECT_TRUE(EffectsOf("aten::view", "", {}).writes.empty());
}

TEST(OperatorEffects, RunningStatisticsAreWrittenInTraining) {
  for (const auto& [name, flag] : {std::pair{"aten::native_batch_norm", "training"},
                                   std::pair{"aten::instance_norm", "use_input_stats"},
                                   std::pair{"aten::cudnn_batch_norm", "training"}}) {
    SCOPED_TRACE(name);
    EXPECT_EQ(EffectsOf(name, "", {{flag, true}}).statistics, (Positions{3, 4}));
    EXPECT_EQ(EffectsOf(name, "", {}).statistics, (Positions{3, 4}));
    EXPECT_TRUE(EffectsOf(name, "", {{flag, false}}).statistics.empty());
  }
  EXPECT_TRUE(EffectsOf("aten::native_layer_norm", "", {}).statistics.empty());
  EXPECT_TRUE(EffectsOf("aten::native_batch_norm_backward", "", {}).statistics.empty());
  EXPECT_TRUE(EffectsOf("aten::_native_batch_norm_legit_functional", "", {}).statistics.empty());
}

TEST(OperatorEffects, RandomOpsDraw) {
  EXPECT_TRUE(EffectsOf("aten::rand_like", "", {}).draws_random_numbers);
  EXPECT_TRUE(EffectsOf("aten::normal_", "", {}).draws_random_numbers);
  EXPECT_TRUE(EffectsOf("torch_ext_table_test::lucky", "", {}).draws_random_numbers);
  EXPECT_FALSE(EffectsOf("aten::add", "Tensor", {}).draws_random_numbers);
}

TEST(OperatorEffects, OutOfTrainingNothingIsDrawn) {
  EXPECT_TRUE(EffectsOf("aten::dropout", "", {{"p", 0.5}}).draws_random_numbers);
  EXPECT_TRUE(EffectsOf("aten::dropout", "", {{"train", true}}).draws_random_numbers);
  EXPECT_FALSE(EffectsOf("aten::dropout", "", {{"train", false}}).draws_random_numbers);
  EXPECT_FALSE(EffectsOf("aten::rrelu", "", {{"training", false}}).draws_random_numbers);
  const std::string attention = "aten::scaled_dot_product_attention";
  EXPECT_TRUE(EffectsOf(attention, "", {{"dropout_p", 0.5}}).draws_random_numbers);
  EXPECT_FALSE(EffectsOf(attention, "", {{"dropout_p", 0.0}}).draws_random_numbers);
}

TEST(OperatorEffects, ACustomOpIsKnownByItsAliasAnnotation) {
  EXPECT_NE(EffectsOf("torch_ext_table_test::unmarked", "", {}).undeclared, "");
  EXPECT_EQ(EffectsOf("torch_ext_table_test::marked", "", {}).undeclared, "");
  EXPECT_EQ(EffectsOf("aten::sin", "", {}).undeclared, "");
  EXPECT_EQ(EffectsOf("aten::is_grad_enabled", "", {}).undeclared, "");
}

TEST(OperatorEffects, ABackwardPassWritesToWhatItIsNotGiven) {
  EXPECT_NE(EffectsOf("aten::_backward", "", {}).undeclared, "");
  EXPECT_NE(EffectsOf("aten::backward", "", {}).undeclared, "");
}

TEST(OperatorEffects, WhatOtherOpsRunInIsState) {
  EXPECT_TRUE(EffectsOf("aten::set_grad_enabled", "", {}).is_stateful);
  EXPECT_TRUE(EffectsOf("aten::manual_seed", "", {}).is_stateful);
  EXPECT_TRUE(EffectsOf("aten::wait", "", {}).is_stateful);
  EXPECT_FALSE(EffectsOf("aten::sin", "", {}).is_stateful);
}

TEST(OperatorEffects, AssertionsAndPrintsAreSideEffects) {
  for (const auto& [name, overload] :
       {std::pair{"aten::_assert_async", ""}, std::pair{"aten::_assert_async", "msg"},
        std::pair{"aten::_assert_scalar", ""}, std::pair{"aten::_assert_tensor_metadata", ""},
        std::pair{"aten::_functional_assert_async", "msg"},
        std::pair{"aten::_functional_assert_scalar", ""},
        std::pair{"aten::sym_constrain_range", ""},
        std::pair{"aten::sym_constrain_range_for_size", ""},
        std::pair{"aten::_functional_sym_constrain_range", ""},
        std::pair{"aten::_functional_sym_constrain_range_for_size", ""},
        std::pair{"aten::_linalg_check_errors", ""}, std::pair{"aten::_print", ""}}) {
    EXPECT_TRUE(EffectsOf(name, overload, {}).has_side_effect) << name << '.' << overload;
  }
  EXPECT_TRUE(EffectsOf("aten::warn", "", {}).has_side_effect);
  EXPECT_FALSE(EffectsOf("aten::add_", "Tensor", {}).has_side_effect);
  EXPECT_FALSE(EffectsOf("aten::_foreach_add_", "Scalar", {}).has_side_effect);  // returns nothing
  EXPECT_FALSE(EffectsOf("aten::rand", "", {}).has_side_effect);
}

TEST(OperatorEffects, MetadataIsChangedInPlace) {
  for (const auto& [name, overload] :
       {std::pair{"aten::t_", ""}, std::pair{"aten::resize_", ""},
        std::pair{"aten::set_", "source_Tensor"}, std::pair{"aten::set_data", ""}}) {
    EXPECT_TRUE(EffectsOf(name, overload, {}).changes_metadata) << name;
  }
  EXPECT_FALSE(EffectsOf("aten::add_", "Tensor", {}).changes_metadata);
  EXPECT_FALSE(EffectsOf("aten::t", "", {}).changes_metadata);
}

TEST(OperatorEffects, CollectivesMeetOtherProcesses) {
  EXPECT_TRUE(EffectsOf("_c10d_functional::all_reduce_", "", {}).is_collective);
  EXPECT_TRUE(EffectsOf("c10d::allreduce_", "", {}).is_collective);
  EXPECT_FALSE(EffectsOf("aten::sum", "", {}).is_collective);
}

TEST(OperatorEffects, AnUnknownOperatorIsAnError) {
  EXPECT_ANY_THROW(EffectsOf("aten::no_such_operator", "", {}));
}

// A node that calls the operator with arguments of which nothing is known. Null if TorchScript
// takes another overload for these types.
torch::jit::Node* NodeOf(const c10::FunctionSchema& schema, torch::jit::Graph& graph) {
  torch::jit::Node* node =
      graph.create(c10::Symbol::fromQualString(schema.name()), schema.returns().size());
  graph.insertNode(node);
  for (const c10::Argument& argument : schema.arguments()) {
    node->addInput(graph.addInput()->setType(argument.type()));
  }
  const c10::FunctionSchema* taken = node->maybeSchema();
  const bool is_same = taken != nullptr && taken->operator_name() == schema.operator_name();
  return is_same ? node : nullptr;
}

TEST(OperatorEffects, NodesOfTorchScriptDoAtLeastWhatTheTableSays) {
  std::size_t compared = 0;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op) continue;
    const auto graph = std::make_shared<torch::jit::Graph>();
    torch::jit::Node* node = NodeOf(op->schema(), *graph);
    if (node == nullptr) continue;
    SCOPED_TRACE(toString(name));
    ++compared;
    const OperatorEffects expected = EffectsOf(op->schema(), {});
    const OperatorEffects actual = EffectsOf(node);
    EXPECT_EQ(actual.writes, expected.writes);
    EXPECT_EQ(actual.writes.empty(), !op->schema().is_mutable());
    EXPECT_EQ(actual.statistics, expected.statistics);
    EXPECT_EQ(actual.undeclared, expected.undeclared);
    EXPECT_EQ(actual.draws_random_numbers, expected.draws_random_numbers);
    EXPECT_EQ(actual.is_stateful, expected.is_stateful);
    EXPECT_EQ(actual.is_collective, expected.is_collective);
    EXPECT_GE(actual.has_side_effect, expected.has_side_effect);
  }
  EXPECT_GT(compared, 2500U);
}

}  // namespace
}  // namespace torch_ext::jit
