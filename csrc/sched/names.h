// What a plan is told in: kinds of regions, what finds orders, what proves that none is lower; as
// values, and their names in reports.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

namespace torch_ext::sched {

enum class RegionKind {
  kOp,
  kSeries,    // parts that must run one after the other
  kParallel,  // parts that do not depend on each other
  kPrime,     // neither
};

enum class Method {
  kOriginal,  // nothing moved
  kDominant,
  kSafeSteps,
  kDepthFirst,
  kGreedy,
  kBeam,
  kImprovement,
  kSearch,
};

// csrc/README.md, "What the result says".
enum class Proof {
  kNone,
  kClosure,         // one op needs as much in any state in which it can run
  kResults,         // all that is kept is alive at the end
  kNeighbour,       // an op and whichever of its neighbours is next to it
  kSeriesParallel,  // a dominant schedule without any prime region
  kPrecedence,      // what a lower order had to obey is impossible
  kSearch,          // an exhausted search
};

inline constexpr std::array<std::pair<RegionKind, const char*>, 4> kRegionKindNames = {{
    {RegionKind::kOp, "op"},
    {RegionKind::kSeries, "series"},
    {RegionKind::kParallel, "parallel"},
    {RegionKind::kPrime, "prime"},
}};

inline constexpr std::array<std::pair<Method, const char*>, 8> kMethodNames = {{
    {Method::kOriginal, "original"},
    {Method::kDominant, "dominant"},
    {Method::kSafeSteps, "safe steps"},
    {Method::kDepthFirst, "depth-first"},
    {Method::kGreedy, "greedy"},
    {Method::kBeam, "beam"},
    {Method::kImprovement, "improvement"},
    {Method::kSearch, "search"},
}};

inline constexpr std::array<std::pair<Proof, const char*>, 7> kProofNames = {{
    {Proof::kNone, ""},
    {Proof::kClosure, "closure"},
    {Proof::kResults, "results"},
    {Proof::kNeighbour, "neighbour"},
    {Proof::kSeriesParallel, "series-parallel"},
    {Proof::kPrecedence, "precedence"},
    {Proof::kSearch, "search"},
}};

constexpr const char* NameOf(RegionKind kind) {
  return kRegionKindNames.at(static_cast<std::size_t>(kind)).second;
}

constexpr const char* NameOf(Method method) {
  return kMethodNames.at(static_cast<std::size_t>(method)).second;
}

constexpr const char* NameOf(Proof proof) {
  return kProofNames.at(static_cast<std::size_t>(proof)).second;
}

namespace internal {
// The tables stand in the order of the values.
constexpr bool AreInOrder(const auto& names) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (static_cast<std::size_t>(names.at(i).first) != i) return false;
  }
  return true;
}
static_assert(AreInOrder(kRegionKindNames) && AreInOrder(kMethodNames) && AreInOrder(kProofNames));
}  // namespace internal

}  // namespace torch_ext::sched
