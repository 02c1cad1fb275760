#include "jit/observe.h"

#include <torch/csrc/jit/runtime/custom_operator.h>

#include <utility>

namespace torch_ext::jit {
namespace {

using torch::jit::Node;
using torch::jit::Stack;

c10::Symbol ObserveKind() {
  return c10::Symbol::fromQualString("torch_ext::observe");
}
c10::Symbol ObserverAttribute() {
  return c10::Symbol::attr("observer");
}

// Any inputs, no output.
void RegisterObserveOnce() {
  static const torch::jit::RegisterOperators registration({torch::jit::Operator(
      "torch_ext::observe(...) -> ()",
      [](const Node* node) -> torch::jit::Operation {
        const auto* observer =
            reinterpret_cast<const Observers::Observer*>(node->i(ObserverAttribute()));
        const std::size_t count = node->inputs().size();
        return [observer, count](Stack& stack) {
          (*observer)(at::ArrayRef<c10::IValue>(stack).slice(stack.size() - count));
          torch::jit::drop(stack, count);
        };
      },
      c10::AliasAnalysisKind::CONSERVATIVE)});
}

}  // namespace

Node* Observers::Create(torch::jit::Graph& graph, const std::vector<torch::jit::Value*>& values,
                        Observer observer) {
  RegisterObserveOnce();
  observers_.push_back(std::make_unique<Observer>(std::move(observer)));
  Node* node = graph.create(ObserveKind(), values, /*num_outputs=*/0);
  node->i_(ObserverAttribute(), reinterpret_cast<std::int64_t>(observers_.back().get()));
  return node;
}

}  // namespace torch_ext::jit
