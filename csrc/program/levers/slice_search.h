// Which stretches to run in parts, found by trying: the way that all adaptors go.
//
// Whether an op keeps its bits in parts, and what scratch memory it takes then, an adaptor finds
// out by running it. What it learns goes into the next choice, until all that is chosen is known.
// Then whole programs are tried, from those that add the least work to the lowest.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "program/levers/slice.h"
#include "program/program.h"
#include "program/reason.h"
#include "sched/graph.h"

namespace torch_ext::program {

// Times that are measured in turns differ by so much, as a part, without a cause.
inline constexpr double kTimeNoise = 0.02;

// Peaks to go for, in bytes: the budget, parts of the peak without slices, and the lowest
// (nothing).
using SliceTargets = std::vector<std::optional<std::int64_t>>;
SliceTargets TargetsBelow(std::int64_t peak_bytes, std::optional<std::int64_t> budget_bytes);

// For each target the stretches with the least work below it, or with the lowest peak. `learn` runs
// stretches in parts and tells the facts, at most 35 times; then only what is known is chosen. Of
// stretches that are alike, as layers are, it is given the first alone.
using Learn = std::function<void(const std::vector<Stretch>&)>;
std::vector<Stretches::Choice> ChooseStretches(const Program& program, const sched::Order& order,
                                               SliceFacts& facts, const SliceTargets& targets,
                                               const Learn& learn);

// For tests: stretches at random, of those that keep their bits.
std::vector<Stretch> RandomStretches(const Program& program, const sched::Order& order,
                                     SliceFacts& facts, std::uint64_t seed, const Learn& learn);

// A program with slices that was tried, gave the same bits, and needs less than the one without.
struct SliceTrial {
  std::int64_t peak_bytes = 0;
  std::int64_t measured_peak_bytes = 0;  // by the allocator; 0 if not measured
  std::int64_t slices = 0;
  double seconds = 0, seconds_without = 0;  // of a call, measured in turns; 0 if not measured
  bool meets_budget = false;                // by whatever else the adaptor knows of it, too

  double TimeRatio() const { return seconds_without > 0 ? seconds / seconds_without : 1; }
};

// Has the adaptor try them, and returns the place of the best. With a budget: the first that meets
// it, else the lowest. Without one: the fastest that is not slower than without slices, of equally
// fast ones the lowest. Nothing if none is good.
using Attempt = std::function<std::optional<SliceTrial>(const std::vector<Stretch>&)>;
std::optional<std::size_t> BestChoice(const std::vector<Stretches::Choice>& choices,
                                      std::optional<std::int64_t> budget_bytes,
                                      const Attempt& attempt);

// Why the program stays without slices, or misses its budget with them; `obstacles`: of
// ObstaclesText, or whatever else an adaptor knows.
Reason WhyNoSlices(const std::vector<SliceTrial>& trials, bool has_budget,
                   const std::string& obstacles);

// What keeps the lowest peak of the choices where it is, and whose bits are others in parts that
// were tried: for people.
std::string ObstaclesText(const Program& program, const SliceFacts& facts,
                          const std::vector<Stretches::Choice>& choices);

}  // namespace torch_ext::program
