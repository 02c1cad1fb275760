// The nodes of a TorchScript block seen as ops: which they are, what they read, what to call them.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace torch_ext::jit {

// The nodes that can be ordered: all of the block's but constants, in block order.
std::vector<torch::jit::Node*> OpNodes(torch::jit::Block* block);

// What the node reads: its inputs, and what its inner blocks capture from outside the node.
std::vector<torch::jit::Value*> ReadValues(torch::jit::Node* node);

// Calls `visit` for the node and every node in its inner blocks.
template <typename Visit>
void ForEachInnerNode(torch::jit::Node* node, const Visit& visit) {
  visit(node);
  for (torch::jit::Block* block : node->blocks()) {
    for (torch::jit::Node* inner : block->nodes()) ForEachInnerNode(inner, visit);
  }
}

// The same for every node of the block.
template <typename Visit>
void ForEachNode(torch::jit::Block* block, const Visit& visit) {
  for (torch::jit::Node* node : block->nodes()) ForEachInnerNode(node, visit);
}

template <typename Test>
bool AnyInnerNode(torch::jit::Node* node, const Test& test) {
  bool any = false;
  ForEachInnerNode(node, [&](torch::jit::Node* inner) { any = any || test(inner); });
  return any;
}

std::string OpName(const torch::jit::Node* node, std::size_t index);  // e.g. "conv2d.17"

// The user's line that made the node, "file:line": the innermost that is not inside torch. Empty if
// the graph knows of none; a line that only calls torch.jit.trace, ours too, made no node.
std::string SourceOf(const torch::jit::Node* node);

// Where the submodules of a module are, by type, so far as a type tells one, as those of traced
// modules do.
using ModulePaths = std::unordered_map<const c10::ClassType*, std::string>;
ModulePaths PathsByType(const torch::jit::Module& module);

// The module that made the node, e.g. "layer1.0.conv1"; empty if unknown, and without its parents
// where nothing tells them.
std::string ModulePathOf(const torch::jit::Node* node, const ModulePaths& paths);

// Torch's passes renumber values, and a mark stays. Takes the marks off again; kUnmarked stands for
// nodes without.
inline constexpr std::int64_t kUnmarked = -1;
void Mark(torch::jit::Node* node, std::int64_t mark);
std::vector<std::int64_t> TakeMarks(const std::vector<torch::jit::Node*>& nodes);

}  // namespace torch_ext::jit
