// Maximum flow, and with it minimum cuts: Dinic's algorithm with 64-bit capacities, no recursion.
//
// A network can be solved, marked, changed, solved on from there and taken back to the mark, so
// that many questions about one network cost little more than their differences. Time: O(nodes^2
// edges) at worst, close to O(edges) per question on the networks of bound.h.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "sched/budget.h"

namespace torch_ext::sched {

class FlowNetwork {
 public:
  static constexpr std::int32_t kSource = 0;
  static constexpr std::int32_t kSink = 1;

  FlowNetwork() : first_edge_(2, -1) {}

  std::int32_t AddNode();
  // Returns the edge's number.
  std::int32_t AddEdge(std::int32_t from, std::int32_t to, std::int64_t capacity);
  void RaiseCapacity(std::int32_t edge, std::int64_t by) { residual_[edge] += by; }

  // Goes on until the flow is maximal, reaches `enough` or the budget ends; returns the flow, which
  // is a lower bound on the maximum in any case.
  std::int64_t MaxFlow(Budget& budget,
                       std::int64_t enough = std::numeric_limits<std::int64_t>::max());
  bool is_maximal() const { return is_maximal_; }
  // If the flow is maximal: is the node on the source's side of the smallest minimum cut?
  bool OnSourceSide(std::int32_t node) const { return level_[node] >= 0; }
  // Per node: is it on the sink's side of every minimum cut?
  std::vector<char> AlwaysOnSinkSide() const;

  void SetMark();
  void ReturnToMark();

 private:
  bool Layer();
  std::int64_t Augment(Budget& budget);

  // Edge e and its reverse e ^ 1.
  std::vector<std::int32_t> to_, next_edge_;
  std::vector<std::int64_t> residual_;
  std::vector<std::int32_t> first_edge_;  // per node
  std::int64_t flow_ = 0;
  bool is_maximal_ = false;
  std::vector<std::int32_t> level_, queue_, current_edge_, path_;
  std::vector<std::int64_t> marked_residual_;
  std::int64_t marked_flow_ = 0;
};

}  // namespace torch_ext::sched
