// MakePlan(graph, options): the one entry point. It cuts the graph into blocks and gives the work
// to the block that is worst at the moment (block_planner.h says how it is spent), until that
// cannot be lowered.
//
// Every order that leaves Plan has passed the judge (simulate.h), and none has a higher peak than
// the original order.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sched/graph.h"
#include "sched/names.h"
#include "sched/rules.h"

namespace torch_ext::sched {

enum class Scope {
  kAll,         // any op may move
  kBottleneck,  // only ops around the op that sets the peak, as long as the peak falls
};

struct PlanOptions {
  Scope scope = Scope::kAll;
  double time_budget_seconds = 2.0;                 // turned into counted work, see budget.h
  std::optional<std::int64_t> memory_budget_bytes;  // stop as soon as the peak is no higher
  std::int64_t search_memory_bytes = std::int64_t{1} << 30;
  Rules rules;
};

// A part of the graph that was scheduled on its own.
struct Region {
  RegionKind kind = RegionKind::kSeries;  // never kOp
  std::int32_t num_ops = 0;
  Method method = Method::kOriginal;  // what found its order
  Proof proof = Proof::kNone;         // what proves its peak the lowest
  std::int64_t peak_bytes = 0;
};

// The op that sets the limit: no order can run it with less memory than `bytes`.
struct Bottleneck {
  OpId op = kNoOp;
  std::int64_t bytes = 0;
  std::vector<BufferId> buffers;  // alive together in the cheapest state in which it can run
};

struct Plan {
  Order order;
  std::int64_t original_peak_bytes = 0;
  std::int64_t peak_bytes = 0;
  std::int64_t lower_bound_bytes = 0;
  Method method = Method::kOriginal;     // what lowered the region that set the peak
  Proof proof = Proof::kNone;            // the argument for the lower bound; none if below the peak
  std::optional<Bottleneck> bottleneck;  // nothing for an empty graph, or if none is known
  std::int32_t moved_ops = 0;
  std::vector<Region> regions;
  std::optional<bool> budget_met;  // with a memory budget
  double seconds = 0;              // spent planning
  bool clock_stopped = false;      // the clock, not the counted work, ended the search

  bool is_optimal() const { return peak_bytes == lower_bound_bytes; }

  // Nothing is proven of the plan nor of its regions.
  void DropProof() {
    proof = Proof::kNone;
    for (Region& region : regions) region.proof = Proof::kNone;
  }
};

Plan MakePlan(const Graph& graph, const PlanOptions& options = {});

// The ops of `original` order around its peak, cut out as a graph: the series block of the op that
// sets the peak. Peaks are absolute.
Graph ExtractBottleneck(const Graph& graph);

}  // namespace torch_ext::sched
