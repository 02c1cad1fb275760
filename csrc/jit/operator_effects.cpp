#include "jit/operator_effects.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/enum_tag.h>
#include <torch/csrc/jit/runtime/operator.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

namespace torch_ext::jit {
namespace {

using c10::Argument;
using c10::FunctionSchema;

// --- what neither schemas nor tags tell
// -----------------------------------------------------------

// They write to what they are not given: gradients, or to what their schema does not mark.
constexpr auto kUndeclared = std::to_array<std::string_view>(
    {"aten::backward", "aten::_backward", "aten::dist_backward", "aten::_propagate_xla_data"});

constexpr auto kStateful =
    std::to_array<std::string_view>({"aten::wait", "aten::set_grad_enabled", "aten::manual_seed"});

// They raise if their condition does not hold, and return something to keep them alive. What
// returns nothing and writes nothing needs no list.
constexpr auto kChecks = std::to_array<std::string_view>(
    {"aten::_functional_assert_async", "aten::_functional_assert_scalar",
     "aten::_functional_sym_constrain_range", "aten::_functional_sym_constrain_range_for_size"});

// Without the tag inplace_view.
constexpr auto kChangeMetadata = std::to_array<std::string_view>(
    {"aten::set_data", "aten::_resize_output_", "aten::resize_as_sparse_", "aten::sparse_resize_",
     "aten::sparse_resize_and_clear_", "prims::resize"});

// Arguments by which an op says that it is not training, and does neither draw nor update.
constexpr auto kRandomFlags = std::to_array<std::string_view>({"train", "training"});
constexpr auto kStatisticFlags =
    std::to_array<std::string_view>({"train", "training", "use_input_stats"});
constexpr auto kStatistics = std::to_array<std::string_view>({"running_mean", "running_var"});

// Composite ops that make something new whatever they are given. Those that follow a convolution
// or a norm by an in-place op are common, and must not tie the whole network together.
constexpr auto kMakeNew = std::to_array<std::string_view>({
    "aten::conv1d",
    "aten::conv2d",
    "aten::conv3d",
    "aten::conv_transpose1d",
    "aten::conv_transpose2d",
    "aten::conv_transpose3d",
    "aten::_convolution",
    "aten::_convolution_mode",
    "aten::linear",
    "aten::matmul",
    "aten::bilinear",
    "aten::prelu",
    "aten::batch_norm",
    "aten::instance_norm",
    "aten::layer_norm",
    "aten::group_norm",
    "aten::rms_norm",
    "aten::max_pool1d",
    "aten::max_pool2d",
    "aten::max_pool3d",
    "aten::avg_pool1d",
    "aten::adaptive_avg_pool1d",
    "aten::adaptive_avg_pool2d",
    "aten::adaptive_avg_pool3d",
    "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d",
    "aten::upsample_bicubic2d",
    "aten::softmax",
    "aten::log_softmax",
    "aten::relu6",
    "aten::selu",
    "aten::scaled_dot_product_attention",
    "aten::pad",
    "aten::square",
});
// Not composite, and yet they do not declare whose memory is shared afterwards.
constexpr auto kUnsafe = std::to_array<std::string_view>(
    {"aten::_unsafe_view", "aten::unsafe_split", "aten::unsafe_split_with_sizes", "aten::set",
     "aten::set_", "aten::set_data", "aten::dequantize", "aten::lift", "aten::_pack_sequence",
     "aten::_no_grad_embedding_renorm_", "aten::_nested_compute_contiguous_strides_offsets"});

// --------------------------------------------------------------------------------------------------

template <std::size_t N>
bool IsOneOf(std::string_view name, const std::array<std::string_view, N>& names) {
  return std::ranges::find(names, name) != names.end();
}

std::string_view NamespaceOf(const FunctionSchema& schema) {
  return std::string_view(schema.name()).substr(0, schema.name().find("::"));
}

bool Writes(const Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

bool HasAliasAnnotation(const FunctionSchema& schema) {
  return std::ranges::any_of(schema.arguments(),
                             [](const Argument& a) { return a.alias_info() != nullptr; });
}

template <std::size_t N>
bool IsAnyFalse(const Constants& constants, const std::array<std::string_view, N>& names) {
  return std::ranges::any_of(constants, [&](const auto& constant) {
    const bool* value = std::get_if<bool>(&constant.second);
    return value != nullptr && !*value && IsOneOf(constant.first, names);
  });
}

bool IsZero(const Constants& constants, const std::string& name) {
  const auto found = constants.find(name);
  return found != constants.end() && found->second == Constants::mapped_type(0.0);
}

std::string WhyUndeclared(const FunctionSchema& schema) {
  static constexpr auto kTorch = std::to_array<std::string_view>({"aten", "prim", "prims"});
  if (!IsOneOf(NamespaceOf(schema), kTorch) && !HasAliasAnnotation(schema)) {
    return "a custom op without alias annotation";
  }
  if (schema.name() == "aten::is_grad_enabled") return {};  // a number, and it declares nothing
  // INTERNAL_SPECIAL_CASE, as prim::PythonOp: only AliasDb's code knows what it is taken for.
  const c10::AliasAnalysisKind declares = schema.aliasAnalysis();
  return declares == c10::AliasAnalysisKind::CONSERVATIVE ||
                 declares == c10::AliasAnalysisKind::INTERNAL_SPECIAL_CASE ||
                 IsOneOf(schema.name(), kUndeclared)
             ? "declares nothing about what it writes"
             : "";
}

bool DrawsRandomNumbers(const FunctionSchema& schema, bool is_seeded, const Constants& constants) {
  // Out of training, or with probability 0, dropout and its kin draw nothing.
  if (IsAnyFalse(constants, kRandomFlags) || IsZero(constants, "dropout_p")) return false;
  const auto takes_generator = [](const Argument& argument) {
    static const c10::TypePtr kGenerator = c10::OptionalType::create(c10::GeneratorType::get());
    return argument.type()->isSubtypeOf(*kGenerator);
  };
  return is_seeded || std::ranges::any_of(schema.arguments(), takes_generator);
}

// Norms do, in training. Their gradients read them, and functional forms return new ones.
bool UpdatesStatistics(const FunctionSchema& schema, const Constants& constants) {
  const std::string_view name = schema.name();
  return !name.ends_with("_backward") && !name.ends_with("_functional") &&
         !IsAnyFalse(constants, kStatisticFlags);
}

bool IsCollective(const FunctionSchema& schema) {
  const std::string_view name_space = NamespaceOf(schema);
  return name_space.find("c10d") != std::string_view::npos || name_space == "symm_mem" ||
         name_space == "_dtensor";
}

bool HidesAliases(const FunctionSchema& schema, bool is_composite) {
  if (IsOneOf(schema.name(), kUnsafe)) return true;
  if (HasAliasAnnotation(schema)) return false;
  return NamespaceOf(schema) != "aten" || (is_composite && !IsOneOf(schema.name(), kMakeNew));
}

}  // namespace

OperatorEffects EffectsOf(const FunctionSchema& schema, const Constants& constants) {
  const auto op = c10::Dispatcher::singleton().findSchema(schema.operator_name());
  const auto has_tag = [&](at::Tag tag) { return op && op->hasTag(tag); };
  const bool may_update = UpdatesStatistics(schema, constants);

  OperatorEffects effects;
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    const Argument& argument = schema.arguments()[i];
    if (Writes(argument)) effects.writes.push_back(i);
    if (may_update && IsOneOf(argument.name(), kStatistics)) effects.statistics.push_back(i);
  }
  effects.undeclared = WhyUndeclared(schema);
  effects.draws_random_numbers =
      DrawsRandomNumbers(schema, has_tag(at::Tag::nondeterministic_seeded), constants);
  effects.is_stateful = IsOneOf(schema.name(), kStateful);
  const bool returns_nothing = schema.returns().empty() && !schema.is_varret();
  effects.has_side_effect =
      (returns_nothing && effects.writes.empty()) || IsOneOf(schema.name(), kChecks);
  effects.changes_metadata =
      has_tag(at::Tag::inplace_view) || IsOneOf(schema.name(), kChangeMetadata);
  effects.is_collective = IsCollective(schema);
  effects.hides_aliases = HidesAliases(
      schema, op && op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd));
  return effects;
}

OperatorEffects EffectsOf(const std::string& name, const std::string& overload,
                          const Constants& constants) {
  const auto op = torch::jit::findOperatorFor({name, overload});  // the dispatcher's are there too
  TORCH_CHECK_VALUE(op != nullptr, "there is no operator ", name, ".", overload);
  return EffectsOf(op->schema(), constants);
}

bool HasStatistics(const FunctionSchema& schema) {
  return schema.argumentIndexWithName(std::string(kStatistics[0])).has_value();
}

}  // namespace torch_ext::jit
