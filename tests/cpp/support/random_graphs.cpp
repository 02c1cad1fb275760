#include "support/random_graphs.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <numeric>
#include <utility>

#include "sched/instance.h"

namespace torch_ext::sched::test {
namespace {

using Skeleton = std::vector<std::vector<OpId>>;  // per op its predecessors, all of lower number

struct Part {
  std::vector<OpId> sources;
  std::vector<OpId> sinks;
};

OpId NewOp(Skeleton& skeleton, std::vector<OpId> predecessors = {}) {
  skeleton.push_back(std::move(predecessors));
  return static_cast<OpId>(skeleton.size()) - 1;
}

void Append(std::vector<OpId>& to, const std::vector<OpId>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

Part AddSeriesParallel(Skeleton& skeleton, std::int64_t num_ops, Random& random) {
  if (num_ops == 1) {
    const OpId v = NewOp(skeleton);
    return {{v}, {v}};
  }
  const std::int64_t left = random.Between(1, num_ops - 1);
  Part a = AddSeriesParallel(skeleton, left, random);
  Part b = AddSeriesParallel(skeleton, num_ops - left, random);
  if (random.Chance(50)) {
    for (OpId v : b.sources) Append(skeleton[v], a.sinks);
    return {std::move(a.sources), std::move(b.sinks)};
  }
  Append(a.sources, b.sources);
  Append(a.sinks, b.sinks);
  return a;
}

// Splits `total` into `count` positive parts.
std::vector<std::int64_t> Split(std::int64_t total, std::int64_t count, Random& random) {
  std::vector<std::int64_t> parts(static_cast<std::size_t>(count), 1);
  for (std::int64_t i = count; i < total; ++i) ++parts[random.Between(0, count - 1)];
  return parts;
}

// Ops that run after `before`; returns the last one.
OpId AddNested(Skeleton& skeleton, std::int64_t num_ops, std::vector<OpId> before, Random& random) {
  const OpId fork = NewOp(skeleton, std::move(before));
  if (num_ops == 1) return fork;
  if (num_ops == 2) return NewOp(skeleton, {fork});
  const std::int64_t branches = random.Between(1, std::min<std::int64_t>(4, num_ops - 2));
  std::vector<OpId> ends;
  for (std::int64_t size : Split(num_ops - 2, branches, random)) {
    ends.push_back(AddNested(skeleton, size, {fork}, random));
  }
  return NewOp(skeleton, std::move(ends));
}

void AddPumpkin(Skeleton& skeleton, std::int64_t num_ops, Random& random) {
  const OpId source = NewOp(skeleton);
  if (num_ops < 3) {
    if (num_ops == 2) NewOp(skeleton, {source});
    return;
  }
  const std::int64_t chains = random.Between(1, std::min<std::int64_t>(5, num_ops - 2));
  std::vector<OpId> ends;
  for (std::int64_t length : Split(num_ops - 2, chains, random)) {
    OpId last = source;
    for (std::int64_t i = 0; i < length; ++i) last = NewOp(skeleton, {last});
    ends.push_back(last);
  }
  NewOp(skeleton, std::move(ends));
}

void AddLayered(Skeleton& skeleton, std::int64_t num_ops, Random& random) {
  const std::int64_t width = random.Between(2, 4);
  for (OpId v = 0; v < num_ops; ++v) {
    std::vector<OpId> predecessors;
    const auto layer = v / width;
    for (OpId u = 0; u < v; ++u) {
      const auto distance = layer - u / width;
      if (distance == 1 ? random.Chance(50) : distance > 1 && random.Chance(8)) {
        predecessors.push_back(u);
      }
    }
    NewOp(skeleton, std::move(predecessors));
  }
}

void AddErdosRenyi(Skeleton& skeleton, std::int64_t num_ops, int percent, Random& random) {
  for (OpId v = 0; v < num_ops; ++v) {
    std::vector<OpId> predecessors;
    for (OpId u = 0; u < v; ++u) {
      if (random.Chance(percent)) predecessors.push_back(u);
    }
    NewOp(skeleton, std::move(predecessors));
  }
}

Skeleton MakeSkeleton(Shape shape, std::int64_t num_ops, Random& random) {
  Skeleton skeleton;
  switch (shape) {
    case Shape::kSeriesParallel:
      AddSeriesParallel(skeleton, num_ops, random);
      break;
    case Shape::kNested:
      AddNested(skeleton, num_ops, {}, random);
      break;
    case Shape::kPumpkin:
      AddPumpkin(skeleton, num_ops, random);
      break;
    case Shape::kLayered:
      AddLayered(skeleton, num_ops, random);
      break;
    case Shape::kOutTree:
      for (OpId v = 0; v < num_ops; ++v) {
        const auto parent = static_cast<OpId>(v == 0 ? 0 : random.Between(0, v - 1));
        NewOp(skeleton, v == 0 ? std::vector<OpId>{} : std::vector<OpId>{parent});
      }
      break;
    case Shape::kInTree:
      skeleton.resize(static_cast<std::size_t>(num_ops));
      for (OpId v = 0; v + 1 < num_ops; ++v) {
        skeleton[random.Between(v + 1, num_ops - 1)].push_back(v);
      }
      break;
    case Shape::kSparse:
      AddErdosRenyi(skeleton, num_ops, static_cast<int>(200 / (num_ops + 1)), random);
      break;
    case Shape::kDense:
      AddErdosRenyi(skeleton, num_ops, static_cast<int>(random.Between(10, 70)), random);
      break;
    case Shape::kChain:
      for (OpId v = 0; v < num_ops; ++v) {
        NewOp(skeleton, v == 0 ? std::vector<OpId>{} : std::vector<OpId>{v - 1});
      }
      break;
    case Shape::kIndependent:
      skeleton.resize(static_cast<std::size_t>(num_ops));
      break;
  }
  return skeleton;
}

// The taste of one graph: how often what happens.
struct Taste {
  explicit Taste(Random& random)
      : size_mode(static_cast<int>(random.Between(0, 4))),
        after_percent(random.Chance(40) ? 20 : 0),
        kept_percent(random.Chance(50) ? 15 : 0),
        workspace_percent(random.Chance(40) ? 40 : 0),
        skip_percent(random.Chance(30) ? 30 : 0),
        most_outputs(random.Chance(50) ? 1 : 3),
        equal_bytes(random.Between(1, 7)) {}

  std::int64_t Bytes(Random& random) const {
    switch (size_mode) {
      case 0:
        return equal_bytes;
      case 1:
        return random.Chance(40) ? 0 : random.Between(1, 5);
      case 2:
        return random.Between(1, 9);
      case 3:
        return std::int64_t{1} << random.Between(0, 12);
      default:
        return random.Between(0, std::int64_t{1} << 40);
    }
  }

  int size_mode;
  int after_percent;
  int kept_percent;
  int workspace_percent;
  int skip_percent;
  int most_outputs;
  std::int64_t equal_bytes;
};

// Turns precedences into buffers and draws the rest.
class Decorator {
 public:
  Decorator(const Skeleton& skeleton, Random& random)
      : skeleton_(skeleton),
        random_(random),
        taste_(random),
        reads_(skeleton.size()),
        writes_(skeleton.size()),
        after_(skeleton.size()) {}

  Graph Run() {
    AddInputs();
    std::vector<char> has_successor(skeleton_.size(), 0);
    for (const auto& predecessors : skeleton_) {
      for (OpId p : predecessors) has_successor[p] = 1;
    }
    for (std::size_t v = 0; v < skeleton_.size(); ++v) {
      AddOutputs(v, has_successor[v]);
      for (OpId p : skeleton_[v]) AddPrecedence(p, v);
      if (random_.Chance(taste_.skip_percent)) AddSkipRead(v);
      const bool scratch = random_.Chance(taste_.workspace_percent);
      graph_.AddOp("op" + std::to_string(v), reads_[v], writes_[v],
                   scratch ? taste_.Bytes(random_) : 0, after_[v]);
    }
    return std::move(graph_);
  }

 private:
  void AddInputs() {
    const std::int64_t count = random_.Between(0, 3);
    for (std::int64_t i = 0; i < count; ++i) {
      const BufferId b =
          graph_.AddInput("in" + std::to_string(i), taste_.Bytes(random_), random_.Chance(20));
      // Nobody, one op, a few or most of them read it.
      const int percent = std::array{0, 0, 20, 60}[random_.Between(0, 3)];
      for (auto& reads : reads_) {
        if (random_.Chance(percent)) reads.push_back(b);
      }
      if (random_.Chance(50)) {
        reads_[random_.Between(0, static_cast<std::int64_t>(reads_.size()) - 1)].push_back(b);
      }
    }
  }

  void AddOutputs(std::size_t v, bool has_successor) {
    const std::int64_t count = random_.Between(has_successor ? 1 : 0, taste_.most_outputs);
    for (std::int64_t i = 0; i < count; ++i) {
      const bool kept = random_.Chance(has_successor ? taste_.kept_percent : 50);
      writes_[v].push_back(graph_.AddBuffer("b" + std::to_string(v) + "_" + std::to_string(i),
                                            taste_.Bytes(random_), kept));
    }
  }

  void AddPrecedence(OpId p, std::size_t v) {
    if (random_.Chance(taste_.after_percent)) {
      after_[v].push_back(p);
    } else {
      reads_[v].push_back(random_.Pick(writes_[p]));
    }
  }

  // Reads something of an ancestor, which adds no precedence.
  void AddSkipRead(std::size_t v) {
    std::vector<char> is_ancestor(skeleton_.size(), 0);
    for (std::size_t u = v + 1; u-- > 0;) {
      if (u != v && !is_ancestor[u]) continue;
      for (OpId p : skeleton_[u]) is_ancestor[p] = 1;
    }
    std::vector<BufferId> choices;
    for (std::size_t u = 0; u < v; ++u) {
      if (is_ancestor[u]) choices.insert(choices.end(), writes_[u].begin(), writes_[u].end());
    }
    if (!choices.empty()) reads_[v].push_back(random_.Pick(choices));
  }

  const Skeleton& skeleton_;
  Random& random_;
  Taste taste_;
  std::vector<std::vector<BufferId>> reads_;
  std::vector<std::vector<BufferId>> writes_;
  std::vector<std::vector<OpId>> after_;
  Graph graph_;
};

BufferId AddCopy(Graph& graph, const Buffer& b, std::int64_t size_bytes) {
  return b.is_input() ? graph.AddInput(b.name, size_bytes, b.kept)
                      : graph.AddBuffer(b.name, size_bytes, b.kept);
}

}  // namespace

Graph RandomGraph(Shape shape, std::int32_t num_ops, Random& random) {
  const Skeleton skeleton = MakeSkeleton(shape, num_ops, random);
  Graph graph = Decorator(skeleton, random).Run();
  // The order of construction is often a good one; half the time start from any.
  return random.Chance(50) ? Relabelled(graph, RandomOrder(graph, random)) : graph;
}

Graph RandomGraph(std::uint64_t seed, std::int32_t max_ops) {
  Random random(seed);
  const Shape shape = kShapes[seed % kShapes.size()];
  const std::int64_t least = random.Chance(70) ? (max_ops + 1) / 2 : 1;
  return RandomGraph(shape, static_cast<std::int32_t>(random.Between(least, max_ops)), random);
}

std::string Describe(const Graph& graph, std::uint64_t seed) {
  return "seed " + std::to_string(seed) + "\n" + PrintInstance(graph);
}

Order RandomOrder(const Graph& graph, Random& random) {
  std::vector<std::size_t> waits_for;
  std::vector<OpId> ready;
  for (const Op& op : graph.ops()) waits_for.push_back(op.predecessors.size());
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    if (waits_for[v] == 0) ready.push_back(v);
  }
  Order order;
  while (!ready.empty()) {
    const auto at = ready.begin() + random.Between(0, std::ssize(ready) - 1);
    const OpId v = *at;
    ready.erase(at);
    order.push_back(v);
    for (OpId next : graph.op(v).successors) {
      if (--waits_for[next] == 0) ready.push_back(next);
    }
  }
  return order;
}

Graph Relabelled(const Graph& graph, std::span<const OpId> order) {
  Graph result;
  for (const Buffer& b : graph.buffers()) AddCopy(result, b, b.size_bytes);
  std::vector<OpId> new_id(order.size(), kNoOp);
  for (OpId v : order) {
    const Op& op = graph.op(v);
    std::vector<OpId> after;
    for (OpId p : op.after) after.push_back(new_id[p]);
    new_id[v] = result.AddOp(op.name, op.reads, op.writes, op.workspace_bytes, std::move(after));
  }
  return result;
}

Graph Scaled(const Graph& graph, std::int64_t factor) {
  Graph result;
  for (const Buffer& b : graph.buffers()) AddCopy(result, b, b.size_bytes * factor);
  for (const Op& op : graph.ops()) {
    result.AddOp(op.name, op.reads, op.writes, op.workspace_bytes * factor, op.after);
  }
  return result;
}

Graph WithZeroByteOp(const Graph& graph, Random& random) {
  Graph result;
  for (const Buffer& b : graph.buffers()) AddCopy(result, b, b.size_bytes);
  const BufferId nothing = result.AddBuffer("nothing", 0);
  const auto at = static_cast<OpId>(random.Between(0, graph.num_ops()));
  const OpId before = at == 0 ? kNoOp : static_cast<OpId>(random.Between(0, at - 1));
  for (OpId v = 0; v <= graph.num_ops(); ++v) {
    if (v == at) {
      result.AddOp("zero", {}, {nothing}, 0,
                   before == kNoOp ? std::vector<OpId>{} : std::vector<OpId>{before});
    }
    if (v == graph.num_ops()) break;
    const Op& op = graph.op(v);
    const auto shifted = [&](OpId u) { return u < at ? u : u + 1; };
    std::vector<OpId> after;
    for (OpId u : op.after) after.push_back(shifted(u));
    std::vector<BufferId> reads = op.reads;
    const bool comes_later_anyway =
        v >= at && (before == kNoOp || std::ranges::binary_search(op.predecessors, before));
    if (comes_later_anyway && random.Chance(50)) {
      if (random.Chance(50)) {
        reads.push_back(nothing);
      } else {
        after.push_back(at);
      }
    }
    result.AddOp(op.name, std::move(reads), op.writes, op.workspace_bytes, std::move(after));
  }
  return result;
}

Graph WithOneReaderEach(const Graph& graph) {
  Graph result;
  for (const Buffer& b : graph.buffers()) AddCopy(result, b, b.size_bytes);
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const Op& op = graph.op(v);
    std::vector<BufferId> reads;
    std::vector<OpId> after = op.after;
    for (BufferId b : op.reads) {
      const Buffer& buffer = graph.buffer(b);
      if (buffer.kept || buffer.users.front() == v) {
        reads.push_back(b);
      } else if (!buffer.is_input()) {
        after.push_back(buffer.producer);
      }
    }
    result.AddOp(op.name, std::move(reads), op.writes, op.workspace_bytes, std::move(after));
  }
  return result;
}

