#include "sched/contract.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <tuple>
#include <utility>

namespace torch_ext::sched {

Contractor::Contractor(const Graph& graph)
    : graph_(graph),
      last_use_(graph.buffers().size(), -1),
      run_of_(graph.ops().size(), -1),
      local_(graph.buffers().size(), -1) {
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    for (OpId u : graph.buffer(b).users) last_use_[b] = std::max(last_use_[b], u);
  }
}

Segment Contractor::SegmentOf(OpId v) const {
  Segment segment{graph_.HillBytes(v), 0, 1};
  for (BufferId b : graph_.op(v).writes) {
    if (graph_.buffer(b).kept || last_use_[b] >= 0) segment.net_bytes += Size(b);
  }
  for (BufferId b : graph_.op(v).reads) {
    if (!graph_.buffer(b).kept && last_use_[b] == v) segment.net_bytes -= Size(b);
  }
  return segment;
}

std::vector<std::vector<OpId>> Contractor::PrivateChains(std::span<const OpId> ops) {
  for (std::size_t i = 0; i < ops.size(); ++i) run_of_[ops[i]] = 0;
  const auto only_inside = [&](const std::vector<OpId>& neighbours) {
    OpId only = kNoOp;
    for (OpId u : neighbours) {
      if (run_of_[u] < 0) continue;
      if (only != kNoOp) return kNoOp;
      only = u;
    }
    return only;
  };
  std::vector<std::vector<OpId>> chains;
  for (OpId first : ops) {
    const OpId before = only_inside(graph_.op(first).predecessors);
    if (before != kNoOp && only_inside(graph_.op(before).successors) == first) continue;
    chains.push_back({first});
    while (true) {
      const OpId next = only_inside(graph_.op(chains.back().back()).successors);
      if (next == kNoOp || only_inside(graph_.op(next).predecessors) == kNoOp) break;
      chains.back().push_back(next);
    }
  }
  chain_of_.assign(graph_.ops().size(), -1);
  for (std::size_t c = 0; c < chains.size(); ++c) {
    for (OpId v : chains[c]) chain_of_[v] = static_cast<std::int32_t>(c);
  }
  for (OpId v : ops) run_of_[v] = -1;
  return chains;
}

bool Contractor::ReadsOnlyOwn(OpId v) const {
  return std::ranges::all_of(graph_.op(v).reads, [&](BufferId b) {
    const Buffer& buffer = graph_.buffer(b);
    return buffer.kept || buffer.size_bytes == 0 ||
           std::ranges::all_of(buffer.users, [&](OpId u) { return chain_of_[u] == chain_of_[v]; });
  });
}

Contraction Contractor::Contract(const std::vector<Chain>& chains,
                                 const std::vector<std::size_t>& parts) {
  OpId last_op = -1;
  for (const Chain& chain : chains) last_op = std::max(last_op, std::ranges::max(chain.ops));
  Contraction result;
  std::vector<Run> runs;
  std::vector<std::size_t> part_begin;  // in runs
  std::vector<BufferId> touched;
  for (std::size_t c = 0, part = 0; c < chains.size(); ++c) {
    if (part < parts.size() && parts[part] == c) {
      part_begin.push_back(runs.size());
      ++part;
    }
    const Chain& chain = chains[c];
    auto next = chain.ops.begin();
    for (std::size_t s = 0; s < chain.segments.size(); ++s) {
      Run run;
      run.ops.assign(next, next + chain.segments[s].num_ops);
      next += chain.segments[s].num_ops;
      run.hill_bytes = chain.segments[s].hill_bytes;
      if (s > 0) run.after.push_back(static_cast<OpId>(runs.size()) - 1);
      for (OpId v : run.ops) run_of_[v] = static_cast<std::int32_t>(runs.size());
      Connect(run, static_cast<std::int32_t>(runs.size()), last_op, result.graph, touched);
      runs.push_back(std::move(run));
    }
  }
  if (part_begin.empty()) {
    SortByFirstOp(runs);
  } else {
    part_begin.push_back(runs.size());
    BreakSymmetry(result.graph, runs, part_begin);
  }
  for (Run& run : runs) {
    result.graph.AddContractedOp(graph_.op(run.ops.front()).name, std::move(run.reads),
                                 std::move(run.writes), run.hill_bytes, std::move(run.after));
    result.runs.push_back(std::move(run.ops));
  }
  for (const std::vector<OpId>& ops : result.runs) {
    for (OpId v : ops) run_of_[v] = -1;
  }
  for (BufferId b : touched) local_[b] = -1;
  return result;
}

