#include "jit/extract.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/nodes.h"

namespace torch_ext::jit {

using torch::jit::Node;
using torch::jit::Value;

namespace {

// The name as a token of the text format, unlike all names given before.
std::string UniqueName(std::string name, std::unordered_set<std::string>& taken) {
  for (char& c : name) {
    if (c == ' ' || c == '\t' || c == '#' || c == '\n') c = '_';
  }
  try {
    sched::CheckName(name);
  } catch (const std::invalid_argument&) {
    name += "_";
  }
  std::string unique = name;
  for (int i = 2; !taken.insert(unique).second; ++i) unique = name + ":" + std::to_string(i);
  return unique;
}

}  // namespace

sched::Graph ExtractGraph(const std::vector<Node*>& nodes, const Probe& probe,
                          const Hazards& hazards) {
  sched::Graph graph;
  std::unordered_set<std::string> taken;
  for (const Allocation& a : probe.allocations) {
    graph.AddBuffer(UniqueName(a.value_name.empty() ? "hidden" : a.value_name, taken), a.bytes,
                    a.kept);
  }
  std::vector<std::vector<sched::OpId>> after(nodes.size());
  for (const auto& [earlier, later] : hazards.edges) after[later].push_back(earlier);
  std::unordered_map<const Node*, sched::OpId> id_of;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    for (Value* value : ReadValues(nodes[i])) {
      if (const auto producer = id_of.find(value->node()); producer != id_of.end()) {
        after[i].push_back(producer->second);
      }
    }
    id_of.emplace(nodes[i], static_cast<sched::OpId>(i));
    const NodeProbe& seen = probe.nodes[i];
    std::int64_t workspace_bytes = seen.hill_bytes;
    for (std::int32_t a : seen.writes) workspace_bytes -= probe.allocations[a].bytes;
    graph.AddOp(OpName(nodes[i], i), {seen.reads.begin(), seen.reads.end()},
                {seen.writes.begin(), seen.writes.end()}, workspace_bytes, std::move(after[i]));
  }
  return graph;
}

bool KeepCertain(const std::vector<char>& certain, Probe& probe) {
  bool is_less = false;
  for (std::size_t i = 0; i < certain.size(); ++i) {
    NodeProbe& node = probe.nodes[i];
    const auto is_uncertain = [&](std::int32_t a) {
      return !certain[i] || std::ranges::count(node.released_before_hill, a) > 0;
    };
    is_less |= std::erase_if(node.reads, is_uncertain) > 0;
    if (certain[i]) continue;
    is_less |= std::exchange(node.hill_bytes, 0) > 0;
    for (const std::int32_t a : node.writes) probe.allocations[a].bytes = 0;
  }
  return is_less;
}

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

}  // namespace torch_ext::jit