Graph Reversed(const Graph& graph) {
  Graph result;
  const std::int32_t n = graph.num_ops();
  std::vector<std::vector<BufferId>> reads(n), writes(n);
  std::vector<std::int64_t> workspace_bytes(n);
  for (OpId v = 0; v < n; ++v) workspace_bytes[v] = graph.op(v).workspace_bytes;
  for (const Buffer& b : graph.buffers()) {
    if (b.is_input() && b.kept) {
      result.AddInput(b.name, b.size_bytes, true);
    } else if (b.kept) {
      reads[b.producer].push_back(result.AddInput(b.name, b.size_bytes));
    } else if (!b.users.empty()) {
      const BufferId id = result.AddBuffer(b.name, b.size_bytes, b.is_input());
      writes[b.users.front()].push_back(id);
      if (!b.is_input()) reads[b.producer].push_back(id);
    } else if (!b.is_input()) {
      workspace_bytes[b.producer] += b.size_bytes;  // alive while its producer runs, and only then
    }
  }
  for (OpId v = n - 1; v >= 0; --v) {
    std::vector<OpId> after;
    for (OpId s : graph.op(v).successors) after.push_back(n - 1 - s);
    result.AddOp(graph.op(v).name, reads[v], writes[v], workspace_bytes[v], std::move(after));
  }
  return result;
}

int ScaledCount(int count) {
  const char* text = std::getenv("TORCH_EXT_TEST_SCALE");
  const double scale = text == nullptr ? 1.0 : std::strtod(text, nullptr);
  return std::max(1, static_cast<int>(count * scale));
}

}  // namespace torch_ext::sched::test
