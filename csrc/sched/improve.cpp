#include "sched/improve.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "sched/merge.h"
#include "sched/random.h"
#include "sched/scored_order.h"

namespace torch_ext::sched {
namespace {

// 2^(40 hill / peak) in fixed point: piecewise linear, integers only, below 2^52, so that 2^10 of
// them can be added.
class SteepCost {
 public:
  explicit SteepCost(std::int64_t peak_bytes) {
    std::int64_t peak = std::max<std::int64_t>(peak_bytes, 1);
    for (; peak >= std::int64_t{1} << 31; peak >>= 1) ++right_;
    for (; peak < std::int64_t{1} << 30; peak <<= 1) ++left_;
    factor_ = (std::int64_t{40} << (kFraction + 31)) / (peak + 1);
  }
  std::int64_t operator()(std::int64_t hill_bytes) const {
    const std::int64_t exponent = (((hill_bytes >> right_) << left_) * factor_) >> 31;
    const std::int64_t fraction = exponent & ((std::int64_t{1} << kFraction) - 1);
    return ((std::int64_t{1} << kFraction) + fraction) << (exponent >> kFraction);
  }

 private:
  static constexpr int kFraction = 12;
  int right_ = 0, left_ = 0;
  std::int64_t factor_;
};

constexpr std::int32_t kMostOps = 400;  // of a window, about: up to half as many again
constexpr std::size_t kMostSearches = 4;

}  // namespace

// The search from one order.
class Improver::Search {
 public:
  Search(const Graph& graph, Order order, std::uint64_t seed)
      : scored_(graph, std::move(order)), random_(seed), peak_bytes_(scored_.peak_bytes()) {}

  const ScoredOrder& scored() const { return scored_; }
  std::int64_t peak_bytes() const { return peak_bytes_; }

  // One step: one window, one subset.
  void Step(Budget& budget) { Merge(budget, peak_bytes_, SteepCost(peak_bytes_)); }

  // A subset of the whole order as it is here, the rest as it is in `other`.
  std::optional<Order> Cross(const Search& other, Budget& budget) {
    const std::int32_t n = scored_.size();
    PickSubset(0, n, random_.Below(n));
    std::vector<OpId> mine, others;
    for (std::int32_t i = 0; i < n; ++i) {
      if (in_subset_[i]) mine.push_back(scored_.order()[i]);
    }
    for (OpId v : other.scored_.order()) {
      if (!in_subset_[scored_.position(v)]) others.push_back(v);
    }
    budget.Spend(static_cast<std::int64_t>((mine.size() + 1) * (others.size() + 1)) / 4 + 4 * n);
    const std::int64_t limit = std::max(peak_bytes_, other.peak_bytes_);
    const MergeGrid grid(scored_, 0, mine, others);
    // Of long orders only the highest hills can be told apart: the sum must not overflow.
    const SteepCost steep(limit);
    const int shift = n > 512 ? 8 : 0;
    return grid.Cheapest(limit, [&](std::size_t, std::size_t, OpId, std::int64_t hill) {
      return steep(hill) >> shift;
    });
  }

  // A few random merges around the peak that may go a little above it.
  Search Kicked(std::uint64_t seed, Budget& budget) const {
    Search kicked = *this;
    kicked.random_ = Random(seed);
    const std::int64_t limit = peak_bytes_ + peak_bytes_ / 16;
    for (int i = 0; i < 3; ++i) {
      kicked.Merge(budget, limit, [&](std::int64_t) { return kicked.random_.Below(1024); });
    }
    return kicked;
  }

 private:
  // Interleaves a random subset of a random window with the rest of it at the least cost.
  template <typename Cost>
  void Merge(Budget& budget, std::int64_t limit_bytes, const Cost& cost) {
    const std::int32_t focus = PickFocus();
    const std::int32_t width = 2 + random_.LogUniform(std::min(kMostOps, scored_.size()) / 2);
    const std::int32_t begin = std::max(0, focus - random_.Below(width) - width / 2);
    const std::int32_t end = std::min(scored_.size(), focus + 1 + random_.Below(width) + width / 2);
    PickSubset(begin, end, focus);
    std::vector<OpId> subset, rest;
    for (std::int32_t i = begin; i < end; ++i) {
      (in_subset_[i - begin] ? subset : rest).push_back(scored_.order()[i]);
    }
    budget.Spend(static_cast<std::int64_t>((subset.size() + 1) * (rest.size() + 1)) / 4 +
                 4 * (end - begin) + scored_.size() / 32 + std::exchange(num_looks_, 0) / 8 + 1);
    if (subset.empty() || rest.empty()) return;
    const MergeGrid grid(scored_, begin, subset, rest);
    const std::optional<Order> merged = grid.Cheapest(
        limit_bytes, [&](std::size_t, std::size_t, OpId, std::int64_t hill) { return cost(hill); });
    if (!merged) return;
    scored_.Replace(begin, *merged);
    peak_bytes_ = scored_.peak_bytes();
  }

