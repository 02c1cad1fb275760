#include "sched/state_space.h"

#include <algorithm>

namespace torch_ext::sched {

StateSpace::StateSpace(const Graph& graph, Direction direction, std::span<const char> from,
                       std::span<const char> to, const Rules& rules)
    : direction_(direction),
      rules_(rules),
      words_(static_cast<std::size_t>((graph.num_ops() + 63) / 64)) {
  const bool forward = direction == Direction::kForward;
  const auto has_run = [&](OpId v) { return from.empty() ? !forward : from[v] != 0; };
  const auto will_have_run = [&](OpId v) { return to.empty() ? forward : to[v] != 0; };

  std::vector<Range> users_of(graph.buffers().size());
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    const Buffer& buffer = graph.buffer(b);
    const bool can_die = !buffer.kept && buffer.size_bytes > 0;
    if (can_die) users_of[b] = AddParts(buffer.users);
    const bool born = buffer.is_input() || has_run(buffer.producer);
    const bool needed =
        buffer.kept || std::ranges::any_of(buffer.users, [&](OpId u) { return !has_run(u); });
    if (born && needed) start_bytes_ += buffer.size_bytes;
  }
  start_.assign(words_per_state(), 0);
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const Op& op = graph.op(v);
    std::int64_t grow = 0;
    for (BufferId b : op.writes) {
      const Buffer& buffer = graph.buffer(b);
      if (buffer.kept || !buffer.users.empty()) grow += buffer.size_bytes;
    }
    grow_bytes_.push_back(grow);
    hill_bytes_.push_back(graph.HillBytes(v));
    const auto first_read = static_cast<std::uint32_t>(reads_.size());
    for (BufferId b : op.reads) {
      if (users_of[b].begin != users_of[b].end) {
        reads_.push_back({graph.buffer(b).size_bytes, users_of[b]});
      }
    }
    reads_of_.push_back({first_read, static_cast<std::uint32_t>(reads_.size())});
    waits_for_.push_back(AddParts(forward ? op.predecessors : op.successors));

    const auto first_next = static_cast<std::uint32_t>(next_.size());
    for (OpId u : forward ? op.successors : op.predecessors) {
      if (has_run(u) != will_have_run(u)) next_.push_back(u);
    }
    next_of_.push_back({first_next, static_cast<std::uint32_t>(next_.size())});
    if (has_run(v) == forward) start_[v >> 6] |= Word{1} << (v & 63);
  }
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    if (has_run(v) == will_have_run(v)) continue;
    ++num_steps_;
    const Op& op = graph.op(v);
    if (std::ranges::all_of(forward ? op.predecessors : op.successors,
                            [&](OpId u) { return Contains(start_.data(), u); })) {
      start_[words_ + static_cast<std::size_t>(v >> 6)] |= Word{1} << (v & 63);
    }
  }
}

StateSpace::Range StateSpace::AddParts(std::span<const OpId> ops) {
  const auto begin = static_cast<std::uint32_t>(parts_.size());
  for (OpId v : ops) {  // ascending
    const auto word = static_cast<std::uint32_t>(v >> 6);
    if (parts_.size() == begin || parts_.back().word != word) parts_.push_back({word, 0});
    parts_.back().bits |= Word{1} << (v & 63);
  }
  return {begin, static_cast<std::uint32_t>(parts_.size())};
}

State::Move StateSpace::Look(const Word* state, std::int64_t live_bytes, OpId v) const {
  const bool forward = direction_ == Direction::kForward;
  std::int64_t net = grow_bytes_[v];
  // A buffer dies at v if all its users but v have run: forward, have stepped; backward, have not.
  for (std::uint32_t r = reads_of_[v].begin; r < reads_of_[v].end; ++r) {
    const Read& read = reads_[r];
    bool dies = true;
    for (std::uint32_t i = read.users.begin; i < read.users.end && dies; ++i) {
      const Part& part = parts_[i];
      Word waiting = part.bits & (forward ? ~state[part.word] : state[part.word]);
      if (part.word == static_cast<std::uint32_t>(v >> 6)) waiting &= ~(Word{1} << (v & 63));
      dies = waiting == 0;
    }
    if (dies) net -= read.size_bytes;
  }
  if (forward) return {live_bytes + hill_bytes_[v], live_bytes + net};
  return {live_bytes - net + hill_bytes_[v], live_bytes - net};
}

void StateSpace::Step(Word* state, OpId v) const {
  const Word bit = Word{1} << (v & 63);
  state[v >> 6] |= bit;
  Word* ready = state + words_;
  ready[v >> 6] &= ~bit;
  for (std::uint32_t i = next_of_[v].begin; i < next_of_[v].end; ++i) {
    const OpId u = next_[i];
    bool waits = false;
    for (std::uint32_t p = waits_for_[u].begin; p < waits_for_[u].end && !waits; ++p) {
      waits = (parts_[p].bits & ~state[parts_[p].word]) != 0;
    }
    if (!waits) ready[u >> 6] |= Word{1} << (u & 63);
  }
}

std::int64_t StateSpace::TakeSafeSteps(Word* state, std::int64_t live_bytes,
                                       std::int64_t limit_bytes, const Word* except,
                                       std::vector<OpId>* steps, std::int64_t& num_looks) const {
  const Word* ready = state + words_;
  const auto candidates = [&](std::size_t w) {
    return except == nullptr ? ready[w] : ready[w] & ~except[w];
  };
  // Round and round the words until one round has found nothing.
  for (std::size_t w = 0, quiet = 0; quiet < words_; w = w + 1 == words_ ? 0 : w + 1) {
    ++quiet;
    for (Word left = candidates(w); left != 0;) {
      const OpId v = static_cast<OpId>(w * 64 + static_cast<std::size_t>(__builtin_ctzll(left)));
      ++num_looks;
      const State::Move move = Look(state, live_bytes, v);
      if (move.hill_bytes <= limit_bytes && move.live_bytes <= live_bytes) {
        Step(state, v);
        live_bytes = move.live_bytes;
        if (steps != nullptr) steps->push_back(v);
        quiet = 0;
        left = candidates(w);
      } else {
        left &= left - 1;
      }
    }
  }
  return live_bytes;
}

OpId StateSpace::FindSafeRun(const Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                             std::vector<Word>& scratch, std::int64_t& num_looks) const {
  if (!rules_.safe_steps || !rules_.safe_runs) return kNoOp;
  OpId found = kNoOp;
  ForEach(ready(state), [&](OpId v) {
    if (found != kNoOp) return;
    ++num_looks;
    const State::Move move = Look(state, live_bytes, v);
    if (move.hill_bytes > limit_bytes) return;
    scratch.assign(state, state + words_per_state());
    Step(scratch.data(), v);
    if (TakeSafeSteps(scratch.data(), move.live_bytes, limit_bytes, ready(state), nullptr,
                      num_looks) <= live_bytes) {
      found = v;
    }
  });
  return found;
}

}  // namespace torch_ext::sched
