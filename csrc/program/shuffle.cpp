#include "program/shuffle.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "program/lower.h"

namespace torch_ext::program {
namespace {

using Generator = std::mt19937_64;

sched::Order RandomOrder(const sched::Graph& graph, Generator& random) {
  std::vector<std::size_t> missing;
  std::vector<sched::OpId> ready;
  for (sched::OpId v = 0; v < graph.num_ops(); ++v) {
    missing.push_back(graph.op(v).predecessors.size());
    if (missing.back() == 0) ready.push_back(v);
  }
  sched::Order order;
  while (!ready.empty()) {
    std::swap(ready[random() % ready.size()], ready.back());
    const sched::OpId v = ready.back();
    ready.pop_back();
    order.push_back(v);
    for (const sched::OpId s : graph.op(v).successors) {
      if (--missing[s] == 0) ready.push_back(s);
    }
  }
  return order;
}

// May the storage be given up for the result, and is neither given away already?
bool IsFree(const Program& program, const Overwrite& overwrite,
            const std::vector<std::size_t>& chosen) {
  const Buffer& argument = program.buffers[overwrite.argument];
  return !argument.is_input && !argument.kept && std::ranges::none_of(chosen, [&](std::size_t i) {
    const Overwrite& other = program.overwritable[i];
    return other.argument == overwrite.argument || other.result == overwrite.result;
  });
}

}  // namespace

RandomEdits Shuffled(const Program& program, std::uint64_t seed, const HazardRules& rules) {
  Generator random(seed);
  std::vector<std::size_t> places(program.overwritable.size());
  std::iota(places.begin(), places.end(), 0);
  for (std::size_t i = places.size(); i > 1; --i) std::swap(places[random() % i], places[i - 1]);
  Edits edits;
  for (std::size_t i = 0; i < program.copyable.size(); ++i) {
    if (random() % 4 > 0) edits.hoists.push_back(i);
  }
  Edited edited = *WithEdits(program, edits);
  for (const std::size_t i : places) {
    if (!IsFree(program, program.overwritable[i], edits.overwrites)) continue;
    edits.overwrites.push_back(i);
    if (std::optional<Edited> more = WithEdits(program, edits)) {
      edited = *std::move(more);
    } else {
      edits.overwrites.pop_back();
    }
  }
  return {edited.ToOldOps(RandomOrder(Lower(edited.program, rules), random)), std::move(edits)};
}

Runs RandomRuns(const Program& program, std::uint64_t seed) {
  constexpr std::size_t kMostTogether = 5, kTries = 4, kMostRuns = 3;
  Generator random(seed);
  Rerunner rerunner(program, /*overwrite=*/false);
  Runs runs = RandomOrder(Lower(program), random);
  for (std::size_t i = 0; i < kTries * program.ops.size(); ++i) {
    if (runs.size() >= kMostRuns * program.ops.size()) break;
    // Neighbours together: what is written to in place runs again with what writes to it.
    const std::size_t begin = random() % runs.size();
    const std::size_t end = std::min(begin + 1 + random() % kMostTogether, runs.size());
    const std::size_t place = end + random() % (runs.size() - end + 1);
    Runs more(runs.begin(), runs.begin() + static_cast<std::ptrdiff_t>(place));
    std::copy_if(runs.begin() + static_cast<std::ptrdiff_t>(begin),
                 runs.begin() + static_cast<std::ptrdiff_t>(end), std::back_inserter(more),
                 [&](OpId v) { return rerunner.steps()[v].may_repeat; });
    more.insert(more.end(), runs.begin() + static_cast<std::ptrdiff_t>(place), runs.end());
    if (rerunner.Judge(more, 0).is_valid) runs = std::move(more);
  }
  return runs;
}

}  // namespace torch_ext::program
