// What a TorchScript node does beyond its data flow: what the table says of its operator
// (operator_effects.h), and what is known of nodes that call none.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "jit/operator_effects.h"

namespace torch_ext::jit {

// Is the node of one of these kinds, e.g. "aten::view"?
template <std::size_t N>
bool IsOneOf(const torch::jit::Node* node, const std::array<std::string_view, N>& kinds) {
  return std::ranges::find(kinds, node->kind().toQualString()) != kinds.end();
}

// Can the value be written to, or hold something that can? (AliasDb's own test is not exported.)
bool IsMutable(const torch::jit::Value* value);

// Can a value of the type be a tensor, or hold one?
bool MayHoldTensors(const c10::TypePtr& type);

// What the node itself (not its inner blocks) does. Positions are of the node's inputs.
OperatorEffects EffectsOf(torch::jit::Node* node);

bool HasStatistics(torch::jit::Node* node);  // of a norm

// See OperatorEffects::hides_aliases; prim nodes are known to AliasDb.
bool HidesAliases(torch::jit::Node* node);

}  // namespace torch_ext::jit
