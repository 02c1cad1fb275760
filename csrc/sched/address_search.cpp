#include "sched/address_search.h"

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

namespace torch_ext::sched {
namespace {

using Index = std::int32_t;

// Steps between which nothing is born after something has died: largest sets of buffers that meet
// each other. Two buffers meet if and only if they share a section.
struct Sections {
  struct Range {
    Index begin, end;
  };
  std::vector<Range> of;                    // per lifetime
  std::vector<std::vector<Index>> members;  // per section

  explicit Sections(std::span<const Lifetime> lifetimes) : of(lifetimes.size()) {
    Index section = 0;
    bool has_births = false;  // since the last death
    for (const LifetimeEvent& event : EventsOf(lifetimes)) {
      if (event.is_birth) {
        of[event.lifetime].begin = section;
        has_births = true;
      } else {
        if (has_births) ++section;
        has_births = false;
        of[event.lifetime].end = section;
      }
    }
    members.resize(section);
    for (Index i = 0; i < static_cast<Index>(lifetimes.size()); ++i) {
      for (Index s = of[i].begin; s < of[i].end; ++s) members[s].push_back(i);
    }
  }
};

// What comes first among buffers that may be placed equally low.
enum class Key { kWidth, kArea, kTotal };
using Keys = std::array<Key, 3>;
constexpr std::array<Keys, 3> kRankings = {{{Key::kWidth, Key::kArea, Key::kTotal},
                                            {Key::kTotal, Key::kArea, Key::kWidth},
                                            {Key::kTotal, Key::kWidth, Key::kArea}}};

class Search {
 public:
  Search(std::span<const Lifetime> lifetimes, const Sections& sections, std::int64_t capacity_bytes,
         const Keys& ranking, Budget& budget)
      : lifetimes_(lifetimes),
        sections_(sections),
        capacity_bytes_(capacity_bytes),
        ranking_(ranking),
        budget_(budget),
        offsets_(lifetimes.size(), kUnplaced),
        lowest_(lifetimes.size(), 0),
        floor_(sections.members.size(), 0),
        unplaced_bytes_(sections.members.size(), 0),
        crossing_(sections.members.size(), 0) {
    for (std::size_t i = 0; i < lifetimes.size(); ++i) {
      const auto [begin, end] = sections.of[i];
      for (Index s = begin; s < end; ++s) unplaced_bytes_[s] += lifetimes[i].bytes;
      for (Index s = begin; s + 1 < end; ++s) ++crossing_[s];
    }
  }

  Fit Run() {
    Part all{0, static_cast<Index>(sections_.members.size()), {}};
    for (Index i = 0; i < static_cast<Index>(lifetimes_.size()); ++i) all.unplaced.push_back(i);
    for (const std::int64_t bytes : unplaced_bytes_) {
      if (bytes > capacity_bytes_) return Fit::kImpossible;
    }
    return SolveParts(all, Cuts(all.begin, all.end));
  }
  const Offsets& offsets() const { return offsets_; }

 private:
  static constexpr std::int64_t kUnplaced = -1;

  // Sections [begin, end), and what is to be placed there, in the order of rank.
  struct Part {
    Index begin, end;
    std::vector<Index> unplaced;
  };
  struct Candidate {
    std::int64_t offset;
    Index rank;
  };
  enum class Field { kOffset, kLowest, kFloor, kUnplacedBytes, kCrossing };
  struct Change {
    Field field;
    Index index;
    std::int64_t before;
  };

  std::int64_t& At(Field field, Index index) {
    switch (field) {
      case Field::kOffset:
        return offsets_[index];
      case Field::kLowest:
        return lowest_[index];
      case Field::kFloor:
        return floor_[index];
      case Field::kUnplacedBytes:
        return unplaced_bytes_[index];
      case Field::kCrossing:
        return crossing_[index];
    }
    return offsets_[index];
  }
  void Set(Field field, Index index, std::int64_t value) {
    std::int64_t& place = At(field, index);
    changes_.push_back({field, index, place});
    place = value;
  }
  void UndoTo(std::size_t mark) {
    for (; changes_.size() > mark; changes_.pop_back()) {
      const Change& change = changes_.back();
      At(change.field, change.index) = change.before;
    }
  }

