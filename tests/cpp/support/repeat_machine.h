// Programs with views and writes in place, at random, and two machines for lists of runs.
//
// `Contents` runs a list as an edited graph would, on numbers that stand for contents, and knows
// nothing of instances, versions or deadlines. `FewestNanoseconds` searches all lists in which each
// op runs at most twice, by sets of buffers in memory, of which any may be dropped at any time, and
// by how often each was written to in place.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "program/levers/repeat.h"
#include "program/lower.h"
#include "program/program.h"
#include "sched/plan.h"
#include "support/program_oracle.h"

namespace torch_ext::program::test {

inline std::uint64_t Mixed(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a * 0x9E3779B97F4A7C15ULL + b;
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9ULL;
  return x ^ (x >> 32);
}

// What each run read, and what the caller gets.
struct Contents {
  std::vector<std::pair<OpId, std::uint64_t>> runs;
  std::vector<std::uint64_t> results;
};

// `outside`: per op, does it read (1) or write (2) memory that is older than the program.
inline Contents ContentsOf(const Program& program, const std::vector<int>& outside,
                           std::span<const OpId> runs) {
  using Memory = std::shared_ptr<std::uint64_t>;
  std::vector<std::map<BufferId, Memory>> values(program.ops.size());
  std::map<BufferId, Memory> inputs;
  for (BufferId b = 0; b < static_cast<BufferId>(program.buffers.size()); ++b) {
    if (program.buffers[b].is_input) inputs[b] = std::make_shared<std::uint64_t>(Mixed(7, b));
  }
  std::uint64_t older = 1, random = 1;
  Contents contents;
  for (const OpId v : runs) {
    const Op& op = program.ops[v];
    std::uint64_t seen = Mixed(11, v);
    std::map<BufferId, Memory> read;
    for (const BufferId b : op.reads) {
      if (inputs.contains(b)) read[b] = inputs[b];
      if (inputs.contains(b)) seen = Mixed(seen, *inputs[b]);
      for (const OpId m : op.makers) {
        if (!values[m].contains(b)) continue;
        read[b] = values[m][b];
        seen = Mixed(seen, *read[b]);
      }
    }
    if (outside[v]) seen = Mixed(seen, older);
    if (op.effects.draws_random_numbers) seen = Mixed(seen, random++);
    contents.runs.emplace_back(v, seen);
    std::map<BufferId, Memory> held;
    for (const BufferId b : op.writes) held[b] = std::make_shared<std::uint64_t>(Mixed(seen, b));
    for (const BufferId b : op.aliases) held[b] = read[b];
    for (const BufferId b : op.mutates) *read[b] = Mixed(seen, 1000 + b);
    if (outside[v] == 2) older = Mixed(seen, 2000);
    values[v] = std::move(held);
  }
  for (BufferId b = 0; b < static_cast<BufferId>(program.buffers.size()); ++b) {
    if (!program.buffers[b].kept) continue;
    if (inputs.contains(b)) contents.results.push_back(*inputs[b]);
    for (auto& held : values) {
      if (held.contains(b)) contents.results.push_back(*held[b]);
    }
  }
  return contents;
}

struct Repeatable {
  Program program;
  std::vector<int> outside;
};

// Reads come by makers. Some ops only look at an argument, some write to one in place, some read or
// write memory that is older than the program, some draw.
inline Repeatable RandomRepeatable(std::uint64_t seed, bool is_plain) {
  Random random(seed * 31 + 5);
  Repeatable result{.program = RandomProgram(seed)};
  Program& program = result.program;
  result.outside.assign(program.ops.size(), 0);
  std::vector<OpId> producer(program.buffers.size(), sched::kNoOp);
  std::vector<std::vector<OpId>> holders(program.buffers.size());
  OpId writer = sched::kNoOp;
  std::vector<OpId> readers;
  std::vector<std::vector<OpId>> touched(program.buffers.size());
  for (OpId v = 0; v < static_cast<OpId>(program.ops.size()); ++v) {
    Op& op = program.ops[v];
    op.nanoseconds = random.Between(1, 9);
    for (const BufferId b : op.reads) {
      if (holders[b].empty()) continue;
      const auto pick = random.Between(0, static_cast<std::int64_t>(holders[b].size()) - 1);
      op.makers.push_back(holders[b][pick]);
    }
    if (!is_plain) {
      for (const BufferId b : op.reads) {
        if (random.Chance(25)) op.aliases.push_back(b);
        if (random.Chance(20)) op.mutates.push_back(b);
      }
      if (random.Chance(10)) op.effects.draws_random_numbers = true;
    }
    if (random.Chance(20)) {
      const bool writes = random.Chance(30);
      result.outside[v] = writes ? 2 : 1;
      op.effects.writes_outside = writes;
      if (writer != sched::kNoOp) program.conflicts.push_back({writer, v});
      if (writes) {
        for (const OpId u : readers) program.conflicts.push_back({u, v});
        readers.clear();
        writer = v;
      } else {
        readers.push_back(v);
      }
    }
    for (const BufferId b : op.reads) {
      const bool mutates = std::ranges::count(op.mutates, b) > 0;
      for (const OpId u : touched[b]) {
        const bool other = std::ranges::count(program.ops[u].mutates, b) > 0;
        if (mutates || other) {
          program.conflicts.push_back({.earlier = u, .later = v, .is_inside = true});
        }
      }
      touched[b].push_back(v);
    }
    for (const BufferId b : op.writes) holders[b].push_back(v);
    for (const BufferId b : op.aliases) holders[b].push_back(v);
  }
  return result;
}

// First runs in a valid order, and any ops again behind them.
inline Runs RandomRuns(const Program& program, Random& random) {
  const sched::Graph graph = Lower(program);
  const auto num_ops = graph.num_ops();
  Runs runs;
  std::vector<char> ran(num_ops, 0);
  for (OpId left = num_ops; left > 0;) {
    const auto v = static_cast<OpId>(random.Between(0, num_ops - 1));
    if (ran[v] && !random.Chance(30)) continue;
    const bool is_ready =
        std::ranges::all_of(graph.op(v).predecessors, [&](OpId u) { return ran[u] != 0; });
    if (!is_ready) continue;
    left -= !ran[v];
    ran[v] = 1;
    runs.push_back(v);
  }
  return runs;
}

// Does each run read what the program does, and does the caller get the same?
inline bool SameContents(const Repeatable& given, const Runs& runs) {
  Runs original;
  for (OpId v = 0; v < static_cast<OpId>(given.program.ops.size()); ++v) original.push_back(v);
  const Contents expected = ContentsOf(given.program, given.outside, original);
  const Contents actual = ContentsOf(given.program, given.outside, runs);
  const auto is_same = [&](const auto& run) {
    return run.second == expected.runs[run.first].second;
  };
  return std::ranges::all_of(actual.runs, is_same) && actual.results == expected.results;
}

// The least time of lists in which each op runs at most twice, for programs without views. Nothing
// if none fits. By sets: what is in memory, what ran, what ran twice.
inline std::optional<std::int64_t> FewestNanoseconds(const Rerunner& rerunner, bool overwrite,
                                                     std::int64_t budget_bytes) {
  const Program& program = rerunner.program();
  using Mask = std::uint32_t;
  const auto bit = [](std::int64_t i) { return Mask{1} << i; };
  const std::size_t num_ops = program.ops.size(), num_buffers = program.buffers.size();
  const auto bytes_of = [&](Mask buffers) {
    std::int64_t bytes = 0;
    for (std::size_t b = 0; b < num_buffers; ++b) {
      if (buffers & bit(static_cast<std::int64_t>(b))) bytes += program.buffers[b].bytes;
    }
    return bytes;
  };
  Mask kept = 0, at_start = 0, made_once = 0;
  for (std::size_t b = 0; b < num_buffers; ++b) {
    const Mask one = bit(static_cast<std::int64_t>(b));
    bool is_read = false;
    for (const Op& op : program.ops) {
      is_read |= std::ranges::count(op.reads, static_cast<BufferId>(b)) > 0;
    }
    if (program.buffers[b].kept) kept |= one;
    if (program.buffers[b].is_input && (is_read || program.buffers[b].kept)) at_start |= one;
    if (program.buffers[b].is_input) made_once |= one;
  }
  // How often a buffer is written to in place before each op, and before the end.
  std::vector<std::vector<int>> writes_before(num_ops + 1, std::vector<int>(num_buffers, 0));
  for (std::size_t v = 0; v < num_ops; ++v) {
    writes_before[v + 1] = writes_before[v];
    for (const BufferId b : program.ops[v].mutates) ++writes_before[v + 1][b];
  }
  // In memory, ran, ran twice; how often what is in memory was written to.
  using State = std::tuple<Mask, Mask, Mask, std::vector<int>>;
  using Item = std::pair<std::int64_t, State>;
  std::map<State, std::int64_t> best;
  std::priority_queue<Item, std::vector<Item>, std::greater<>> open;
  const auto reach = [&](State state, std::int64_t nanoseconds) {
    const auto [found, is_new] = best.emplace(state, nanoseconds);
    if (!is_new && found->second <= nanoseconds) return;
    found->second = nanoseconds;
    open.emplace(nanoseconds, state);
  };
  if (bytes_of(at_start) > budget_bytes && num_ops > 0) return std::nullopt;
  reach({at_start, 0, 0, std::vector<int>(num_buffers, 0)}, 0);
  while (!open.empty()) {
    const Item item = open.top();
    const auto& [nanoseconds, state] = item;
    open.pop();
    if (best.at(state) < nanoseconds) continue;
    const auto& [memory, ran, twice, written] = state;
    bool is_end = ran == bit(static_cast<std::int64_t>(num_ops)) - 1 && (memory & kept) == kept;
    for (std::size_t b = 0; b < num_buffers; ++b) {
      is_end &= !program.buffers[b].kept || written[b] == writes_before[num_ops][b];
    }
    if (is_end) return nanoseconds;
    for (std::size_t b = 0; b < num_buffers; ++b) {  // drop one
      const Mask one = bit(static_cast<std::int64_t>(b));
      const bool must_stay = program.buffers[b].kept && (made_once & one);
      if (!(memory & one) || must_stay) continue;
      std::vector<int> left = written;
      left[b] = 0;
      reach({memory & ~one, ran, twice, std::move(left)}, nanoseconds);
    }
    for (std::size_t v = 0; v < num_ops; ++v) {
      const Mask one = bit(static_cast<std::int64_t>(v));
      const bool is_repeat = ran & one;
      if (is_repeat) {
        if (!rerunner.steps()[v].may_repeat || (twice & one)) continue;
        if (std::ranges::any_of(rerunner.steps()[v].deadlines,
                                [&](OpId u) { return ran & bit(u); }))
          continue;
      } else if (std::ranges::any_of(rerunner.steps()[v].before,
                                     [&](OpId u) { return !(ran & bit(u)); })) {
        continue;
      }
      const Op& op = program.ops[v];
      Mask reads = 0, writes = 0;
      for (const BufferId b : op.reads) reads |= bit(b);
      for (const BufferId b : op.writes) writes |= bit(b);
      if ((memory & reads) != reads || (memory & writes)) continue;
      if (std::ranges::any_of(op.reads,
                              [&](BufferId b) { return written[b] != writes_before[v][b]; })) {
        continue;
      }
      std::int64_t bytes = bytes_of(memory) + bytes_of(writes) + op.workspace_bytes;
      Mask after = memory | writes;
      // What is overwritten is gone; the choice is the first that can be, as elsewhere: each
      // subset of such arguments is another way.
      std::vector<const Overwrite*> overs;
      if (overwrite) {
        for (const Overwrite& use : program.overwritable) {
          const Buffer& argument = program.buffers[use.argument];
          if (use.op != static_cast<OpId>(v) || argument.is_input || argument.kept ||
              argument.bytes != program.buffers[use.result].bytes) {
            continue;
          }
          overs.push_back(&use);
        }
      }
      const Mask ran_after = ran | one, twice_after = is_repeat ? (twice | one) : twice;
      for (Mask subset = 0; subset < bit(static_cast<std::int64_t>(overs.size())); ++subset) {
        std::int64_t less = 0;
        Mask gone = 0, results = 0;
        bool is_possible = true;
        for (std::size_t i = 0; i < overs.size(); ++i) {
          if (!(subset & bit(static_cast<std::int64_t>(i)))) continue;
          const Mask result = bit(overs[i]->result), argument = bit(overs[i]->argument);
          is_possible &= !(gone & argument) && !(results & result);
          for (const OpId u : overs[i]->others) {  // no run of theirs comes later
            is_possible &= u == static_cast<OpId>(v) || ((ran & bit(u)) != 0);
          }
          gone |= argument;
          results |= result;
          less += program.buffers[overs[i]->result].bytes;
        }
        if (!is_possible || bytes - less > budget_bytes) continue;
        std::vector<int> written_after = written;
        for (const BufferId b : op.mutates) ++written_after[b];
        for (std::size_t b = 0; b < num_buffers; ++b) {
          if (gone & bit(static_cast<std::int64_t>(b))) written_after[b] = 0;
        }
        reach({after & ~gone, ran_after, twice_after, std::move(written_after)},
              nanoseconds + op.nanoseconds);
      }
    }
  }
  return std::nullopt;
}

constexpr std::int64_t kNoBudget = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kMostOps = 6;  // for which all lists are searched

// Budgets from the peak of an order down to the first that no list of runs meets.
template <typename Check>
void ForEachBudget(const Program& program, bool overwrite, const Check& check) {
  Rerunner rerunner(program, overwrite);
  const sched::Graph graph = Lower(program);
  const sched::Order order = sched::MakePlan(graph, {}).order;
  for (std::int64_t bytes = rerunner.Judge(order, kNoBudget).peak_bytes; bytes >= 0; --bytes) {
    const std::optional<std::int64_t> fewest = FewestNanoseconds(rerunner, overwrite, bytes);
    check(rerunner, order, bytes, fewest);
    if (!fewest) break;
  }
}

}  // namespace torch_ext::program::test
