#include "sched/bound.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "sched/flow.h"
#include "sched/simulate.h"

namespace torch_ext::sched {
namespace {

// Flow nodes of the ops when `op` runs next: it and its descendants are the sink, as are those of
// `waiting`; its ancestors are the source, as are `done` and theirs.
std::vector<std::int32_t> PlaceOps(const Graph& graph, OpId op, std::span<const OpId> done,
                                   std::span<const OpId> waiting, FlowNetwork& network) {
  constexpr std::int32_t kFree = -1;
  std::vector<std::int32_t> node_of(graph.ops().size(), kFree);
  const auto mark = [&](std::int32_t node, std::vector<OpId> stack, auto neighbours) {
    for (OpId v : stack) node_of[v] = node;
    while (!stack.empty()) {
      const OpId v = stack.back();
      stack.pop_back();
      for (OpId next : neighbours(v)) {
        if (node_of[next] != kFree) continue;
        node_of[next] = node;
        stack.push_back(next);
      }
    }
  };
  std::vector<OpId> out(waiting.begin(), waiting.end());
  out.push_back(op);
  mark(FlowNetwork::kSink, std::move(out),
       [&](OpId v) { return std::span(graph.op(v).successors); });
  std::vector<OpId> in(done.begin(), done.end());
  for (OpId p : graph.op(op).predecessors) in.push_back(p);
  mark(FlowNetwork::kSource, std::move(in),
       [&](OpId v) { return std::span(graph.op(v).predecessors); });
  for (std::int32_t& node : node_of) {
    if (node == kFree) node = network.AddNode();
  }
  return node_of;
}

std::int32_t NodeOfProducer(const Buffer& buffer, std::span<const std::int32_t> node_of) {
  return buffer.is_input() ? FlowNetwork::kSource : node_of[buffer.producer];
}

// The edges of the picture in bound.h. Returns the live bytes that no choice of state can change;
// the others are the maximum flow.
std::int64_t AddEdges(const Graph& graph, std::span<const std::int32_t> node_of,
                      FlowNetwork& network) {
  const std::int64_t infinite = kSizeLimitBytes;  // above the sum of all sizes
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    if (node_of[v] <= FlowNetwork::kSink) continue;
    for (OpId p : graph.op(v).predecessors) {
      if (node_of[p] != FlowNetwork::kSource) network.AddEdge(node_of[v], node_of[p], infinite);
    }
  }
  std::int64_t fixed_bytes = 0;
  for (const Buffer& buffer : graph.buffers()) {
    const std::int32_t producer = NodeOfProducer(buffer, node_of);
    if (buffer.size_bytes == 0 || producer == FlowNetwork::kSink) continue;
    const bool outlives = buffer.kept || std::ranges::any_of(buffer.users, [&](OpId u) {
                            return node_of[u] == FlowNetwork::kSink;
                          });
    if (outlives) {
      if (producer == FlowNetwork::kSource) {
        fixed_bytes += buffer.size_bytes;
      } else {
        network.AddEdge(producer, FlowNetwork::kSink, buffer.size_bytes);
      }
      continue;
    }
    const bool can_live = std::ranges::any_of(
        buffer.users, [&](OpId u) { return node_of[u] != FlowNetwork::kSource; });
    if (!can_live) continue;
    const std::int32_t node = network.AddNode();
    network.AddEdge(producer, node, buffer.size_bytes);
    for (OpId u : buffer.users) {
      if (node_of[u] != FlowNetwork::kSource) network.AddEdge(node, node_of[u], infinite);
    }
  }
  return fixed_bytes;
}

// Positions, the highest hill first.
std::vector<std::size_t> ByFallingHill(std::span<const std::int64_t> hill_bytes) {
  std::vector<std::size_t> positions(hill_bytes.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::ranges::stable_sort(positions, std::greater<>(),
                           [&](std::size_t i) { return hill_bytes[i]; });
  return positions;
}

LowestHill ReadHill(const FlowNetwork& network, std::span<const std::int32_t> node_of,
                    std::int64_t bytes) {
  LowestHill lowest;
  lowest.bytes = bytes;
  lowest.is_exact = network.is_maximal();
  if (!lowest.is_exact) return lowest;
  const std::vector<char> waits = network.AlwaysOnSinkSide();
  for (std::int32_t node : node_of) {
    lowest.has_run.push_back(network.OnSourceSide(node));
    lowest.waits.push_back(waits[node]);
  }
  return lowest;
}

}  // namespace

LowestHill FindLowestHill(const Graph& graph, OpId op, std::span<const OpId> done,
                          std::span<const OpId> waiting, Budget& budget) {
  budget.Spend(graph.num_ops() / 8 + 1);
  FlowNetwork network;
  const std::vector<std::int32_t> node_of = PlaceOps(graph, op, done, waiting, network);
  const std::int64_t fixed_bytes = AddEdges(graph, node_of, network) + graph.HillBytes(op);
  const std::int64_t flow = network.MaxFlow(budget);
  return ReadHill(network, node_of, fixed_bytes + flow);
}

HillFinder::HillFinder(const Graph& graph, OpId op, Budget& budget)
    : node_of_(PlaceOps(graph, op, {}, {}, network_)),
      fixed_bytes_(AddEdges(graph, node_of_, network_) + graph.HillBytes(op)) {
  budget.Spend(graph.num_ops() / 8 + 1);
  for (std::int32_t node : node_of_) {
    const bool is_free = node > FlowNetwork::kSink;
    force_in_.push_back(is_free ? network_.AddEdge(FlowNetwork::kSource, node, 0) : -1);
    force_out_.push_back(is_free ? network_.AddEdge(node, FlowNetwork::kSink, 0) : -1);
  }
  const std::int64_t flow = network_.MaxFlow(budget);
  lowest_ = ReadHill(network_, node_of_, fixed_bytes_ + flow);
  network_.SetMark();
}

LowestHill HillFinder::Given(OpId x, bool has_run, std::int64_t enough_bytes, Budget& budget) {
  network_.ReturnToMark();
  network_.RaiseCapacity((has_run ? force_in_ : force_out_)[x], kSizeLimitBytes);
  const std::int64_t flow = network_.MaxFlow(budget, enough_bytes - fixed_bytes_);
  return ReadHill(network_, node_of_, fixed_bytes_ + flow);
}

std::optional<std::int64_t> LowestLiveBytes(const Graph& graph, Budget& budget) {
  budget.Spend(graph.num_ops() / 4 + 1);
  FlowNetwork network;
  std::vector<std::int32_t> node_of;
  for (OpId v = 0; v < graph.num_ops(); ++v) node_of.push_back(network.AddNode());
  const std::int64_t fixed_bytes = AddEdges(graph, node_of, network);
  const std::int64_t flow = network.MaxFlow(budget);
  if (!network.is_maximal()) return std::nullopt;
  return fixed_bytes + flow;
}

OpBound ClosureBound(const Graph& graph, OpId op, Budget& budget) {
  const LowestHill lowest = FindLowestHill(graph, op, {}, {}, budget);
  OpBound bound{op, lowest.bytes, {}};
  if (!lowest.is_exact) {  // what it reads and writes is there in any state
    bound.buffers = graph.op(op).reads;
    bound.buffers.insert(bound.buffers.end(), graph.op(op).writes.begin(),
                         graph.op(op).writes.end());
    bound.bytes = graph.HillBytes(op);
    for (BufferId b : graph.op(op).reads) bound.bytes += graph.buffer(b).size_bytes;
    return bound;
  }
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    const Buffer& buffer = graph.buffer(b);
    const bool born = buffer.is_input() || lowest.has_run[buffer.producer];
    const bool needed = buffer.kept || std::ranges::any_of(buffer.users, [&](OpId u) {
                          return !lowest.has_run[u];
                        });
    if (buffer.producer == op || (born && needed)) bound.buffers.push_back(b);
  }
  return bound;
}

