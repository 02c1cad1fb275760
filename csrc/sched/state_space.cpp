#include "sched/state_space.h"

#include <algorithm>
#include <limits>
#include <utility>

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
  touched_.assign(words_, 0);
  held_.assign(words_, 0);
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
    std::vector<OpId> readers;
    for (BufferId b : op.reads) {
      if (users_of[b].begin == users_of[b].end) continue;
      const auto& users = graph.buffer(b).users;
      readers.insert(readers.end(), users.begin(), users.end());
    }
    std::ranges::sort(readers);
    reads_with_.push_back(AddParts(readers));
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

bool StateSpace::Waits(const Word* state, OpId v) const {
  for (std::uint32_t p = waits_for_[v].begin; p < waits_for_[v].end; ++p) {
    if ((parts_[p].bits & ~state[parts_[p].word]) != 0) return true;
  }
  return false;
}

bool StateSpace::MakesReady(Word* state, OpId v) const {
  const Word bit = Word{1} << (v & 63);
  state[v >> 6] |= bit;
  bool makes_ready = false;
  for (std::uint32_t i = next_of_[v].begin; i < next_of_[v].end && !makes_ready; ++i) {
    makes_ready = !Waits(state, next_[i]);
  }
  state[v >> 6] &= ~bit;
  return makes_ready;
}

void StateSpace::Step(Word* state, OpId v, Word* touched) const {
  const auto bit_of = [](OpId u) { return Word{1} << (u & 63); };
  state[v >> 6] |= bit_of(v);
  Word* ready = state + words_;
  ready[v >> 6] &= ~bit_of(v);
  for (std::uint32_t i = next_of_[v].begin; i < next_of_[v].end; ++i) {
    const OpId u = next_[i];
    if (Waits(state, u)) continue;
    ready[u >> 6] |= bit_of(u);
    if (touched != nullptr) touched[u >> 6] |= bit_of(u);
  }
  if (touched == nullptr) return;
  for (std::uint32_t p = reads_with_[v].begin; p < reads_with_[v].end; ++p) {
    touched[parts_[p].word] |= parts_[p].bits;
  }
}

std::int64_t StateSpace::TakeSafeSteps(Word* state, std::int64_t live_bytes,
                                       std::int64_t limit_bytes, std::vector<OpId>* steps,
                                       std::int64_t& num_looks) {
  if (!rules_.safe_steps) return live_bytes;
  std::copy_n(state + words_, words_, touched_.begin());
  return TakeTouched(state, live_bytes, limit_bytes, live_bytes, nullptr, steps, num_looks);
}

std::int64_t StateSpace::StepSafely(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                                    OpId v, std::int64_t& num_looks) {
  const std::int64_t next_bytes = Look(state, live_bytes, v).live_bytes;
  if (!rules_.safe_steps) {
    Step(state, v);
    return next_bytes;
  }
  Step(state, v, touched_.data());
  return TakeTouched(state, next_bytes, limit_bytes, live_bytes, nullptr, nullptr, num_looks);
}

std::int64_t StateSpace::TakeTouched(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                                     std::int64_t low_bytes, const Word* except,
                                     std::vector<OpId>* steps, std::int64_t& num_looks) {
  const Word* ready = state + words_;
  // Round and round the words until one round has found nothing.
  for (std::size_t w = 0, quiet = 0; quiet < words_; w = w + 1 == words_ ? 0 : w + 1) {
    ++quiet;
    while (const Word left = touched_[w] & ready[w] & (except != nullptr ? ~except[w] : ~Word{0})) {
      const OpId v = static_cast<OpId>(w * 64 + static_cast<std::size_t>(__builtin_ctzll(left)));
      touched_[w] &= ~(left & -left);
      ++num_looks;
      const State::Move move = Look(state, live_bytes, v);
      if (move.live_bytes > live_bytes) continue;
      if (move.hill_bytes > limit_bytes) {
        held_[w] |= left & -left;
        continue;
      }
      Step(state, v, touched_.data());
      const bool falls = move.live_bytes < live_bytes;
      live_bytes = move.live_bytes;
      if (steps != nullptr) steps->push_back(v);
      quiet = 0;
      if (live_bytes < low_bytes) {
        low_bytes = live_bytes;
        std::copy_n(ready, words_, touched_.begin());
      } else if (falls) {
        for (std::size_t h = 0; h < words_; ++h) touched_[h] |= std::exchange(held_[h], 0);
      }
    }
  }
  std::ranges::fill(touched_, 0);
  std::ranges::fill(held_, 0);
  return live_bytes;
}

OpId StateSpace::FindSafeRun(Word* state, std::int64_t live_bytes, std::int64_t limit_bytes,
                             std::int64_t& num_looks) {
  if (!rules_.safe_steps || !rules_.safe_runs) return kNoOp;
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::min();
  OpId found = kNoOp;
  ForEach(ready(state), [&](OpId v) {
    if (found != kNoOp) return;
    ++num_looks;
    const State::Move move = Look(state, live_bytes, v);
    if (move.hill_bytes > limit_bytes || !MakesReady(state, v)) return;
    num_looks += 1 + static_cast<std::int64_t>(words_per_state() / 8);
    run_.assign(state, state + words_per_state());
    Step(run_.data(), v, touched_.data());
    if (TakeTouched(run_.data(), move.live_bytes, limit_bytes, kNever, ready(state), nullptr,
                    num_looks) <= live_bytes) {
      found = v;
    }
  });
  return found;
}

}  // namespace torch_ext::sched