void Contractor::Connect(Run& run, std::int32_t id, OpId last_op, Graph& small,
                         std::vector<BufferId>& touched) {
  for (OpId v : run.ops) {
    const Op& op = graph_.op(v);
    for (OpId p : op.predecessors) {
      if (run_of_[p] >= 0 && run_of_[p] != id) run.after.push_back(run_of_[p]);
    }
    for (BufferId b : op.reads) {
      const Buffer& buffer = graph_.buffer(b);
      const bool outlives = buffer.kept || last_use_[b] > last_op;
      if (buffer.size_bytes == 0 || outlives) continue;
      if (!buffer.is_input() && run_of_[buffer.producer] == id) continue;
      if (local_[b] < 0) {
        local_[b] = small.AddInput(buffer.name, buffer.size_bytes);
        touched.push_back(b);
      }
      run.reads.push_back(local_[b]);
    }
    for (BufferId b : op.writes) {
      const Buffer& buffer = graph_.buffer(b);
      const bool outlives = buffer.kept || last_use_[b] > last_op;
      const bool read_by_others =
          std::ranges::any_of(buffer.users, [&](OpId u) { return run_of_[u] != id; });
      if (buffer.size_bytes == 0 || !(outlives || read_by_others)) continue;
      local_[b] = small.AddBuffer(buffer.name, buffer.size_bytes, outlives);
      touched.push_back(b);
      run.writes.push_back(local_[b]);
    }
  }
}

void Contractor::SortByFirstOp(std::vector<Run>& runs) {
  std::vector<std::vector<std::size_t>> next(runs.size());
  std::vector<std::size_t> waits_for(runs.size(), 0);
  std::priority_queue<std::pair<OpId, std::size_t>, std::vector<std::pair<OpId, std::size_t>>,
                      std::greater<>>
      ready;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    for (OpId p : runs[r].after) next[p].push_back(r);
    waits_for[r] = runs[r].after.size();
    if (waits_for[r] == 0) ready.emplace(std::ranges::min(runs[r].ops), r);
  }
  std::vector<OpId> place(runs.size());
  std::vector<Run> sorted;
  while (!ready.empty()) {
    const std::size_t r = ready.top().second;
    ready.pop();
    place[r] = static_cast<OpId>(sorted.size());
    for (OpId& p : runs[r].after) p = place[p];
    for (std::size_t u : next[r]) {
      if (--waits_for[u] == 0) ready.emplace(std::ranges::min(runs[u].ops), u);
    }
    sorted.push_back(std::move(runs[r]));
  }
  runs = std::move(sorted);
}

void Contractor::BreakSymmetry(const Graph& small, std::vector<Run>& runs,
                               const std::vector<std::size_t>& part_begin) const {
  using OpSignature = std::tuple<std::int64_t, std::vector<std::int64_t>, std::vector<std::int64_t>,
                                 std::vector<std::int64_t>>;
  std::map<std::vector<OpSignature>, std::size_t> last_equal;
  for (std::size_t part = 0; part + 1 < part_begin.size(); ++part) {
    const std::size_t begin = part_begin[part], end = part_begin[part + 1];
    std::map<BufferId, std::int64_t> written;  // the buffers of the part, in order of writing
    std::vector<OpSignature> signature;
    bool is_chain = true;
    for (std::size_t r = begin; r < end; ++r) {
      std::vector<std::int64_t> reads, writes, after;
      for (BufferId b : runs[r].reads) {
        const auto own = written.find(b);
        reads.push_back(own == written.end() ? b : -1 - own->second);
      }
      for (BufferId b : runs[r].writes) {
        written.emplace(b, static_cast<std::int64_t>(written.size()));
        writes.push_back(small.buffer(b).kept ? -1 - small.buffer(b).size_bytes
                                              : small.buffer(b).size_bytes);
      }
      for (OpId p : runs[r].after) after.push_back(p - static_cast<std::int64_t>(begin));
      std::ranges::sort(reads);
      std::ranges::sort(after);
      after.erase(std::unique(after.begin(), after.end()), after.end());
      is_chain = is_chain &&
                 (r == begin ||
                  (!after.empty() && after.back() + 1 == static_cast<std::int64_t>(r - begin)));
      signature.emplace_back(runs[r].hill_bytes, std::move(reads), std::move(writes),
                             std::move(after));
    }
    const auto [earlier, is_first] = last_equal.try_emplace(std::move(signature), part);
    if (is_first) continue;
    const std::size_t other = part_begin[earlier->second];
    earlier->second = part;
    for (std::size_t k = 0; k < (is_chain ? end - begin : 1); ++k) {
      runs[begin + k].after.push_back(static_cast<OpId>(other + k));
    }
  }
}

Order Contraction::Expand(const Order& order) const {
  Order expanded;
  for (OpId v : order) expanded.insert(expanded.end(), runs[v].begin(), runs[v].end());
  return expanded;
}

Contraction Contract(const Graph& graph, const std::vector<Chain>& chains) {
  Contraction result = Contractor(graph).Contract(chains, {});
  const std::int64_t passing_bytes = graph.StartBytes() - result.graph.StartBytes();
  if (passing_bytes > 0) result.graph.AddInput("passing_by", passing_bytes, /*kept=*/true);
  return result;
}

}  // namespace torch_ext::sched