std::int64_t NeighbourBound(const Graph& graph, OpId op, std::int64_t above_bytes, Budget& budget) {
  std::int64_t bound = 0;
  for (const bool backward : {true, false}) {
    const std::vector<OpId>& all = backward ? graph.op(op).predecessors : graph.op(op).successors;
    if (all.size() < 2) continue;
    // The neighbours that may be next to the op: none of them reaches another.
    std::vector<char> implied(graph.ops().size(), 0);
    std::vector<OpId> stack = all;
    while (!stack.empty()) {
      const OpId v = stack.back();
      stack.pop_back();
      budget.Spend(1);
      for (OpId u : backward ? graph.op(v).predecessors : graph.op(v).successors) {
        if (implied[u]) continue;
        implied[u] = 1;
        stack.push_back(u);
      }
    }
    std::vector<OpId> nearest;
    for (OpId v : all) {
      if (!implied[v]) nearest.push_back(v);
    }
    if (nearest.size() < 2) continue;
    std::int64_t lowest = std::numeric_limits<std::int64_t>::max();
    for (OpId last : nearest) {
      std::vector<OpId> others;
      for (OpId v : nearest) {
        if (v != last) others.push_back(v);
      }
      const LowestHill hill = backward ? FindLowestHill(graph, last, others, {}, budget)
                                       : FindLowestHill(graph, last, {}, others, budget);
      lowest = std::min(lowest, hill.bytes);
      if (lowest <= above_bytes) break;
    }
    bound = std::max(bound, lowest);
  }
  return bound;
}

std::int64_t BestNeighbourBound(const Graph& graph, std::span<const OpId> order,
                                std::int64_t above_bytes, Budget& budget) {
  std::int64_t best = 0;
  for (std::size_t i : ByFallingHill(Simulate(graph, order).hill_bytes)) {
    if (!budget.HasWork()) break;
    best = std::max(best, NeighbourBound(graph, order[i], std::max(best, above_bytes), budget));
  }
  return best;
}

ClosureBounds::ClosureBounds(const Graph& graph)
    : graph_(&graph), is_bounded_(graph.ops().size(), 0) {}

void ClosureBounds::Raise(std::span<const OpId> order, Budget& budget) {
  const std::vector<std::int64_t> hills = Simulate(*graph_, order).hill_bytes;
  for (std::size_t i : ByFallingHill(hills)) {
    if (best_.op != kNoOp && hills[i] <= best_.bytes) break;
    if (is_bounded_[order[i]]) continue;
    OpBound bound = ClosureBound(*graph_, order[i], budget);
    is_bounded_[order[i]] = 1;
    if (best_.op == kNoOp || bound.bytes > best_.bytes) best_ = std::move(bound);
    if (!budget.HasWork()) break;
  }
}

OpBound BestClosureBound(const Graph& graph, std::span<const OpId> order, Budget& budget) {
  ClosureBounds bounds(graph);
  bounds.Raise(order, budget);
  return bounds.best();
}

}  // namespace torch_ext::sched
