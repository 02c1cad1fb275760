// Builds nodes at the graph's insertion point, behind one another.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <string>
#include <vector>

namespace torch_ext::jit {

class Builder {
 public:
  // Nodes come from the same line of the user's as `like`.
  explicit Builder(torch::jit::Node* like) : graph_(*like->owningGraph()), like_(like) {}
  explicit Builder(torch::jit::Graph& graph) : graph_(graph) {}

  // Returns the first output.
  torch::jit::Value* Call(const std::string& oper, const std::vector<torch::jit::Value*>& inputs,
                          const c10::TypePtr& type, std::size_t outputs = 1);
  torch::jit::Value* Constant(const c10::IValue& value) { return graph_.insertConstant(value); }

  torch::jit::Value* Ask(const std::string& oper, const std::vector<torch::jit::Value*>& inputs) {
    return Call(oper, inputs, c10::BoolType::get());
  }
  torch::jit::Value* Number(const std::string& oper,
                            const std::vector<torch::jit::Value*>& inputs) {
    return Call(oper, inputs, c10::IntType::get());
  }
  torch::jit::Value* Numbers(const std::string& oper,
                             const std::vector<torch::jit::Value*>& inputs) {
    return Call(oper, inputs, c10::ListType::ofInts());
  }
  torch::jit::Value* Tensor(const std::string& oper,
                            const std::vector<torch::jit::Value*>& inputs) {
    return Call(oper, inputs, c10::TensorType::get());
  }

  // Memory for a tensor in the default layout, on the CPU.
  torch::jit::Value* Empty(torch::jit::Value* sizes, torch::jit::Value* dtype) {
    torch::jit::Value* none = Constant({});
    return Tensor("aten::empty", {sizes, dtype, none, none, none, none});
  }

  torch::jit::Value* Sizes(torch::jit::Value* tensor) { return Numbers("aten::size", {tensor}); }
  torch::jit::Value* Strides(torch::jit::Value* tensor) {
    return Numbers("aten::stride", {tensor});
  }
  torch::jit::Value* Dtype(torch::jit::Value* tensor) { return Number("prim::dtype", {tensor}); }
  torch::jit::Value* Equal(torch::jit::Value* a, torch::jit::Value* b) {
    return Ask("aten::eq", {a, b});
  }

  // Of no condition: true, and false.
  torch::jit::Value* All(const std::vector<torch::jit::Value*>& conditions);
  torch::jit::Value* Any(const std::vector<torch::jit::Value*>& conditions);

  // One block makes the output if the condition holds, the other one if not. Both get `make` called
  // with the insertion point inside, and return what it returns.
  template <typename Make, typename MakeElse>
  torch::jit::Value* If(torch::jit::Value* condition, const c10::TypePtr& type, const Make& make,
                        const MakeElse& make_else) {
    torch::jit::Node* choice = AddIf(condition, type);
    AddBlock(choice, make);
    AddBlock(choice, make_else);
    return choice->output();
  }

 protected:
  torch::jit::Graph& graph() { return graph_; }

 private:
  torch::jit::Node* AddIf(torch::jit::Value* condition, const c10::TypePtr& type);

  template <typename Make>
  static void AddBlock(torch::jit::Node* choice, const Make& make) {
    torch::jit::Block* block = choice->addBlock();
    const torch::jit::WithInsertPoint inside(block);
    block->registerOutput(make());
  }

  torch::jit::Graph& graph_;
  torch::jit::Node* like_ = nullptr;
};

// The value stands for the node's output from here on, under its name; the node is no more.
void Replace(torch::jit::Node* node, torch::jit::Value* value);

}  // namespace torch_ext::jit
