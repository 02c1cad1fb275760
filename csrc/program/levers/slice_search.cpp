#include "program/levers/slice_search.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace torch_ext::program {
namespace {

constexpr int kMostRounds = 23;
constexpr int kMostRoundsOfKeptRows = 12;

bool IsKnown(const Program& program, const Stretch& stretch, const SliceFacts& facts) {
  const std::optional<SlicedStretch> sliced = Sliced(program, stretch, facts);
  return sliced && sliced->is_known;
}

// Will more be known when the stretch has run, beside those that `asked` stands for?
bool AsksMore(const Program& program, const Stretch& stretch, const SliceFacts& facts,
              std::set<SliceFacts::Part>& asked) {
  const SlicedStretch sliced = *Sliced(program, stretch, facts);
  bool asks_more = false;
  for (const SlicedStretch::PartOp& op : sliced.ops) {
    if (facts.Knows(op.Longest())) continue;
    asks_more |= asked.insert(facts.Twin(op.Longest())).second;
  }
  return asks_more;
}

std::string Rounded(double ratio) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2) << ratio;
  return text.str();
}

bool IsBetter(const SliceTrial& a, const SliceTrial& b, bool has_budget) {
  if (has_budget || std::abs(a.TimeRatio() - b.TimeRatio()) <= kTimeNoise) {
    return a.peak_bytes < b.peak_bytes;
  }
  return a.TimeRatio() < b.TimeRatio();
}

bool IsSlower(const SliceTrial& trial) {
  return trial.TimeRatio() > 1 + kTimeNoise;
}

// Why an op that runs whole does not run in parts.
std::string WhyWhole(const Program& program, const SliceFacts& facts, OpId v) {
  const Op& op = program.ops[v];
  if (std::ranges::none_of(op.slicings, [](const auto& slicing) { return slicing.has_value(); })) {
    return "no rule runs " + op.oper + " in parts";
  }
  const std::vector<SliceFacts::Fact> known = facts.Known(v);
  if (known.empty()) return "what it reads and makes is needed whole";
  const auto has_other_bits = [](const SliceFacts::Fact& fact) { return !fact.keeps_bits; };
  if (std::ranges::all_of(known, has_other_bits)) return "its bits are others in parts";
  const auto takes_as_much = [&](const SliceFacts::Fact& fact) {
    return has_other_bits(fact) || 10 * fact.workspace_bytes >= 9 * op.workspace_bytes;
  };
  if (op.workspace_bytes > 0 && std::ranges::all_of(known, takes_as_much)) {
    return "its scratch memory is as large in parts";
  }
  return "what it reads and makes is needed whole";
}

std::string WhatKeepsThePeak(const Program& program, const SliceFacts& facts,
                             const Stretches::Choice& lowest) {
  if (lowest.highest == sched::kNoOp) return {};
  const auto ends_there = [&](const Stretch& stretch) {
    return stretch.ops.back() == lowest.highest;
  };
  const bool is_in_parts = std::ranges::any_of(lowest.stretches, ends_there);
  return program.ops[lowest.highest].name + " keeps the peak: " +
         (is_in_parts ? "it runs in parts as small as are tried"
                      : WhyWhole(program, facts, lowest.highest));
}

// Operators whose bits are others in parts that were tried.
std::string ForbiddenText(const Program& program, const SliceFacts& facts) {
  constexpr std::size_t kMost = 4;
  std::set<std::string> operators;
  for (const OpId v : facts.OpsOfOtherBits()) operators.insert(program.ops[v].oper);
  if (operators.empty()) return {};
  std::string text = "in some of the parts tried the bits are others of ";
  std::size_t shown = 0;
  for (const std::string& oper : operators) {
    if (shown == kMost) return text + ", ...";
    text += (shown++ == 0 ? "" : ", ") + oper;
  }
  return text;
}

}  // namespace

SliceTargets TargetsBelow(std::int64_t peak_bytes, std::optional<std::int64_t> budget_bytes) {
  SliceTargets targets;
  if (budget_bytes) targets.emplace_back(*budget_bytes);
  for (const int percent : {85, 70, 45, 30, 20}) targets.emplace_back(peak_bytes / 100 * percent);
  targets.emplace_back(std::nullopt);
  return targets;
}

