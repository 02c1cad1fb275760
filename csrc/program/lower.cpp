#include "program/lower.h"

#include <utility>
#include <vector>

namespace torch_ext::program {

sched::Graph Lower(const Program& program, const HazardRules& rules) {
  sched::Graph graph;
  for (const Buffer& buffer : program.buffers) {
    if (buffer.is_input) {
      graph.AddInput(buffer.name, buffer.bytes, buffer.kept);
    } else {
      graph.AddBuffer(buffer.name, buffer.bytes, buffer.kept);
    }
  }
  std::vector<std::vector<OpId>> after;
  for (const Op& op : program.ops) after.push_back(op.makers);
  for (const auto& [earlier, later] : OrderEdges(program, rules)) after[later].push_back(earlier);
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    const Op& op = program.ops[i];
    graph.AddOp(op.name, op.reads, op.writes, op.workspace_bytes, std::move(after[i]));
  }
  return graph;
}

}  // namespace torch_ext::program