  // The peak mostly, else some other high place.
  std::int32_t PickFocus() {
    const std::int32_t peak_at = scored_.peak_position();
    if (random_.Below(4) != 0) return peak_at;
    const std::int32_t other = random_.Below(scored_.size());
    return scored_.hill_bytes()[other] >= peak_bytes_ - peak_bytes_ / 16 ? other : peak_at;
  }

  // Sets in_subset_ for the ops at [begin, end). Subsets that belong together are the ones that can
  // move: clusters of neighbours, what an op needs or what needs it, a run of ops, and unions of
  // random clusters.
  void PickSubset(std::int32_t begin, std::int32_t end, std::int32_t focus) {
    const std::int32_t size = end - begin;
    in_subset_.assign(static_cast<std::size_t>(size), 0);
    switch (random_.Below(8)) {
      case 0: {
        const std::int32_t length = random_.LogUniform(size);
        const std::int32_t first = random_.Below(size - length + 1);
        std::fill_n(in_subset_.begin() + first, length, 1);
        break;
      }
      case 1:
        Reach(begin, end, begin + random_.Below(size), /*backward=*/true);
        break;
      case 2:
        Reach(begin, end, begin + random_.Below(size), /*backward=*/false);
        break;
      case 3:
      case 4:
      case 5:
        Contract(begin, end);
        break;
      default:
        Cluster(begin, end, random_.Below(2) == 0 ? focus : begin + random_.Below(size),
                random_.LogUniform(std::max(1, size / 2)));
        break;
    }
  }

  void Reach(std::int32_t begin, std::int32_t end, std::int32_t from, bool backward) {
    in_subset_[from - begin] = 1;
    std::vector<OpId> stack{scored_.order()[from]};
    while (!stack.empty()) {
      const Op& op = scored_.graph().op(stack.back());
      stack.pop_back();
      num_looks_ += std::ssize(backward ? op.predecessors : op.successors);
      for (OpId u : backward ? op.predecessors : op.successors) {
        const std::int32_t at = scored_.position(u);
        if (at < begin || at >= end || in_subset_[at - begin]) continue;
        in_subset_[at - begin] = 1;
        stack.push_back(u);
      }
    }
  }

  // Breadth-first over edges in a random sequence, up to `most` ops.
  void Cluster(std::int32_t begin, std::int32_t end, std::int32_t from, std::int32_t most) {
    in_subset_[from - begin] = 1;
    std::vector<OpId> frontier{scored_.order()[from]};
    std::int32_t count = 1;
    while (!frontier.empty() && count < most) {
      const auto pick =
          static_cast<std::size_t>(random_.Below(static_cast<std::int32_t>(frontier.size())));
      const OpId v = frontier[pick];
      frontier[pick] = frontier.back();
      frontier.pop_back();
      const Op& op = scored_.graph().op(v);
      for (const std::vector<OpId>* neighbours : {&op.predecessors, &op.successors}) {
        num_looks_ += std::ssize(*neighbours);
        for (OpId u : *neighbours) {
          const std::int32_t at = scored_.position(u);
          if (at < begin || at >= end || in_subset_[at - begin] || count >= most) continue;
          in_subset_[at - begin] = 1;
          ++count;
          frontier.push_back(u);
        }
      }
    }
  }

