// Nodes that look at values while a graph runs. (torch's own profiling nodes cannot be made outside
// of torch.) The operator is registered by the first of them, not by loading us.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <functional>
#include <memory>
#include <vector>

namespace torch_ext::jit {

class Observers {
 public:
  // Called with the values of an observing node.
  using Observer = std::function<void(at::ArrayRef<c10::IValue>)>;

  // A node of `graph`, nowhere yet, which calls the observer with the values. It runs as long as
  // this lives.
  torch::jit::Node* Create(torch::jit::Graph& graph, const std::vector<torch::jit::Value*>& values,
                           Observer observer);

 private:
  std::vector<std::unique_ptr<Observer>> observers_;  // addresses are in the nodes
};

}  // namespace torch_ext::jit