  // Where sections [begin, end) fall apart.
  std::vector<Index> Cuts(Index begin, Index end) const {
    std::vector<Index> cuts;
    for (Index s = begin; s + 1 < end; ++s) {
      if (crossing_[s] == 0) cuts.push_back(s + 1);
    }
    return cuts;
  }

  // The independent problems into which `cuts` divide a part, one after the other.
  Fit SolveParts(const Part& whole, std::vector<Index> cuts) {
    cuts.push_back(whole.end);
    Index begin = whole.begin;
    for (const Index end : cuts) {
      Part part{begin, end, {}};
      begin = end;
      for (const Index i : whole.unplaced) {
        if (offsets_[i] == kUnplaced && sections_.of[i].begin >= part.begin &&
            sections_.of[i].begin < part.end) {
          part.unplaced.push_back(i);
        }
      }
      if (part.unplaced.empty()) continue;
      Rank(part);
      if (const Fit fit = Solve(part, {0, 0}); fit != Fit::kFound) return fit;
    }
    return Fit::kFound;
  }

  void Rank(Part& part) const {
    struct Ranked {
      std::array<std::int64_t, 3> keys;
      Index lifetime;
    };
    std::vector<Ranked> ranked;
    for (const Index i : part.unplaced) {
      const auto [begin, end] = sections_.of[i];
      const std::int64_t width = lifetimes_[i].end - lifetimes_[i].begin;
      std::int64_t total = 0;
      for (Index s = begin; s < end; ++s) total = std::max(total, unplaced_bytes_[s]);
      Ranked entry{{}, i};
      for (std::size_t k = 0; k < ranking_.size(); ++k) {
        // Areas are ranked alone: as doubles they cannot overflow, and equal ones stay equal.
        const std::int64_t area = static_cast<std::int64_t>(
            std::min(9e18, static_cast<double>(width) * static_cast<double>(lifetimes_[i].bytes)));
        entry.keys[k] = ranking_[k] == Key::kWidth  ? -width
                        : ranking_[k] == Key::kArea ? -area
                                                    : -total;
      }
      ranked.push_back(entry);
    }
    std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
      return std::tie(a.keys, a.lifetime) < std::tie(b.keys, b.lifetime);
    });
    for (std::size_t k = 0; k < ranked.size(); ++k) part.unplaced[k] = ranked[k].lifetime;
  }