std::vector<Stretches::Choice> ChooseStretches(const Program& program, const sched::Order& order,
                                               SliceFacts& facts, const SliceTargets& targets,
                                               const Learn& learn) {
  using Asking = SliceFacts::Asking;
  std::vector<Stretches::Choice> choices;
  const auto choose = [&](Asking asking, bool may_keep_rows, int most_rounds) {
    facts.SetAsking(asking);
    for (int round = 0;; ++round) {
      if (round == most_rounds) facts.SetAsking(Asking::kOfNone);
      const Stretches all(program, order, facts, may_keep_rows);
      std::vector<Stretch> unknown;
      std::set<SliceFacts::Part> asked;
      choices.clear();
      for (const std::optional<std::int64_t> bytes : targets) {
        Stretches::Choice& choice = choices.emplace_back(bytes ? all.Within(*bytes) : all.Lowest());
        for (const Stretch& stretch : choice.stretches) {
          if (AsksMore(program, stretch, facts, asked)) unknown.push_back(stretch);
        }
      }
      if (unknown.empty()) return;
      if (round == most_rounds) {
        throw std::logic_error("a stretch was chosen of which not all is known");
      }
      learn(unknown);
    }
  };
  // What keeps rows is tried last: there are more ways to, and none is lost by it.
  choose(Asking::kOfAll, /*may_keep_rows=*/false, kMostRounds);
  choose(Asking::kOfKeptRows, /*may_keep_rows=*/true, kMostRoundsOfKeptRows);
  return choices;
}

std::vector<Stretch> RandomStretches(const Program& program, const sched::Order& order,
                                     SliceFacts& facts, std::uint64_t seed, const Learn& learn) {
  constexpr std::size_t kMostOps = 12;
  std::mt19937_64 random(seed);
  const auto below = [&](std::size_t end) { return random() % end; };
  std::vector<Stretch> stretches;
  for (std::size_t begin = 0; begin < order.size(); ++begin) {
    const std::size_t most = std::min(kMostOps, order.size() - begin);
    // Longer ones first: most runs of ops are no stretch.
    for (std::size_t length = 1 + below(most); length > 0; --length) {
      Stretch stretch{{order.begin() + static_cast<std::ptrdiff_t>(begin),
                       order.begin() + static_cast<std::ptrdiff_t>(begin + length)}};
      const Op& last = program.ops[stretch.ops.back()];
      if (last.slicings.empty()) continue;
      stretch.dimension = static_cast<int>(below(last.slicings.size()));
      const std::vector<std::int64_t> sizes =
          PartSizes(program.tensors.at(last.outputs[0]).shape[stretch.dimension]);
      if (sizes.empty()) continue;
      stretch.part_size = sizes[below(sizes.size())];
      stretch.keeps_rows = below(2) == 1;
      if (!Sliced(program, stretch, facts)) continue;
      begin += length - 1;
      stretches.push_back(std::move(stretch));
      break;
    }
  }
  if (!stretches.empty()) learn(stretches);
  std::erase_if(stretches,
                [&](const Stretch& stretch) { return !IsKnown(program, stretch, facts); });
  return stretches;
}

std::optional<std::size_t> BestChoice(const std::vector<Stretches::Choice>& choices,
                                      std::optional<std::int64_t> budget_bytes,
                                      const Attempt& attempt) {
  // What was planned may take more than it said, for the rest is planned again: then a lower one is
  // tried. If none is low enough, the last, which is the lowest.
  const auto is_promising = [&](const Stretches::Choice& choice) {
    return !budget_bytes || choice.peak_bytes <= *budget_bytes;
  };
  const bool is_any_promising = std::ranges::any_of(choices, is_promising);
  std::optional<std::size_t> best;
  std::optional<SliceTrial> best_trial;
  std::vector<std::vector<Stretch>> tried;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const Stretches::Choice& choice = choices[i];
    if (is_any_promising ? !is_promising(choice) : i + 1 < choices.size()) continue;
    if (choice.stretches.empty() || std::ranges::count(tried, choice.stretches) > 0) continue;
    tried.push_back(choice.stretches);
    const std::optional<SliceTrial> trial = attempt(choice.stretches);
    if (!trial || (!budget_bytes && IsSlower(*trial))) continue;
    if (best && !IsBetter(*trial, *best_trial, budget_bytes.has_value())) continue;
    best = i;
    best_trial = trial;
    if (budget_bytes && trial->meets_budget) break;
  }
  return best;
}

Reason WhyNoSlices(const std::vector<SliceTrial>& trials, bool has_budget,
                   const std::string& obstacles) {
  const auto slower = std::ranges::find_if(trials, IsSlower);
  if (has_budget || slower == trials.end()) {
    return {.kind = ReasonKind::kNoStretch, .detail = obstacles};
  }
  return {.kind = ReasonKind::kSlower,
          .detail = Rounded(slower->TimeRatio()),
          .bytes = slower->peak_bytes};
}

std::string ObstaclesText(const Program& program, const SliceFacts& facts,
                          const std::vector<Stretches::Choice>& choices) {
  const auto lowest = std::ranges::min_element(choices, {}, &Stretches::Choice::peak_bytes);
  std::string text;
  if (lowest != choices.end()) text = WhatKeepsThePeak(program, facts, *lowest);
  const std::string forbidden = ForbiddenText(program, facts);
  return text + (text.empty() || forbidden.empty() ? "" : "; ") + forbidden;
}

}  // namespace torch_ext::program
