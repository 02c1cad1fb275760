#include "program/levers/repeat_bound.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>
#include <utility>

#include "program/lower.h"
#include "sched/flow.h"

namespace torch_ext::program {
namespace {

using sched::FlowNetwork;
__extension__ using Wide = __int128;

constexpr std::int64_t kInfinite = sched::kSizeLimitBytes;
constexpr int kMostPrices = 24;
constexpr std::size_t kMostOps = 32;

// For each byte, as a fraction.
struct Price {
  std::int64_t nanoseconds = 0;
  std::int64_t bytes = 1;

  Wide Of(std::int64_t size_bytes) const {
    return static_cast<Wide>(size_bytes) * nanoseconds / bytes;
  }
};

}  // namespace

// The picture of the header for one op.
struct RepeatBound::Question {
  std::int64_t need_bytes = 0;
  std::vector<BufferId> needed;  // of need(v)
  struct Choice {                // a buffer that may be held, or made again by those ops
    std::int64_t bytes = 0;
    bool crosses = false;
    std::vector<std::int32_t> makers;  // places in `again`; none: it can only be held
  };
  struct Again {
    OpId op = sched::kNoOp;
    std::int64_t nanoseconds = 0;
    std::vector<std::int32_t> reads;  // places in `choices`
  };
  std::vector<Choice> choices;
  std::vector<Again> again;

  struct Answer {
    std::int64_t cut = 0, held_bytes = 0, nanoseconds = 0;
    std::vector<OpId> again;
    bool is_exact = false;
  };
  // The cheapest for that price; `times`: whether time counts.
  Answer Solve(const Price& price, bool times, sched::Budget& budget) const {
    // So that no sum overflows. A smaller capacity keeps a cut a lower bound.
    const Wide most = kInfinite / static_cast<std::int64_t>(choices.size() + again.size() + 1);
    const auto capacity = [&](Wide amount) {
      return static_cast<std::int64_t>(std::min(amount, most));
    };
    FlowNetwork network;
    std::vector<std::int32_t> held(choices.size()), op(again.size());
    for (std::int32_t& node : held) node = network.AddNode();
    for (std::int32_t& node : op) node = network.AddNode();
    std::vector<std::int32_t> anew(choices.size(), FlowNetwork::kSink);
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const Choice& choice = choices[i];
      if (choice.crosses) network.AddEdge(FlowNetwork::kSource, held[i], kInfinite);
      if (!choice.makers.empty()) anew[i] = network.AddNode();
      network.AddEdge(held[i], anew[i], capacity(price.Of(choice.bytes)));
      for (const std::int32_t m : choice.makers) network.AddEdge(anew[i], op[m], kInfinite);
    }
    for (std::size_t m = 0; m < again.size(); ++m) {
      if (times) network.AddEdge(op[m], FlowNetwork::kSink, capacity(again[m].nanoseconds));
      for (const std::int32_t c : again[m].reads) network.AddEdge(op[m], held[c], kInfinite);
    }
    Answer answer;
    answer.cut = network.MaxFlow(budget);
    answer.is_exact = network.is_maximal();
    if (!answer.is_exact) return answer;
    for (std::size_t i = 0; i < choices.size(); ++i) {
      const bool is_held = network.OnSourceSide(held[i]) &&
                           (anew[i] == FlowNetwork::kSink || !network.OnSourceSide(anew[i]));
      if (is_held) answer.held_bytes += choices[i].bytes;
    }
    for (std::size_t m = 0; m < again.size(); ++m) {
      if (!network.OnSourceSide(op[m])) continue;
      answer.nanoseconds += again[m].nanoseconds;
      answer.again.push_back(again[m].op);
    }
    return answer;
  }
};

RepeatBound::RepeatBound(const Program& program, bool overwrite)
    : rerunner_(program, overwrite),
      readers_(program.buffers.size()),
      maker_(program.buffers.size(), sched::kNoOp) {
  const sched::Graph graph = Lower(program);
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    before_.push_back(graph.op(v).predecessors);
    after_.push_back(graph.op(v).successors);
    for (const BufferId b : program.ops[v].reads) readers_[b].push_back(v);
    for (const BufferId b : program.ops[v].writes) maker_[b] = v;
  }
}

