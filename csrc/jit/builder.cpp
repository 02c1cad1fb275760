#include "jit/builder.h"

namespace torch_ext::jit {

using torch::jit::Node;
using torch::jit::Value;

Value* Builder::Call(const std::string& oper, const std::vector<Value*>& inputs,
                     const c10::TypePtr& type, std::size_t outputs) {
  Node* node = graph_.insertNode(graph_.create(c10::Symbol::fromQualString(oper), inputs, outputs));
  if (like_ != nullptr) node->copyMetadata(like_);
  for (Value* output : node->outputs()) output->setType(type);
  return node->output(0);
}

Value* Builder::All(const std::vector<Value*>& conditions) {
  Value* all = conditions.empty() ? Constant(true) : conditions[0];
  for (std::size_t i = 1; i < conditions.size(); ++i) {
    all = Ask("aten::__and__", {all, conditions[i]});
  }
  return all;
}

Value* Builder::Any(const std::vector<Value*>& conditions) {
  Value* any = conditions.empty() ? Constant(false) : conditions[0];
  for (std::size_t i = 1; i < conditions.size(); ++i) {
    any = Ask("aten::__or__", {any, conditions[i]});
  }
  return any;
}

Node* Builder::AddIf(Value* condition, const c10::TypePtr& type) {
  Node* choice = graph_.insertNode(graph_.create(c10::prim::If, {condition}, 1));
  if (like_ != nullptr) choice->copyMetadata(like_);
  choice->output()->setType(type);
  return choice;
}

void Replace(Node* node, Value* value) {
  value->copyMetadata(node->output());
  node->output()->replaceAllUsesWith(value);
  node->destroy();
}

}  // namespace torch_ext::jit
