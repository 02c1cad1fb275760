#include "jit/apply.h"

#include <unordered_set>

#include "jit/nodes.h"

namespace torch_ext::jit {

using torch::jit::Node;
using torch::jit::Value;

void ApplyOrder(torch::jit::Block* block, const std::vector<Node*>& nodes,
                const sched::Order& order) {
  for (sched::OpId v : order) nodes[v]->moveBefore(block->return_node());
  std::unordered_set<const Node*> done;
  for (Node* node : block->nodes()) {
    for (Value* value : ReadValues(node)) {
      const bool made_here =
          value->node()->owningBlock() == block && value->node() != block->param_node();
      TORCH_INTERNAL_ASSERT(!made_here || done.contains(value->node()),
                            "torch_ext: ", value->debugName(), " would be used before it is made");
    }
    done.insert(node);
  }
  block->owningGraph()->lint();
}

void ApplyEdits(torch::jit::Block* block, const std::vector<Node*>& nodes,
                const sched::Order& order, const program::Edits& edits,
                const Overwritable& overwritable, const Copyable& copyable,
                const OverwriteRules& rules) {
  HoistedCopies copies(copyable.forms, edits.hoists);
  std::vector<Node*> all = nodes;
  all.insert(all.end(), copies.nodes().begin(), copies.nodes().end());
  ApplyOrder(block, all, order);
  copies.Finish(rules);
  for (const std::size_t i : edits.overwrites) ApplyOverwrite(overwritable.forms[i], rules);
}

}  // namespace torch_ext::jit
