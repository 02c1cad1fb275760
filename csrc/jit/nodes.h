// The nodes of a TorchScript block seen as ops: which they are, what they read, what to call them.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <string>
#include <vector>

namespace torch_ext::jit {

// Inlines all calls and runs the executor's own clean-up passes ahead of time (dead code, common
// subexpressions, peephole, constants of immutable types, tuples), so that the graph that is
// planned is the graph that will be executed. Forgets recorded shapes first, as the executor does:
// they hold for the traced inputs only. Throws c10::Error if torch's passes lose the update of
// running statistics by a norm whose output nobody reads, for the executor may keep it.
void PrepareGraph(std::shared_ptr<torch::jit::Graph>& graph);

// Throws c10::Error if there is no method forward.
std::shared_ptr<torch::jit::Graph> ForwardGraph(const torch::jit::Module& module);

// The nodes that can be ordered: all of the block's but constants, in block order.
std::vector<torch::jit::Node*> OpNodes(torch::jit::Block* block);

// For each of OpNodes(graph->block()): does the executor compute it once, when it makes its plan,
// and keep the result as a constant? Such nodes take no memory in a settled call.
std::vector<char> FoldedNodes(const std::shared_ptr<torch::jit::Graph>& graph);

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

// The constant value of the schema argument `name`, if the node has it and it is a constant.
std::optional<c10::IValue> ConstantArgument(torch::jit::Node* node, const std::string& name);

bool IsConstantFalse(torch::jit::Node* node, const char* argument);

bool HasStatistics(torch::jit::Node* node);  // of a norm

// Batch and instance norm update their running statistics in training; no schema says so.
bool MayUpdateStatistics(torch::jit::Node* node);

std::string OpName(const torch::jit::Node* node, std::size_t index);  // e.g. "conv2d.17"

// The user's line that made the node, "file:line", as far as the graph knows it; frames inside
// torch are skipped when others are there. Else empty.
std::string SourceOf(const torch::jit::Node* node);

// The module that made the node, e.g. "layer1.0.conv1"; empty if unknown.
std::string ModulePathOf(const torch::jit::Node* node);

}  // namespace torch_ext::jit
