// The program to schedule: ops and the buffers they read and write.
//
// A Graph is integers only. It knows no framework, no shapes and no names of kernels; adaptors
// (csrc/jit, the text format) translate into it. The order in which ops are added is the *original
// order*, and it is valid by construction: an op may only read what an earlier op wrote.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace torch_ext::sched {

using OpId = std::int32_t;
using BufferId = std::int32_t;
using Order = std::vector<OpId>;  // a permutation of the ops, first to last

inline constexpr OpId kNoOp = -1;
// Sizes, and the sum of all sizes and workspaces of a graph, stay below this.
inline constexpr std::int64_t kSizeLimitBytes = std::int64_t{1} << 62;

// One storage. It lives from its producer (from the start if it has none) until its last user has
// run, or for ever if it is kept.
struct Buffer {
  std::string name;
  std::int64_t size_bytes = 0;
  OpId producer = kNoOp;  // kNoOp: an input, alive from the start
  bool kept = false;      // a result: never freed
  std::vector<OpId> users;

  bool is_input() const { return producer == kNoOp; }
};

// One step of the program; runs once.
struct Op {
  std::string name;
  std::vector<BufferId> reads;
  std::vector<BufferId> writes;
  std::int64_t workspace_bytes = 0;  // scratch taken while it runs and given back
  std::vector<OpId> after;           // must run later than these, although no buffer says so

  // Derived: producers of `reads` and `after`, without repeats; and the reverse of it.
  std::vector<OpId> predecessors;
  std::vector<OpId> successors;
};

class Graph {
 public:
  // An input is alive from the start; any other buffer must be written by exactly one op.
  BufferId AddInput(std::string name, std::int64_t size_bytes, bool kept = false);
  BufferId AddBuffer(std::string name, std::int64_t size_bytes, bool kept = false);

  // Every buffer read must be an input or already written; `after` names earlier ops.
  // Throws std::invalid_argument naming the op otherwise, or when the sizes overflow.
  OpId AddOp(std::string name, std::vector<BufferId> reads, std::vector<BufferId> writes,
             std::int64_t workspace_bytes = 0, std::vector<OpId> after = {});

  // A run of ops as one: it writes what outlives it, and its hill is that of the run, which may lie
  // below the sum of what it writes, because it frees before it writes.
  OpId AddContractedOp(std::string name, std::vector<BufferId> reads, std::vector<BufferId> writes,
                       std::int64_t hill_bytes, std::vector<OpId> after);

  // Throws std::invalid_argument if a buffer that is no input has no producer.
  void Validate() const;

  std::int32_t num_ops() const { return static_cast<std::int32_t>(ops_.size()); }
  std::int32_t num_buffers() const { return static_cast<std::int32_t>(buffers_.size()); }
  const Op& op(OpId id) const { return ops_[static_cast<std::size_t>(id)]; }
  const Buffer& buffer(BufferId id) const { return buffers_[static_cast<std::size_t>(id)]; }
  const std::vector<Op>& ops() const { return ops_; }
  const std::vector<Buffer>& buffers() const { return buffers_; }

  // The memory an op needs on top of what is alive when it starts: its outputs and its workspace.
  // The one place that defines a hill; every scheduler, bound and judge asks here.
  std::int64_t HillBytes(OpId id) const { return hill_bytes_[static_cast<std::size_t>(id)]; }

  // Live bytes before the first op: the inputs that are kept or that somebody reads.
  std::int64_t StartBytes() const;

  Order OriginalOrder() const;

 private:
  BufferId AddAnyBuffer(Buffer buffer, bool is_input);
  void Account(std::int64_t bytes, const std::string& what);

  std::vector<Op> ops_;
  std::vector<Buffer> buffers_;
  std::vector<char> awaits_producer_;  // per buffer: no input, and no op has written it yet
  std::vector<std::int64_t> hill_bytes_;
  std::int64_t total_bytes_ = 0;
};

// The positions of the ops in an order: positions[order[i]] == i.
std::vector<std::int32_t> PositionsOf(std::span<const OpId> order);

// Builds a Graph from names; used by the text format and by the Python class Graph.
// Every method throws std::invalid_argument with one sentence that names the offender.
class GraphBuilder {
 public:
  GraphBuilder() = default;
  explicit GraphBuilder(Graph graph);  // goes on from there; names must be unique tokens

  void AddBuffer(const std::string& name, std::int64_t size_bytes, bool input, bool kept);
  void AddOp(const std::string& name, const std::vector<std::string>& reads,
             const std::vector<std::string>& writes, std::int64_t workspace_bytes,
             const std::vector<std::string>& after);
  // The graph so far; throws if a buffer has no producer.
  const Graph& Build() const;
  Order FindOps(const std::vector<std::string>& names) const;

 private:
  std::vector<BufferId> FindBuffers(const std::string& op,
                                    const std::vector<std::string>& names) const;

  Graph graph_;
  std::unordered_map<std::string, BufferId> buffer_ids_;
  std::unordered_map<std::string, OpId> op_ids_;
};

// Throws std::invalid_argument unless `name` is a token of the text format: not empty, no white
// space, no '#', none of its reserved words.
void CheckName(const std::string& name);

}  // namespace torch_ext::sched