RepeatBound::Question RepeatBound::Ask(OpId v) const {
  const Program& program = rerunner_.program();
  const std::vector<Rerunner::Step>& steps = rerunner_.steps();
  const auto reached = [&](const std::vector<std::vector<OpId>>& next) {
    std::vector<char> is_reached(steps.size(), 0);
    std::vector<OpId> left{v};
    while (!left.empty()) {
      const OpId u = left.back();
      left.pop_back();
      for (const OpId w : next[u]) {
        if (is_reached[w]) continue;
        is_reached[w] = 1;
        left.push_back(w);
      }
    }
    return is_reached;
  };
  const std::vector<char> is_before = reached(before_), is_after = reached(after_);
  const auto is_free = [&](OpId m) { return m != v && !is_before[m] && !is_after[m]; };
  // May it run after the first run of v, for the first time or again?
  const auto may_run_later = [&](OpId m) {
    if (is_free(m)) return true;
    return steps[m].may_repeat &&
           std::ranges::none_of(steps[m].deadlines, [&](OpId u) { return u == v || is_before[u]; });
  };
  Question question;
  const Op& op = program.ops[v];
  question.need_bytes = op.workspace_bytes;
  std::set<BufferId> in_need;
  const auto add_to_need = [&](BufferId b) {
    if (!in_need.insert(b).second) return;
    question.need_bytes += program.buffers[b].bytes;
    question.needed.push_back(b);
  };
  for (const BufferId b : op.reads) add_to_need(b);
  for (std::size_t slot = 0; slot < op.writes.size(); ++slot) {
    add_to_need(op.writes[slot]);
    const bool may_overwrite = std::ranges::any_of(
        steps[v].overwrites,
        [&](const Rerunner::Over& over) { return over.held == static_cast<std::int32_t>(slot); });
    if (may_overwrite) question.need_bytes -= program.buffers[op.writes[slot]].bytes;
  }
  // Each buffer that may be there when v runs first: the ops that would have to run later for it.
  struct Crossing {
    bool is_made = false, crosses = false, can_be_made = false;
    std::vector<OpId> again;
  };
  std::vector<Crossing> crossing(program.buffers.size());
  for (BufferId b = 0; b < static_cast<BufferId>(program.buffers.size()); ++b) {
    Crossing& it = crossing[b];
    const OpId maker = maker_[b];
    it.is_made = maker == sched::kNoOp || is_before[maker] || is_free(maker);
    if (!it.is_made) continue;
    std::int32_t version = 0;
    for (const OpId u : readers_[b]) {
      if (!is_after[u]) continue;
      it.crosses = true;
      const auto read = std::ranges::find(steps[u].reads, b, &Rerunner::Read::buffer);
      version = std::max(version, read->version);
    }
    if (program.buffers[b].kept) {
      it.crosses = true;
      version = static_cast<std::int32_t>(rerunner_.mutators(b).size());
    }
    it.can_be_made = maker != sched::kNoOp && may_run_later(maker);
    if (!it.can_be_made) continue;
    it.again.push_back(maker);
    for (std::int32_t w = 0; w < version; ++w) {
      const OpId mutator = rerunner_.mutators(b)[w];
      if (!is_before[mutator] && !is_free(mutator)) continue;
      it.can_be_made &= may_run_later(mutator);
      it.again.push_back(mutator);
    }
  }
  for (BufferId b = 0; b < static_cast<BufferId>(crossing.size()); ++b) {
    if (crossing[b].is_made && crossing[b].crosses && !crossing[b].can_be_made) add_to_need(b);
  }
  std::vector<std::int32_t> choice_of(program.buffers.size(), -1), place_of(steps.size(), -1);
  std::vector<BufferId> left;
  const auto choice_for = [&](BufferId b) {
    if (choice_of[b] < 0) {
      choice_of[b] = static_cast<std::int32_t>(question.choices.size());
      question.choices.push_back({program.buffers[b].bytes, crossing[b].crosses, {}});
      left.push_back(b);
    }
    return choice_of[b];
  };
  for (BufferId b = 0; b < static_cast<BufferId>(crossing.size()); ++b) {
    if (crossing[b].is_made && crossing[b].crosses && !in_need.contains(b)) choice_for(b);
  }
  while (!left.empty()) {
    const BufferId b = left.back();
    left.pop_back();
    if (!crossing[b].can_be_made) continue;
    for (const OpId m : crossing[b].again) {
      if (place_of[m] < 0) {
        place_of[m] = static_cast<std::int32_t>(question.again.size());
        question.again.push_back({m, is_free(m) ? 0 : steps[m].nanoseconds, {}});
        for (const Rerunner::Read& read : steps[m].reads) {
          if (in_need.contains(read.buffer)) continue;
          const std::int32_t choice = choice_for(read.buffer);
          question.again[place_of[m]].reads.push_back(choice);
        }
      }
      question.choices[choice_of[b]].makers.push_back(place_of[m]);
    }
  }
  return question;
}

