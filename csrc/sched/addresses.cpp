#include "sched/addresses.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "sched/address_search.h"
#include "sched/random.h"

namespace torch_ext::sched {
namespace {

using Index = std::int32_t;

void RequireLifetimes(std::span<const Lifetime> lifetimes) {
  for (std::size_t i = 0; i < lifetimes.size(); ++i) {
    if (lifetimes[i].bytes > 0 && lifetimes[i].begin < lifetimes[i].end) continue;
    throw std::invalid_argument("lifetime " + std::to_string(i) +
                                " needs more than 0 bytes and an end behind its begin");
  }
}

}  // namespace

std::int64_t HeightBytes(std::span<const Lifetime> lifetimes,
                         std::span<const std::int64_t> offsets) {
  RequireLifetimes(lifetimes);
  if (offsets.size() != lifetimes.size()) {
    throw std::invalid_argument(std::to_string(offsets.size()) + " offsets for " +
                                std::to_string(lifetimes.size()) + " lifetimes");
  }
  std::int64_t height = 0;
  std::map<std::int64_t, Index> live;  // by offset
  for (const LifetimeEvent& event : EventsOf(lifetimes)) {
    const std::int64_t offset = offsets[event.lifetime];
    if (!event.is_birth) {
      live.erase(offset);
      continue;
    }
    if (offset < 0) {
      throw std::invalid_argument("lifetime " + std::to_string(event.lifetime) +
                                  " lies below offset 0");
    }
    const std::int64_t top = offset + lifetimes[event.lifetime].bytes;
    const auto above = live.lower_bound(offset);
    std::optional<Index> other;
    if (above != live.end() && above->first < top) other = above->second;
    if (above != live.begin()) {
      const Index below = std::prev(above)->second;
      if (offsets[below] + lifetimes[below].bytes > offset) other = below;
    }
    if (other) {
      throw std::invalid_argument("lifetimes " + std::to_string(std::min(*other, event.lifetime)) +
                                  " and " + std::to_string(std::max(*other, event.lifetime)) +
                                  " share an address at step " + std::to_string(event.step));
    }
    live.emplace(offset, event.lifetime);
    height = std::max(height, top);
  }
  return height;
}

std::int64_t MostLiveBytes(std::span<const Lifetime> lifetimes) {
  std::int64_t live = 0, most = 0;
  for (const LifetimeEvent& event : EventsOf(lifetimes)) {
    const std::int64_t bytes = lifetimes[event.lifetime].bytes;
    live += event.is_birth ? bytes : -bytes;
    most = std::max(most, live);
  }
  return most;
}

namespace {

struct Placement {
  Offsets offsets;
  std::int64_t height_bytes = 0;
};

// The lowest gap among what is placed and meets, buffer by buffer; `placed` in the order of
// offsets.
class LowestFit {
 public:
  explicit LowestFit(std::span<const Lifetime> lifetimes) : lifetimes_(lifetimes) {
    placement_.offsets.resize(lifetimes.size());
  }

  void Place(Index i) {
    const Lifetime& lifetime = lifetimes_[i];
    std::int64_t offset = 0;
    for (const Placed& other : placed_) {
      if (!other.lifetime.Meets(lifetime)) continue;
      if (other.offset >= offset + lifetime.bytes) break;
      offset = std::max(offset, other.offset + other.lifetime.bytes);
    }
    const auto behind = std::upper_bound(
        placed_.begin(), placed_.end(), offset,
        [](std::int64_t value, const Placed& other) { return value < other.offset; });
    placed_.insert(behind, {offset, lifetime});
    placement_.offsets[i] = offset;
    placement_.height_bytes = std::max(placement_.height_bytes, offset + lifetime.bytes);
  }
  // Where all that is placed meets in one step, so that offsets differ.
  void Forget(Index i) {
    std::erase_if(placed_,
                  [&](const Placed& other) { return other.offset == placement_.offsets[i]; });
  }
  const Placement& placement() const { return placement_; }

