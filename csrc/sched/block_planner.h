// One block of a graph, planned by ever dearer means until its order is proven or work is spent.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "sched/bound.h"
#include "sched/budget.h"
#include "sched/decompose.h"
#include "sched/dominant.h"
#include "sched/down_set.h"
#include "sched/graph.h"
#include "sched/improve.h"
#include "sched/names.h"
#include "sched/rules.h"
#include "sched/search.h"
#include "sched/tighten.h"

namespace torch_ext::sched {

class BlockPlanner {
 public:
  BlockPlanner(Slice slice, const Rules& rules, Budget& budget);

  const Graph& graph() const { return slice_.graph; }
  const Slice& slice() const { return slice_; }
  const Order& order() const { return order_; }
  std::int64_t peak_bytes() const { return peak_bytes_; }
  std::int64_t bound_bytes() const { return bound_bytes_; }
  Method method() const { return method_; }
  Proof proof() const { return proof_; }
  bool is_optimal() const { return bound_bytes_ == peak_bytes_; }
  bool is_finished() const {
    return is_optimal() || exhausted_ || at_its_end_ || !budget_.HasWork();
  }

  // The first bound, if it has not been computed yet.
  void Bound();
  // The next stage: something cheap at first, rounds of ever more work later. A peak of
  // `floor_bytes` is low enough: another block reaches it anyway.
  void Improve(std::int64_t floor_bytes);
  // Drops what the searches remember; they start again if the block is improved further.
  void ReleaseMemory();
  // Replaces the order by one closer to the original with no hill above `limit_bytes`.
  void GoBack(std::int64_t limit_bytes, Budget& budget);

 private:
  // One that decides asks only whether an order is below the best peak so far: all lower hills are
  // the same to it, so it takes more safe steps, but raises no bound on the way.
  struct ExactSearch {
    Direction direction;
    bool decides;
    std::optional<DownSetSearch> search = {};
    Order ops = {};                    // of the graph it searches, in ids of the reduced graph
    std::int32_t num_precedences = 0;  // of that graph
    std::int64_t below_bytes = 0;      // the peak when it began
    bool out_of_memory = false;
  };

  // What the searches see: the reduced graph, with the precedences found.
  const Graph& searched_graph() const { return tightener_ ? tightener_->graph() : reduced_.graph; }
  std::int32_t num_precedences() const { return tightener_ ? tightener_->num_precedences() : 0; }

  // The first stages, each once.
  void ReduceRegions(std::int64_t floor_bytes);
  void RunSimpleRules(std::int64_t floor_bytes);
  void RunFirstBeam(std::int64_t floor_bytes);

  // Then rounds: each technique in turn, with its share of the round's work.
  struct Technique {
    double share;
    void (BlockPlanner::*run)(std::int64_t floor_bytes, double work);
  };
  static const std::array<void (BlockPlanner::*)(std::int64_t), 3> kStages;
  static const std::array<Technique, 6> kTechniques;
  void Round(std::int64_t floor_bytes);
  void RaiseClosureBound(std::int64_t floor_bytes, double work);
  void RaiseNeighbourBound(std::int64_t floor_bytes, double work);
  void ImproveAroundPeak(std::int64_t floor_bytes, double work);
  void FindPrecedences(std::int64_t floor_bytes, double work);
  void RunWiderBeam(std::int64_t floor_bytes, double work);
  void SearchExactly(std::int64_t floor_bytes, double work);

  void Beam(std::int32_t width, std::int64_t floor_bytes, std::int64_t work);
  void Exhaust(ExactSearch& exact, std::int64_t floor_bytes, std::int64_t work);
  bool IsStale(const ExactSearch& exact) const;
  // An order of the reduced graph; `method` names what found it.
  void Offer(const std::optional<Order>& order, Method method);
  void OfferExpanded(Order order, std::int64_t peak_bytes, Method method);
  void RaiseBound(std::int64_t bytes, Proof proof);

  Slice slice_;
  Rules rules_;
  Budget& budget_;
  Order order_;
  std::int64_t peak_bytes_;
  std::int64_t bound_bytes_ = 0;
  Method method_ = Method::kOriginal;
  Proof proof_ = Proof::kClosure;  // of the bound 0, should the peak be 0
  std::size_t stage_ = 0;
  int round_ = 0;
  std::int64_t unneeded_work_ = 0;  // of this round, that precedences left to the search
  bool exhausted_ = false;          // no order is lower
  bool at_its_end_ = false;         // nothing is left to try

  Contraction reduced_;        // what is left to search, from stage 1 on
  std::vector<Order> starts_;  // orders of it, for the improvement
  Order reduced_order_;        // the best of it
  std::optional<ClosureBounds> bounds_, reduced_bounds_;
  std::optional<Improver> improver_;
  bool improvement_rests_ = false;  // its last round changed nothing
  std::optional<Tightener> tightener_;
  std::int64_t tightened_below_ = 0;  // nothing more follows from this peak
  ExactSearch deciding_[2] = {{Direction::kForward, true}, {Direction::kBackward, true}};
  ExactSearch bounding_[2] = {{Direction::kForward, false}, {Direction::kBackward, false}};
};

}  // namespace torch_ext::sched