  // Joins the ends of random edges until few clusters are left; each is in or out by a coin.
  void Contract(std::int32_t begin, std::int32_t end) {
    const std::int32_t size = end - begin;
    leader_.resize(static_cast<std::size_t>(size));
    for (std::int32_t i = 0; i < size; ++i) leader_[i] = i;
    const auto find = [&](std::int32_t x) {
      while (leader_[x] != x) x = leader_[x] = leader_[leader_[x]];
      return x;
    };
    edges_.clear();
    for (std::int32_t i = 0; i < size; ++i) {
      for (OpId p : scored_.graph().op(scored_.order()[begin + i]).predecessors) {
        const std::int32_t at = scored_.position(p);
        if (at >= begin) edges_.emplace_back(at - begin, i);
      }
    }
    std::int32_t clusters = size;
    const std::int32_t enough = 1 + random_.LogUniform(size);
    for (std::size_t left = edges_.size(); left > 0 && clusters > enough; --left) {
      const auto pick = static_cast<std::size_t>(random_.Below(static_cast<std::int32_t>(left)));
      const std::int32_t a = find(edges_[pick].first), b = find(edges_[pick].second);
      std::swap(edges_[pick], edges_[left - 1]);
      if (a == b) continue;
      leader_[a] = b;
      --clusters;
    }
    const std::int32_t chance = random_.Below(2) == 0 ? 2 : 4;  // one in
    for (std::int32_t i = 0; i < size; ++i) {
      if (find(i) == i) in_subset_[i] = random_.Below(chance) == 0;
    }
    for (std::int32_t i = 0; i < size; ++i) in_subset_[i] = in_subset_[find(i)];
  }

  ScoredOrder scored_;
  Random random_;
  std::int64_t peak_bytes_;
  std::vector<char> in_subset_;  // per position of the window
  std::int64_t num_looks_ = 0;   // at neighbours, not yet spent; few but for hubs
  std::vector<std::int32_t> leader_;
  std::vector<std::pair<std::int32_t, std::int32_t>> edges_;
};

Improver::Improver(const Graph& graph, std::vector<Order> orders) {
  std::ranges::sort(orders);
  orders.erase(std::unique(orders.begin(), orders.end()), orders.end());
  for (Order& order : orders) {
    searches_.emplace_back(graph, std::move(order), /*seed=*/searches_.size());
  }
  std::ranges::stable_sort(searches_, {}, &Search::peak_bytes);
  if (searches_.size() > kMostSearches) {
    searches_.erase(searches_.begin() + kMostSearches, searches_.end());
  }
}
Improver::~Improver() = default;
Improver::Improver(Improver&&) noexcept = default;

void Improver::Run(std::int64_t floor_bytes, Budget& budget) {
  // A round gives every order some steps. Then a child of two orders, or of one and a kick, gets
  // more of them and takes the place of the worst order unless it is worse.
  constexpr int kSteps = 200;
  constexpr int kStepsOfChild = 1000;
  constexpr std::int32_t kMostOpsToCross = 1500;
  const auto step = [&](Search& search, int steps) {
    for (int i = 0; i < steps && search.peak_bytes() > floor_bytes && budget.HasWork(); ++i) {
      search.Step(budget);
    }
  };
  const std::int32_t n = searches_.front().scored().size();
  if (n < 2) return;
  while (searches_.front().peak_bytes() > floor_bytes && budget.HasWork()) {
    for (Search& search : searches_) step(search, kSteps);
    Random random(++round_);
    const auto count = static_cast<std::int32_t>(searches_.size());
    const std::int32_t parent = random.Below(count);
    if (count > 1 && n <= kMostOpsToCross && round_ % 2 == 0) {
      const std::int32_t other = (parent + 1 + random.Below(count - 1)) % count;
      if (std::optional<Order> order = searches_[parent].Cross(searches_[other], budget)) {
        Search child(searches_[parent].scored().graph(), std::move(*order), random.Next());
        step(child, kStepsOfChild);
        Admit(std::move(child));
      }
    } else {
      Search child = searches_[parent].Kicked(random.Next(), budget);
      step(child, kStepsOfChild);
      Admit(std::move(child));
    }
    std::ranges::stable_sort(searches_, {}, &Search::peak_bytes);
  }
}

void Improver::Admit(Search child) {
  for (const Search& search : searches_) {
    if (search.scored().order() == child.scored().order()) return;
  }
  if (searches_.size() < kMostSearches) {
    searches_.push_back(std::move(child));
  } else if (child.peak_bytes() <= searches_.back().peak_bytes()) {
    searches_.back() = std::move(child);
  }
}

const Order& Improver::best() const {
  return searches_.front().scored().order();
}
std::int64_t Improver::peak_bytes() const {
  return searches_.front().peak_bytes();
}

}  // namespace torch_ext::sched
