#include "jit/effects.h"

#include <torch/csrc/jit/ir/constants.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace torch_ext::jit {

using torch::jit::Node;
using torch::jit::Value;

namespace {

Constants ConstantsOf(const Node* node, const c10::FunctionSchema& schema) {
  Constants constants;
  for (std::size_t i = 0; i < schema.arguments().size() && i < node->inputs().size(); ++i) {
    const Value* input = node->input(i);
    const bool is_bool = input->type()->kind() == c10::TypeKind::BoolType;
    if (!is_bool && input->type()->kind() != c10::TypeKind::FloatType) continue;
    const std::string& name = schema.arguments()[i].name();
    if (const auto value = torch::jit::toIValue(input)) {
      constants[name] = is_bool ? Constants::mapped_type(value->toBool()) : value->toDouble();
    }
  }
  return constants;
}

// Nodes without a schema whose meaning is known: they read their inputs and nothing else.
bool IsKnownWithoutSchema(Node* node) {
  static constexpr std::array kKnown = {c10::prim::Constant,
                                        c10::prim::ListConstruct,
                                        c10::prim::TupleConstruct,
                                        c10::prim::DictConstruct,
                                        c10::prim::ListUnpack,
                                        c10::prim::TupleUnpack,
                                        c10::prim::TupleIndex,
                                        c10::prim::TupleSlice,
                                        c10::prim::GetAttr,
                                        c10::prim::SetAttr,
                                        c10::prim::If,
                                        c10::prim::Loop,
                                        c10::prim::ConstantChunk,
                                        c10::prim::unchecked_cast,
                                        c10::prim::Uninitialized,
                                        c10::prim::RaiseException,
                                        c10::prim::Print,
                                        c10::prim::NumToTensor,
                                        c10::prim::unchecked_unwrap_optional,
                                        c10::prim::isinstance};
  return std::find(kKnown.begin(), kKnown.end(), node->kind()) != kKnown.end();
}

}  // namespace

bool IsMutable(const Value* value) {
  switch (value->type()->kind()) {
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::ComplexType:
    case c10::TypeKind::NumberType:
    case c10::TypeKind::StringType:
    case c10::TypeKind::NoneType:
    case c10::TypeKind::DeviceObjType:
    case c10::TypeKind::FunctionType:
    case c10::TypeKind::EnumType:
      return false;
    default:
      return true;
  }
}

bool MayHoldTensors(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::ClassType:
    case c10::TypeKind::InterfaceType:
    case c10::TypeKind::AnyType:
      return true;
    default:
      return std::ranges::any_of(type->containedTypes(), MayHoldTensors);
  }
}

OperatorEffects EffectsOf(Node* node) {
  static constexpr auto kStateful =
      std::to_array<std::string_view>({"prim::fork", "prim::Enter", "prim::Exit"});
  OperatorEffects effects;
  const c10::FunctionSchema* schema = node->maybeSchema();
  if (schema != nullptr) effects = EffectsOf(*schema, ConstantsOf(node, *schema));
  if (IsKnownWithoutSchema(node)) {
    effects.undeclared.clear();
  } else if (schema == nullptr) {
    effects.undeclared = "not inlined, or of a kind that is not known";
  } else if (schema->name().starts_with("prims::")) {
    effects.undeclared = "written in Python";
  }
  if (node->kind() == c10::prim::SetAttr) effects.writes.push_back(0);
  effects.is_stateful |= IsOneOf(node, kStateful);
  if (schema != nullptr || node->kind().is_prim()) {  // else torch does not answer
    effects.has_side_effect |= node->hasSideEffects();
  }
  return effects;
}

bool HasStatistics(Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema != nullptr && HasStatistics(*schema);
}

bool HidesAliases(Node* node) {
  const c10::FunctionSchema* schema = node->maybeSchema();
  return schema != nullptr && !node->kind().is_prim() && EffectsOf(*schema, {}).hides_aliases;
}

}  // namespace torch_ext::jit
