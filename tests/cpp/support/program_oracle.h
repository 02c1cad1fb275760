// Programs at random, and the lowest peak over all orders and all choices of edits. The oracle
// walks sets of ops and copies: what is alive after a set does not depend on how it was reached, an
// op may write over an argument if all others that touch it are in the set, and a copy that is not
// in the set when its op runs is made by the op.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "program/hazards.h"
#include "program/levers/levers.h"
#include "program/program.h"
#include "support/random_graphs.h"

namespace torch_ext::program::test {

using sched::test::Random;

class Oracle {
 public:
  explicit Oracle(const Program& program)
      : program_(program),
        before_(program.ops.size() + program.copyable.size(), 0),
        maker_(program.buffers.size(), 0) {
    const std::size_t num_ops = program.ops.size();
    for (std::size_t v = 0; v < num_ops; ++v) {
      for (const BufferId b : program.ops[v].writes) maker_[b] = Bit(v);
    }
    const auto add_before = [&](OpId earlier, OpId later) {
      before_[later] |= Bit(earlier);
      for (std::size_t c = 0; c < program.copyable.size(); ++c) {
        if (program.copyable[c].op == later) before_[num_ops + c] |= Bit(earlier);
      }
    };
    for (const auto& [earlier, later] : OrderEdges(program)) add_before(earlier, later);
    for (std::size_t v = 0; v < num_ops; ++v) {
      for (const OpId u : program.ops[v].makers) before_[v] |= Bit(u);
      for (const BufferId b : program.ops[v].reads) before_[v] |= maker_[b];
    }
    for (std::size_t c = 0; c < program.copyable.size(); ++c) {
      for (const OpId u : program.copyable[c].makers) before_[num_ops + c] |= Bit(u);
      for (const BufferId b : program.copyable[c].reads) before_[num_ops + c] |= maker_[b];
    }
  }

  std::int64_t LowestPeak(const Levers& levers) const {
    constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
    const std::size_t num_ops = program_.ops.size();
    const Mask all_ops = (Mask{1} << num_ops) - 1;
    const std::size_t steps = num_ops + (levers.overwrite ? program_.copyable.size() : 0);
    const Mask full = (Mask{1} << steps) - 1;
    std::vector<std::int64_t> lowest(std::size_t{full} + 1, kNever);
    lowest[0] = Live(0);
    std::int64_t best = kNever;
    for (Mask done = 0; done <= full; ++done) {
      if (lowest[done] == kNever) continue;
      if ((done & all_ops) == all_ops) best = std::min(best, lowest[done]);
      for (std::size_t v = 0; v < steps; ++v) {
        if ((done & Bit(v)) || (before_[v] & ~done)) continue;
        if (v >= num_ops && (done & Bit(program_.copyable[v - num_ops].op))) continue;
        const std::int64_t hill = v < num_ops ? Hill(done, v, levers.overwrite)
                                              : Live(done) + program_.copyable[v - num_ops].bytes;
        std::int64_t& next = lowest[done | Bit(v)];
        next = std::min(next, std::max(lowest[done], hill));
      }
    }
    return best;
  }

 private:
  using Mask = std::uint32_t;

  static Mask Bit(std::size_t v) { return Mask{1} << v; }

  bool IsCopied(std::size_t c, Mask done) const { return done & Bit(program_.ops.size() + c); }

  // Has the op still to read the storage, itself or by a copy?
  bool Reads(std::size_t v, BufferId b, Mask done) const {
    if (std::ranges::count(program_.ops[v].reads, b) == 0) return false;
    bool is_only_copied = false;
    for (std::size_t c = 0; c < program_.copyable.size(); ++c) {
      const Copy& copy = program_.copyable[c];
      if (copy.op != static_cast<OpId>(v) || std::ranges::count(copy.reads, b) == 0) continue;
      if (copy.is_read_beside || !IsCopied(c, done)) return true;
      is_only_copied = true;
    }
    return !is_only_copied;
  }

  std::int64_t Live(Mask done) const {
    std::int64_t bytes = 0;
    for (std::size_t b = 0; b < program_.buffers.size(); ++b) {
      const Buffer& buffer = program_.buffers[b];
      bool is_needed = buffer.kept;
      for (std::size_t v = 0; v < program_.ops.size(); ++v) {
        is_needed |= !(done & Bit(v)) && Reads(v, static_cast<BufferId>(b), done);
      }
      if (is_needed && (buffer.is_input || (maker_[b] & done))) bytes += buffer.bytes;
    }
    for (std::size_t c = 0; c < program_.copyable.size(); ++c) {
      const Copy& copy = program_.copyable[c];
      if (IsCopied(c, done) && !(done & Bit(copy.op))) bytes += copy.bytes;
    }
    return bytes;
  }

