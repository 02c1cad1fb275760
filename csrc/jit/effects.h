// What a node does beyond its data flow: what its schema tells, and where no schema tells it.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <string>

namespace torch_ext::jit {

// Can the value be written to, or hold something that can? (AliasDb's own test is not exported.)
bool IsMutable(const torch::jit::Value* value);

// Why nobody knows what the node itself (not its inner blocks) writes, e.g. "a custom op without
// alias annotation"; empty if that is known.
std::string WhyUndeclared(torch::jit::Node* node);

// May the node return what it was given, or a view of it, without saying so? Its schema tells of
// something new, and AliasDb believes it; but composite ops do what the ops they call do: dropout
// out of training, type_as, sum_to_size, einsum, chain_matmul of one matrix, ... return their
// input. Ops with kernels of their own are held to their schemas by torch's own tests, but for a
// few. After `set_` two of the inputs share memory.
bool HidesAliases(torch::jit::Node* node);

// Does the node itself (not its inner blocks) draw random numbers?
bool DrawsRandomNumbers(torch::jit::Node* node);

// Does the node change the state that other ops run in?
bool IsStateful(torch::jit::Node* node);

bool HasStatistics(torch::jit::Node* node);  // of a norm

// Batch and instance norm update their running statistics in training; no schema says so.
bool MayUpdateStatistics(torch::jit::Node* node);

}  // namespace torch_ext::jit
