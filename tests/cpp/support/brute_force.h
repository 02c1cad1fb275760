// Oracles. They share nothing with the code under test but the Graph they read: not State, not
// Simulate, not even Graph::HillBytes.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched::test {

struct NaiveProfile {
  std::int64_t start_bytes = 0;
  std::vector<std::int64_t> hill_bytes;
  std::vector<std::int64_t> valley_bytes;
  std::int64_t peak_bytes = 0;
};

// The memory model read aloud: before every op look at every buffer anew.
NaiveProfile NaiveSimulate(const Graph& graph, std::span<const OpId> order);

// Every linear extension; n! of them where nothing depends on anything.
void ForEachOrder(const Graph& graph, const std::function<void(const Order&)>& visit);

// The lowest peak over all linear extensions, each walked to its end. For up to 9 ops.
std::int64_t LowestPeakOfAllOrders(const Graph& graph);

// Exact answers over all down-sets, as bit masks. For up to 22 ops.
class DownSets {
 public:
  using Mask = std::uint32_t;
  static constexpr std::int64_t kUnreachable = std::numeric_limits<std::int64_t>::max();

  explicit DownSets(const Graph& graph);

  Mask full() const { return static_cast<Mask>((std::uint64_t{1} << predecessors_.size()) - 1); }
  bool IsReady(Mask done, OpId v) const {
    return ((done >> v) & 1) == 0 && (predecessors_[v] & ~done) == 0;
  }
  std::int64_t LiveBytes(Mask done) const;
  std::int64_t HillBytes(Mask done, OpId v) const { return LiveBytes(done) + added_bytes_[v]; }

  // Per mask, kUnreachable if it is no down-set: the lowest peak of the way from nothing to it, and
  // from it to the end (0 for no way at all).
  std::vector<std::int64_t> LowestPeaksTo() const;
  std::vector<std::int64_t> LowestPeaksFrom() const;

  // Of a whole order; the start's bytes for an empty graph.
  std::int64_t LowestPeak() const;

  // Per op: the lowest hill it can have in any down-set in which it may run next.
  std::vector<std::int64_t> LowestHills() const;

 private:
  struct Storage {
    std::int64_t size_bytes;
    Mask producer;  // 0: an input
    Mask users;
    bool kept;
  };

  std::vector<Mask> predecessors_;
  std::vector<std::int64_t> added_bytes_;
  std::vector<Storage> storages_;
};

}  // namespace torch_ext::sched::test