  // For each result the best of what may be overwritten by it; one storage serves one result.
  std::int64_t Hill(Mask done, std::size_t v, bool overwrites) const {
    std::int64_t bytes = Live(done) + program_.ops[v].workspace_bytes;
    for (const BufferId b : program_.ops[v].writes) bytes += program_.buffers[b].bytes;
    for (std::size_t c = 0; c < program_.copyable.size(); ++c) {
      const Copy& copy = program_.copyable[c];
      if (copy.op == static_cast<OpId>(v) && IsCopied(c, done)) bytes -= copy.bytes;
    }
    if (!overwrites) return bytes;
    std::vector<char> is_written(program_.buffers.size(), 0), is_used = is_written;
    for (const Overwrite& overwrite : program_.overwritable) {
      const Buffer& argument = program_.buffers[overwrite.argument];
      if (overwrite.op != static_cast<OpId>(v) || argument.is_input || argument.kept) continue;
      if (argument.bytes != program_.buffers[overwrite.result].bytes) continue;
      bool is_free = true;
      for (const OpId u : overwrite.others) is_free &= u == overwrite.op || (done & Bit(u));
      for (std::size_t u = 0; u < program_.ops.size(); ++u) {
        if (u != v && !(done & Bit(u))) is_free &= !Reads(u, overwrite.argument, done);
      }
      if (!is_free) continue;
      if (is_written[overwrite.result] || is_used[overwrite.argument]) continue;
      is_written[overwrite.result] = is_used[overwrite.argument] = 1;
      bytes -= argument.bytes;
    }
    return bytes;
  }

  const Program& program_;
  std::vector<Mask> before_, maker_;  // ops, and the copies behind them
};

// A random program in which many results could overwrite an argument, and some ops copy one.
inline Program RandomProgram(std::uint64_t seed, int most_copies = 0) {
  Random random(seed);
  const sched::Graph graph = sched::test::RandomGraph(seed, most_copies > 0 ? 8 : 9);
  Program program;
  for (const sched::Buffer& buffer : graph.buffers()) {
    // Few sizes, so that results fit into arguments.
    program.buffers.push_back({.name = buffer.name,
                               .bytes = random.Between(1, 3),
                               .is_input = buffer.is_input(),
                               .kept = buffer.kept && random.Chance(50)});
  }
  for (sched::OpId v = 0; v < graph.num_ops(); ++v) {
    const sched::Op& op = graph.op(v);
    program.ops.push_back({.name = op.name,
                           .oper = "aten::op",
                           .makers = op.after,
                           .reads = op.reads,
                           .writes = op.writes,
                           .workspace_bytes = random.Between(0, 1)});
    if (op.writes.empty() || op.reads.empty()) continue;
    for (const BufferId argument : op.reads) {
      if (!random.Chance(70)) continue;
      Overwrite& overwrite = program.overwritable.emplace_back();
      overwrite = {v, op.writes[0], argument};
      while (random.Chance(15)) {
        overwrite.others.push_back(static_cast<OpId>(random.Between(0, graph.num_ops() - 1)));
      }
    }
  }
  if (program.ops.size() > 2 && random.Chance(30)) {
    const auto last = static_cast<OpId>(program.ops.size()) - 1;
    program.conflicts.push_back({static_cast<OpId>(random.Between(0, last - 1)), last});
  }
  for (sched::OpId v = 0; v < graph.num_ops(); ++v) {
    for (const BufferId b : graph.op(v).reads) {
      if (static_cast<int>(program.copyable.size()) >= most_copies || !random.Chance(40)) continue;
      if (std::ranges::any_of(program.overwritable, [&](const Overwrite& overwrite) {
            return overwrite.op == v && overwrite.argument == b;
          })) {
        continue;
      }
      Copy& copy = program.copyable.emplace_back();
      copy = {.op = v, .value = program.buffers[b].name, .reads = {b}};
      copy.is_read_beside = random.Chance(20);
      copy.bytes = random.Between(1, 3);
      program.ops[v].workspace_bytes += copy.bytes;
    }
  }
  return program;
}

inline std::string Shown(const Program& program, std::uint64_t seed) {
  std::string text = "seed " + std::to_string(seed) + "\n";
  for (const Op& op : program.ops) {
    text += op.name + " reads";
    for (const BufferId b : op.reads) text += " " + program.buffers[b].name;
    text += " writes";
    for (const BufferId b : op.writes) text += " " + program.buffers[b].name;
    text += " + " + std::to_string(op.workspace_bytes) + "\n";
  }
  for (const Buffer& b : program.buffers) {
    text += b.name + " " + std::to_string(b.bytes) + (b.is_input ? " input" : "") +
            (b.kept ? " kept" : "") + "\n";
  }
  for (const Overwrite& o : program.overwritable) {
    text += program.ops[o.op].name + ": " + program.buffers[o.result].name + " over " +
            program.buffers[o.argument].name;
    for (const OpId v : o.others) text += " after " + program.ops[v].name;
    text += "\n";
  }
  for (const Copy& c : program.copyable) {
    text += program.ops[c.op].name + " copies " + c.value + ": " + std::to_string(c.bytes) +
            (c.is_read_beside ? ", and reads it\n" : "\n");
  }
  return text;
}

inline std::uint64_t Cases(std::uint64_t few) {
  const char* scale = std::getenv("TORCH_EXT_TEST_SCALE");
  return few * (scale == nullptr ? 1 : std::strtoull(scale, nullptr, 10));
}

}  // namespace torch_ext::program::test