  // Places what is unplaced in a part, nothing below `from` in the order of (offset, rank).
  Fit Solve(const Part& part, Candidate from) {
    Look(part.unplaced.size() + static_cast<std::size_t>(part.end - part.begin));
    if (!budget_.HasWork()) return Fit::kUnknown;
    std::int64_t lowest_top = std::numeric_limits<std::int64_t>::max();
    bool is_done = true;
    for (const Index i : part.unplaced) {
      if (offsets_[i] != kUnplaced) continue;
      is_done = false;
      lowest_top = std::min(lowest_top, lowest_[i] + lifetimes_[i].bytes);
    }
    if (is_done) return Fit::kFound;
    std::vector<Candidate> candidates;
    for (Index rank = 0; rank < static_cast<Index>(part.unplaced.size()); ++rank) {
      const Index i = part.unplaced[rank];
      if (offsets_[i] != kUnplaced || lowest_[i] >= lowest_top) continue;
      if (std::tie(lowest_[i], rank) < std::tie(from.offset, from.rank)) continue;
      candidates.push_back({lowest_[i], rank});
    }
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
      return std::tie(a.offset, a.rank) < std::tie(b.offset, b.rank);
    });
    for (const Candidate& candidate : candidates) {
      const Index i = part.unplaced[candidate.rank];
      const std::size_t mark = changes_.size();
      const bool has_hat = Place(i);
      Fit fit = Fit::kImpossible;
      if (Fits(part, candidate.offset)) {
        const auto [begin, end] = sections_.of[i];
        const std::vector<Index> cuts = Cuts(begin, end);
        fit = cuts.empty() ? Solve(part, candidate) : SolveParts(part, cuts);
      }
      if (fit != Fit::kImpossible) return fit;
      UndoTo(mark);
      if (!has_hat) break;
    }
    return Fit::kImpossible;
  }

  // A unit of work is a step over a state; here they are smaller.
  void Look(std::size_t times) { budget_.Spend(1 + static_cast<std::int64_t>(times / 16)); }

  // At its lowest offset. Is anything still to come above it?
  bool Place(Index i) {
    const auto [begin, end] = sections_.of[i];
    const std::int64_t top = lowest_[i] + lifetimes_[i].bytes;
    Set(Field::kOffset, i, lowest_[i]);
    Index first_raised = end, end_raised = begin;
    bool has_hat = false;
    for (Index s = begin; s < end; ++s) {
      Set(Field::kFloor, s, top);
      Set(Field::kUnplacedBytes, s, unplaced_bytes_[s] - lifetimes_[i].bytes);
      if (s + 1 < end) Set(Field::kCrossing, s, crossing_[s] - 1);
      for (const Index other : sections_.members[s]) {
        if (offsets_[other] != kUnplaced) continue;
        has_hat = true;
        if (lowest_[other] >= top) continue;
        Set(Field::kLowest, other, top);
        first_raised = std::min(first_raised, sections_.of[other].begin);
        end_raised = std::max(end_raised, sections_.of[other].end);
      }
      Look(sections_.members[s].size());
    }
    for (Index s = first_raised; s < end_raised; ++s) {
      std::int64_t lowest = std::numeric_limits<std::int64_t>::max();
      for (const Index other : sections_.members[s]) {
        if (offsets_[other] == kUnplaced) lowest = std::min(lowest, lowest_[other]);
      }
      Look(sections_.members[s].size());
      if (lowest != std::numeric_limits<std::int64_t>::max() && lowest > floor_[s]) {
        Set(Field::kFloor, s, lowest);
      }
    }
    return has_hat;
  }

  // Can all that is unplaced still lie below the capacity, nothing of it below `offset`?
  bool Fits(const Part& part, std::int64_t offset) const {
    for (Index s = part.begin; s < part.end; ++s) {
      if (unplaced_bytes_[s] > capacity_bytes_ - std::max(offset, floor_[s])) return false;
    }
    return true;
  }

  std::span<const Lifetime> lifetimes_;
  const Sections& sections_;
  std::int64_t capacity_bytes_;
  const Keys& ranking_;
  Budget& budget_;
  Offsets offsets_;                           // kUnplaced, or where it lies
  std::vector<std::int64_t> lowest_;          // per lifetime: above all placed that it meets
  std::vector<std::int64_t> floor_;           // per section: nothing unplaced gets below
  std::vector<std::int64_t> unplaced_bytes_;  // per section
  std::vector<std::int64_t> crossing_;        // unplaced buffers of a section and the next one
  std::vector<Change> changes_;
};

}  // namespace

Fit FindAddresses(std::span<const Lifetime> lifetimes, std::int64_t capacity_bytes,
                  Offsets& offsets, Budget& budget) {
  if (lifetimes.size() > kMostSearched) return Fit::kUnknown;
  const Sections sections(lifetimes);
  // Each ranking in turn, and then again with twice the work: which is quick differs widely.
  for (std::int64_t work = 100'000; budget.HasWork(); work *= 2) {
    for (const Keys& ranking : kRankings) {
      Budget part = budget.Part(work);
      Search search(lifetimes, sections, capacity_bytes, ranking, part);
      const Fit fit = search.Run();
      budget.Spend(part.spent());
      if (fit == Fit::kFound) offsets = search.offsets();
      if (fit != Fit::kUnknown) return fit;
    }
  }
  return Fit::kUnknown;
}

}  // namespace torch_ext::sched
