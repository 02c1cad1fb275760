// What a TorchScript node does beyond its data flow: what the table says of its operator
// (operator_effects.h), and what is known of nodes that call none.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include "jit/operator_effects.h"

namespace torch_ext::jit {

// Can the value be written to, or hold something that can? (AliasDb's own test is not exported.)
bool IsMutable(const torch::jit::Value* value);

// What the node itself (not its inner blocks) does. Positions are of the node's inputs.
OperatorEffects EffectsOf(torch::jit::Node* node);

bool HasStatistics(torch::jit::Node* node);  // of a norm

// May the node return what it was given, or a view of it, without saying so? Its schema tells of
// something new, and AliasDb believes it; but composite ops do what the ops they call do: dropout
// out of training, type_as, sum_to_size, einsum, chain_matmul of one matrix, ... return their
// input. Ops with kernels of their own are held to their schemas by torch's own tests, but for a
// few. After `set_` two of the inputs share memory.
bool HidesAliases(torch::jit::Node* node);

}  // namespace torch_ext::jit
