#include "program/instance.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "program/levers/repeat.h"
#include "sched/instance.h"

namespace torch_ext::program {
namespace {

const std::array<sched::Version, 2>& Versions() {
  static const std::array<sched::Version, 2> kVersions = [] {
    sched::Version two = sched::VersionOne();
    two.number = 2;
    two.op_words.emplace_back("nanoseconds", sched::Behind::kNumber);
    two.op_words.emplace_back("once", sched::Behind::kNothing);
    two.op_words.emplace_back("mutates", sched::Behind::kNames);
    return std::array{sched::VersionOne(), std::move(two)};
  }();
  return kVersions;
}

OpFacts FactsOf(const sched::OpLine& line) {
  static const sched::Quantity kTime{"time", "nanoseconds", kMostNanoseconds, "2^55"};
  OpFacts facts{.once = line.Has("once"), .mutates = line.Part("mutates")};
  if (line.Has("nanoseconds")) {
    facts.nanoseconds = sched::ParseNumber(line.Part("nanoseconds")[0], kTime);
  }
  return facts;
}

bool Mutates(const OpFacts& facts, const sched::Buffer& buffer) {
  return std::ranges::count(facts.mutates, buffer.name) > 0;
}

// Who has touched a buffer since it was last written to, and who wrote then.
struct Touched {
  OpId writer = sched::kNoOp;
  std::vector<OpId> readers;
};

}  // namespace

void GraphBuilder::AddBuffer(const std::string& name, std::int64_t size_bytes, bool input,
                             bool kept) {
  graph_.AddBuffer(name, size_bytes, input, kept);
}

void GraphBuilder::AddOp(const std::string& name, const std::vector<std::string>& reads,
                         const std::vector<std::string>& writes, std::int64_t workspace_bytes,
                         const std::vector<std::string>& after, OpFacts facts) {
  CheckFacts(name, reads, facts);
  graph_.AddOp(name, reads, writes, workspace_bytes, after);
  Keep(std::move(facts));
}

void GraphBuilder::CheckFacts(const std::string& op, const std::vector<std::string>& reads,
                              const OpFacts& facts) const {
  for (const std::string& b : facts.mutates) {
    if (std::ranges::count(reads, b) > 0) continue;
    throw std::invalid_argument("op '" + op + "' mutates '" + b +
                                "', which it does not read: name it behind reads, too");
  }
  if (facts.nanoseconds < 0) throw std::invalid_argument("the time of op '" + op + "' is negative");
  if (facts.nanoseconds > kMostNanoseconds - nanoseconds_) {
    throw std::invalid_argument("the sum of all times exceeds 2^55 nanoseconds at op '" + op + "'");
  }
}

void GraphBuilder::Keep(OpFacts facts) {
  nanoseconds_ += facts.nanoseconds;
  facts_.push_back(std::move(facts));
}

Program GraphBuilder::Build() const {
  const sched::Graph& graph = graph_.Build();
  Program program;
  for (const sched::Buffer& b : graph.buffers()) {
    program.buffers.push_back(
        {.name = b.name, .bytes = b.size_bytes, .is_input = b.is_input(), .kept = b.kept});
  }
  std::vector<Touched> touched(program.buffers.size());
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const sched::Op& op = graph.op(v);
    const OpFacts& facts = facts_[v];
    Op made{.name = op.name,
            .reads = op.reads,
            .writes = op.writes,
            .workspace_bytes = op.workspace_bytes,
            .nanoseconds = facts.nanoseconds};
    made.effects.runs_once = facts.once || facts.nanoseconds == 0;
    for (const OpId u : op.after) program.conflicts.push_back({.earlier = u, .later = v});
    for (const BufferId b : op.reads) {
      const bool is_input = graph.buffer(b).is_input();
      const auto conflict = [&](OpId earlier) {
        program.conflicts.push_back({.earlier = earlier, .later = v, .is_inside = !is_input});
      };
      Touched& before = touched[b];
      if (before.writer != sched::kNoOp) conflict(before.writer);
      if (!Mutates(facts, graph.buffer(b))) {
        before.readers.push_back(v);
        continue;
      }
      for (const OpId reader : before.readers) conflict(reader);
      before = {.writer = v};
      made.mutates.push_back(b);
      made.effects.writes_outside |= is_input;
    }
    program.ops.push_back(std::move(made));
  }
  return program;
}

GraphBuilder ParseInstance(std::string_view text, const std::string& file) {
  sched::Instance instance = sched::ReadInstance(text, file, Versions());
  GraphBuilder builder;
  builder.graph_ = std::move(instance.builder);
  for (const sched::OpLine& line : instance.ops) {
    try {
      OpFacts facts = FactsOf(line);
      builder.CheckFacts(line.name, line.Part("reads"), facts);
      builder.Keep(std::move(facts));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(sched::AtLine(file, line.line, error.what()));
    }
  }
  return builder;
}

std::string PrintInstance(const GraphBuilder& builder) {
  const sched::Graph& graph = builder.graph_.Build();
  if (std::ranges::none_of(builder.facts_, &OpFacts::SaysMore)) return sched::PrintInstance(graph);
  const sched::Version& version = Versions()[1];
  const auto check = [&](const std::string& name) {
    if (!version.HasWord(name)) return;
    throw std::invalid_argument("'" + name + "' is a word of 'graph 2', which says what this " +
                                "graph needs: give it another name");
  };
  for (const sched::Buffer& b : graph.buffers()) check(b.name);
  for (const sched::Op& op : graph.ops()) check(op.name);
  return sched::PrintInstance(graph, version, [&](OpId v) {
    const OpFacts& facts = builder.facts_[v];
    std::string more;
    if (!facts.mutates.empty()) more += " mutates";
    for (const BufferId b : graph.op(v).reads) {
      if (Mutates(facts, graph.buffer(b))) more += " " + graph.buffer(b).name;
    }
    if (facts.nanoseconds) more += " nanoseconds " + std::to_string(facts.nanoseconds);
    if (facts.once) more += " once";
    return more;
  });
}

}  // namespace torch_ext::program