 private:
  struct Placed {
    std::int64_t offset;
    Lifetime lifetime;
  };
  std::span<const Lifetime> lifetimes_;
  std::vector<Placed> placed_;
  Placement placement_;
};

// As an allocator would that knows sizes alone, and always takes the lowest gap.
Placement ByBirth(std::span<const Lifetime> lifetimes) {
  LowestFit fit(lifetimes);
  for (const LifetimeEvent& event : EventsOf(lifetimes)) {
    if (event.is_birth) {
      fit.Place(event.lifetime);
    } else {
      fit.Forget(event.lifetime);
    }
  }
  return fit.placement();
}

Placement InOrder(std::span<const Lifetime> lifetimes, std::span<const Index> order) {
  LowestFit fit(lifetimes);
  for (const Index i : order) fit.Place(i);
  return fit.placement();
}

// From the best of some orders on: what stands at the top moves forward.
class Climb {
 public:
  explicit Climb(std::span<const Lifetime> lifetimes) : lifetimes_(lifetimes) {
    const auto width = [](const Lifetime& l) { return static_cast<double>(l.end - l.begin); };
    const auto bytes = [](const Lifetime& l) { return static_cast<double>(l.bytes); };
    TryLargestFirst([](const Lifetime& l) { return std::pair(l.bytes, l.end); });
    TryLargestFirst(bytes);
    TryLargestFirst([&](const Lifetime& l) { return width(l) * bytes(l); });
    TryLargestFirst(width);
  }

  const Placement& placement() const { return placement_; }

  // What a placement costs, in units of work: each buffer looks at those below it.
  std::int64_t Work() const {
    const auto n = static_cast<std::int64_t>(lifetimes_.size());
    return n + n * n / 64;
  }

  // One step; false if none could help.
  bool Step() {
    std::vector<Index> at_top;  // positions
    for (Index p = 0; p < static_cast<Index>(order_.size()); ++p) {
      if (TopOf(order_[p]) == placement_.height_bytes) at_top.push_back(p);
    }
    const Index from = at_top[random_.Below(static_cast<Index>(at_top.size()))];
    if (from == 0) return false;                       // it stands on the floor
    const Index to = from - random_.LogUniform(from);  // near places as often as far ones
    std::vector<Index> next = order_;
    std::rotate(next.begin() + to, next.begin() + from, next.begin() + from + 1);
    Placement placement = InOrder(lifetimes_, next);
    if (placement.height_bytes <= placement_.height_bytes) {
      placement_ = std::move(placement);
      order_ = std::move(next);
    }
    return true;
  }

 private:
  std::int64_t TopOf(Index i) const { return placement_.offsets[i] + lifetimes_[i].bytes; }

  template <typename Key>
  void TryLargestFirst(const Key& key) {
    std::vector<Index> order(lifetimes_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](Index a, Index b) { return key(lifetimes_[a]) > key(lifetimes_[b]); });
    Placement placement = InOrder(lifetimes_, order);
    if (!order_.empty() && placement.height_bytes >= placement_.height_bytes) return;
    placement_ = std::move(placement);
    order_ = std::move(order);
  }

  std::span<const Lifetime> lifetimes_;
  Placement placement_;
  std::vector<Index> order_;
  Random random_{1};
};

// One part of a problem: lifetimes no step of which is shared with another part.
class Part {
 public:
  explicit Part(std::vector<Lifetime> lifetimes)
      : lifetimes_(std::move(lifetimes)),
        best_(ByBirth(lifetimes_)),
        bound_bytes_(MostLiveBytes(lifetimes_)) {
    for (const Lifetime& lifetime : lifetimes_) unit_bytes_ = std::gcd(unit_bytes_, lifetime.bytes);
  }

  const Placement& best() const { return best_; }
  std::int64_t bound_bytes() const { return bound_bytes_; }