RepeatBound::Floor RepeatBound::FindFloor(std::span<const OpId> order,
                                          sched::Budget& budget) const {
  Rerunner rerunner = rerunner_;
  rerunner.Judge(order, 0);
  std::vector<std::size_t> positions(order.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::ranges::stable_sort(positions, std::greater<>(),
                           [&](std::size_t i) { return rerunner.hill_bytes()[i]; });
  Floor floor;
  const Program& program = rerunner_.program();
  for (const Buffer& buffer : program.buffers) floor.bytes += buffer.kept ? buffer.bytes : 0;
  for (const std::size_t i : positions) {
    if (rerunner.hill_bytes()[i] <= floor.bytes || !budget.HasWork()) break;
    budget.Spend(static_cast<std::int64_t>(order.size()));
    Question question = Ask(order[i]);
    const Question::Answer answer = question.Solve({1, 1}, /*times=*/false, budget);
    const std::int64_t bytes = question.need_bytes + answer.cut;
    if (bytes > floor.bytes) floor = {order[i], bytes, std::move(question.needed)};
  }
  return floor;
}

std::optional<RepeatBound::Extra> RepeatBound::FindExtra(OpId v, std::int64_t budget_bytes,
                                                         sched::Budget& budget) const {
  budget.Spend(static_cast<std::int64_t>(rerunner_.steps().size()));
  const Question question = Ask(v);
  const std::int64_t room_bytes = budget_bytes - question.need_bytes;
  const Question::Answer lightest = question.Solve({1, 1}, /*times=*/false, budget);
  if (lightest.cut > room_bytes) return std::nullopt;
  Extra best;
  if (!lightest.is_exact) return best;
  // Two closures, one that takes no time and one that fits: the line between them is a price.
  std::int64_t slow = lightest.nanoseconds, small = lightest.held_bytes;
  std::int64_t fast = 0, large = 0;
  for (const Question::Choice& choice : question.choices) {
    if (choice.crosses) large += choice.bytes;
  }
  for (int i = 0; i < kMostPrices && large > room_bytes && slow > fast && large > small; ++i) {
    const Price price{slow - fast, large - small};
    const Question::Answer answer = question.Solve(price, /*times=*/true, budget);
    if (!answer.is_exact && !budget.HasWork()) break;
    const Wide bound = answer.cut - price.Of(room_bytes);
    if (bound > best.nanoseconds) best = {static_cast<std::int64_t>(bound), answer.again};
    const Wide of_line = fast + price.Of(large);
    if (answer.nanoseconds + price.Of(answer.held_bytes) >= of_line) break;
    const bool is_too_large = answer.held_bytes > room_bytes;
    (is_too_large ? fast : slow) = answer.nanoseconds;
    (is_too_large ? large : small) = answer.held_bytes;
  }
  return best;
}

std::optional<RepeatBound::Extra> RepeatBound::FindExtra(std::span<const OpId> order,
                                                         std::int64_t budget_bytes,
                                                         sched::Budget& budget) const {
  Rerunner rerunner = rerunner_;
  rerunner.Judge(order, budget_bytes);
  const std::vector<std::int64_t>& hills = rerunner.hill_bytes();
  std::vector<std::size_t> above;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (hills[i] > budget_bytes) above.push_back(i);
  }
  // The highest ones, and others spread over all.
  std::vector<std::size_t> asked = above;
  std::ranges::stable_sort(asked, std::greater<>(), [&](std::size_t i) { return hills[i]; });
  if (asked.size() > kMostOps / 2) asked.resize(kMostOps / 2);
  for (std::size_t k = 0; k < kMostOps / 2; ++k) {
    if (!above.empty()) asked.push_back(above[k * above.size() / (kMostOps / 2)]);
  }
  std::ranges::sort(asked);
  asked.erase(std::ranges::unique(asked).begin(), asked.end());
  Extra best;
  for (const std::size_t i : asked) {
    if (!budget.HasWork()) break;
    std::optional<Extra> extra = FindExtra(order[i], budget_bytes, budget);
    if (!extra) return std::nullopt;
    if (extra->nanoseconds > best.nanoseconds) best = std::move(*extra);
  }
  return best;
}

}  // namespace torch_ext::program
