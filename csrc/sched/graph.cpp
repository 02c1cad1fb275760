#include "sched/graph.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace torch_ext::sched {
namespace {

void SortUnique(std::vector<std::int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

void Graph::Account(std::int64_t bytes, const std::string& what) {
  if (bytes < 0) throw std::invalid_argument(what + " has a negative size");
  if (bytes >= kSizeLimitBytes - total_bytes_) {
    throw std::invalid_argument("the sum of all sizes reaches 2^62 bytes at " + what);
  }
  total_bytes_ += bytes;
}

BufferId Graph::AddAnyBuffer(Buffer buffer, bool is_input) {
  Account(buffer.size_bytes, "buffer '" + buffer.name + "'");
  buffers_.push_back(std::move(buffer));
  awaits_producer_.push_back(!is_input);
  return num_buffers() - 1;
}

BufferId Graph::AddInput(std::string name, std::int64_t size_bytes, bool kept) {
  return AddAnyBuffer({std::move(name), size_bytes, kNoOp, kept, {}}, true);
}

BufferId Graph::AddBuffer(std::string name, std::int64_t size_bytes, bool kept) {
  return AddAnyBuffer({std::move(name), size_bytes, kNoOp, kept, {}}, false);
}

OpId Graph::AddOp(std::string name, std::vector<BufferId> reads, std::vector<BufferId> writes,
                  std::int64_t workspace_bytes, std::vector<OpId> after) {
  SortUnique(reads);
  SortUnique(writes);
  SortUnique(after);
  const std::string what = "op '" + name + "'";
  for (BufferId b : reads) {
    if (b < 0 || b >= num_buffers()) throw std::invalid_argument(what + " reads no known buffer");
    if (awaits_producer_[b]) {
      const bool own = std::binary_search(writes.begin(), writes.end(), b);
      throw std::invalid_argument(what + " reads '" + buffer(b).name +
                                  (own ? "', which it writes itself" : "' before it is written"));
    }
  }
  for (BufferId b : writes) {
    if (b < 0 || b >= num_buffers()) throw std::invalid_argument(what + " writes no known buffer");
    if (!awaits_producer_[b]) {
      const Buffer& buffer = buffers_[b];
      throw std::invalid_argument(
          what + " writes '" + buffer.name + "', which " +
          (buffer.is_input() ? "is an input" : "op '" + op(buffer.producer).name + "' wrote"));
    }
  }
  const OpId id = num_ops();
  for (OpId earlier : after) {
    if (earlier < 0 || earlier >= id) {
      throw std::invalid_argument(what + " comes after no known earlier op");
    }
  }
  Account(workspace_bytes, "the workspace of " + what);

  Op op{std::move(name),
        std::move(reads),
        std::move(writes),
        workspace_bytes,
        std::move(after),
        {},
        {}};
  std::int64_t hill_bytes = workspace_bytes;
  op.predecessors = op.after;
  for (BufferId b : op.reads) {
    buffers_[b].users.push_back(id);
    if (!buffers_[b].is_input()) op.predecessors.push_back(buffers_[b].producer);
  }
  for (BufferId b : op.writes) {
    buffers_[b].producer = id;
    awaits_producer_[b] = 0;
    hill_bytes += buffers_[b].size_bytes;
  }
  SortUnique(op.predecessors);
  for (OpId p : op.predecessors) ops_[p].successors.push_back(id);
  ops_.push_back(std::move(op));
  hill_bytes_.push_back(hill_bytes);
  return id;
}

OpId Graph::AddContractedOp(std::string name, std::vector<BufferId> reads,
                            std::vector<BufferId> writes, std::int64_t hill_bytes,
                            std::vector<OpId> after) {
  const OpId id = AddOp(std::move(name), std::move(reads), std::move(writes), 0, std::move(after));
  ops_[id].workspace_bytes = hill_bytes - hill_bytes_[id];
  hill_bytes_[id] = hill_bytes;
  return id;
}

void Graph::Validate() const {
  for (BufferId b = 0; b < num_buffers(); ++b) {
    if (awaits_producer_[b]) {
      throw std::invalid_argument("buffer '" + buffer(b).name + "' has no producer");
    }
  }
}

std::int64_t Graph::StartBytes() const {
  std::int64_t bytes = 0;
  for (const Buffer& b : buffers_) {
    if (b.is_input() && (b.kept || !b.users.empty())) bytes += b.size_bytes;
  }
  return bytes;
}

Order Graph::OriginalOrder() const {
  Order order(ops_.size());
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<std::int32_t> PositionsOf(std::span<const OpId> order) {
  std::vector<std::int32_t> positions(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    positions[order[i]] = static_cast<std::int32_t>(i);
  }
  return positions;
}

void CheckName(const std::string& name) {
  static constexpr std::array<std::string_view, 6> kReserved = {"reads", "writes", "workspace",
                                                                "after", "input",  "kept"};
  if (name.empty() || name.find_first_of(" \t\r\n\v\f#") != std::string::npos ||
      std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end()) {
    throw std::invalid_argument("'" + name + "' is not a name");
  }
}

GraphBuilder::GraphBuilder(Graph graph) : graph_(std::move(graph)) {
  for (BufferId b = 0; b < graph_.num_buffers(); ++b) {
    CheckName(graph_.buffer(b).name);
    buffer_ids_.emplace(graph_.buffer(b).name, b);
  }
  for (OpId v = 0; v < graph_.num_ops(); ++v) {
    CheckName(graph_.op(v).name);
    op_ids_.emplace(graph_.op(v).name, v);
  }
}

void GraphBuilder::AddBuffer(const std::string& name, std::int64_t size_bytes, bool input,
                             bool kept) {
  CheckName(name);
  if (buffer_ids_.contains(name)) {
    throw std::invalid_argument("buffer '" + name + "' is declared twice");
  }
  const BufferId id =
      input ? graph_.AddInput(name, size_bytes, kept) : graph_.AddBuffer(name, size_bytes, kept);
  buffer_ids_.emplace(name, id);
}

std::vector<BufferId> GraphBuilder::FindBuffers(const std::string& op,
                                                const std::vector<std::string>& names) const {
  std::vector<BufferId> ids;
  ids.reserve(names.size());
  for (const std::string& name : names) {
    const auto found = buffer_ids_.find(name);
    if (found == buffer_ids_.end()) {
      throw std::invalid_argument("op '" + op + "' names the unknown buffer '" + name + "'");
    }
    ids.push_back(found->second);
  }
  return ids;
}

void GraphBuilder::AddOp(const std::string& name, const std::vector<std::string>& reads,
                         const std::vector<std::string>& writes, std::int64_t workspace_bytes,
                         const std::vector<std::string>& after) {
  CheckName(name);
  if (op_ids_.contains(name)) throw std::invalid_argument("op '" + name + "' is declared twice");
  std::vector<OpId> after_ids;
  after_ids.reserve(after.size());
  for (const std::string& earlier : after) {
    const auto found = op_ids_.find(earlier);
    if (found == op_ids_.end()) {
      throw std::invalid_argument("op '" + name + "' comes after '" + earlier +
                                  "', which is no earlier op");
    }
    after_ids.push_back(found->second);
  }
  const OpId id = graph_.AddOp(name, FindBuffers(name, reads), FindBuffers(name, writes),
                               workspace_bytes, std::move(after_ids));
  op_ids_.emplace(name, id);
}

const Graph& GraphBuilder::Build() const {
  graph_.Validate();
  return graph_;
}

Order GraphBuilder::FindOps(const std::vector<std::string>& names) const {
  Order ops;
  ops.reserve(names.size());
  for (const std::string& name : names) {
    const auto found = op_ids_.find(name);
    if (found == op_ids_.end()) throw std::invalid_argument("there is no op '" + name + "'");
    ops.push_back(found->second);
  }
  return ops;
}

}  // namespace torch_ext::sched