  // A height of at most `enough_bytes`, or the least that is found before the budget ends: in
  // rounds of twice the work each, searches between what is proven and what is found, then climbs.
  void Improve(std::int64_t enough_bytes, Budget& budget) {
    enough_bytes_ = enough_bytes;
    if (IsDone() || !budget.HasWork()) return;
    Climb climb(lifetimes_);
    budget.Spend(4 * climb.Work());
    Keep(climb.placement());
    for (std::int64_t work = 100'000; !IsDone() && budget.HasWork(); work *= 2) {
      Search(work, budget);
      Budget part = budget.Part(work / 4);
      while (!IsDone() && part.Spend(climb.Work()) && climb.Step()) Keep(climb.placement());
      budget.Spend(std::max<std::int64_t>(part.spent(), 1));
    }
  }

 private:
  bool IsDone() const { return best_.height_bytes <= std::max(enough_bytes_, bound_bytes_); }
  void Keep(Placement placement) {
    if (placement.height_bytes < best_.height_bytes) best_ = std::move(placement);
  }

  // The lower end of what is open first, which most programs reach; then halves, with less work
  // each.
  void Search(std::int64_t first_work, Budget& budget) {
    std::int64_t work = first_work;
    // Not yet tried in this round; heights are sums of sizes, hence multiples of their divisor.
    std::int64_t open_bytes = std::max(enough_bytes_, bound_bytes_);
    std::int64_t target = open_bytes;
    while (open_bytes < best_.height_bytes && budget.HasWork()) {
      Budget part = budget.Part(work);
      work = first_work / 16;
      Offsets offsets;
      const Fit fit = FindAddresses(lifetimes_, target, offsets, part);
      budget.Spend(std::max<std::int64_t>(part.spent(), 1));
      if (fit == Fit::kFound) {
        const std::int64_t height = HeightBytes(lifetimes_, offsets);
        Keep({std::move(offsets), height});
      } else {
        open_bytes = target / unit_bytes_ * unit_bytes_ + unit_bytes_;
        if (fit == Fit::kImpossible) bound_bytes_ = std::max(bound_bytes_, open_bytes);
      }
      target = open_bytes + (best_.height_bytes - open_bytes) / 2 / unit_bytes_ * unit_bytes_;
    }
  }

  std::vector<Lifetime> lifetimes_;
  Placement best_;
  std::int64_t bound_bytes_;
  std::int64_t unit_bytes_ = 0;
  std::int64_t enough_bytes_ = 0;
};

}  // namespace

AddressPlan PlanAddresses(std::span<const Lifetime> lifetimes, Budget& budget,
                          std::int64_t enough_bytes) {
  RequireLifetimes(lifetimes);
  std::vector<std::vector<Index>> members;
  Index num_live = 0;
  for (const LifetimeEvent& event : EventsOf(lifetimes)) {
    if (!event.is_birth) {
      --num_live;
      continue;
    }
    if (num_live++ == 0) members.emplace_back();
    members.back().push_back(event.lifetime);
  }
  std::vector<Part> parts;
  AddressPlan plan{.offsets = Offsets(lifetimes.size())};
  for (const std::vector<Index>& indices : members) {
    std::vector<Lifetime> own;
    for (const Index i : indices) own.push_back(lifetimes[i]);
    parts.emplace_back(std::move(own));
    plan.bound_bytes = std::max(plan.bound_bytes, parts.back().bound_bytes());
  }
  for (std::size_t k = 0; k < parts.size(); ++k) {
    Part& part = parts[k];
    const std::int64_t enough = std::max(enough_bytes, plan.bound_bytes);
    if (part.best().height_bytes > enough) {
      part.Improve(enough, budget);
      plan.bound_bytes = std::max(plan.bound_bytes, part.bound_bytes());
    }
    for (std::size_t i = 0; i < members[k].size(); ++i) {
      plan.offsets[members[k][i]] = part.best().offsets[i];
    }
    plan.height_bytes = std::max(plan.height_bytes, part.best().height_bytes);
  }
  return plan;
}

}  // namespace torch_ext::sched
