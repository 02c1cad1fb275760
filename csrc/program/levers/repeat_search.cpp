#include "program/levers/repeat_search.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <ranges>
#include <stdexcept>
#include <string>
#include <utility>

#include "program/amount.h"

namespace torch_ext::program {
namespace {

// Gaps that are looked into, and ways to close them that are judged if one of these helps.
constexpr std::size_t kMostGaps = 512, kMostJudged = 24;
// What is held on to as small: less than this share of what is made anew for it.
constexpr std::int64_t kSmallShare = 8;
// Per run: to edit and judge a list of runs, and to find gaps and ways to close them.
constexpr std::int64_t kWorkOfARun = 5, kWorkOfGaps = 50;
// Others are taken with the best if they cost at most one part in so many more for what they give.
constexpr std::int64_t kAboutAsGood = 4;
// Of what is left between the lowest peak that was found and the floor.
constexpr int kMostHalvings = 8;
// Of the improvement by chance: rounds without success, and per cent and times that an op counts as
// dearer.
constexpr int kMostIdleRounds = 64;
constexpr int kMostDearer = 60, kMostShunned = 4;

// a / b < c / d for numbers that are not negative.
bool IsCheaper(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
  __extension__ using Wide = __int128;
  return static_cast<Wide>(a) * d < static_cast<Wide>(c) * b;
}

// The order with ops moved forward that leave less memory behind than they find, or as much. Plans
// care for the peak alone; what lies below it becomes the peak of a lower budget.
Runs Settled(Rerunner& rerunner, const Runs& order) {
  const std::vector<Rerunner::Step>& steps = rerunner.steps();
  rerunner.Judge(order, 0);
  std::vector<std::int64_t> planned_bytes(steps.size());
  for (std::size_t i = 0; i < order.size(); ++i) planned_bytes[order[i]] = rerunner.hill_bytes()[i];
  std::vector<std::vector<OpId>> next(steps.size());
  std::vector<std::size_t> waits_for(steps.size());
  std::vector<std::int64_t> readers(rerunner.program().buffers.size(), 0);
  std::int64_t live_bytes = 0;
  for (OpId v = 0; v < static_cast<OpId>(steps.size()); ++v) {
    waits_for[v] = steps[v].before.size();
    for (const OpId u : steps[v].before) next[u].push_back(v);
    for (const Rerunner::Read& read : steps[v].reads) ++readers[read.buffer];
  }
  for (const Rerunner::Read& read : rerunner.end()) ++readers[read.buffer];
  for (BufferId b = 0; b < static_cast<BufferId>(readers.size()); ++b) {
    if (rerunner.program().buffers[b].is_input && readers[b] > 0) {
      live_bytes += rerunner.size_bytes(b);
    }
  }
  std::vector<char> has_run(steps.size(), 0);
  std::vector<OpId> ready;
  Runs settled;
  const auto left_bytes = [&](OpId v) {  // more after it than before
    std::int64_t bytes = 0;
    for (const Rerunner::Held& held : steps[v].holds) {
      if (held.read < 0 && readers[held.buffer] > 0) bytes += rerunner.size_bytes(held.buffer);
    }
    for (const Rerunner::Read& read : steps[v].reads) {
      if (readers[read.buffer] == 1) bytes -= rerunner.size_bytes(read.buffer);
    }
    return bytes;
  };
  const auto hill_bytes = [&](OpId v) {
    std::int64_t bytes = live_bytes + steps[v].workspace_bytes;
    for (const Rerunner::Held& held : steps[v].holds) {
      if (held.read < 0) bytes += rerunner.size_bytes(held.buffer);
    }
    return bytes;
  };
  const auto run = [&](OpId v) {
    live_bytes += left_bytes(v);
    for (const Rerunner::Read& read : steps[v].reads) --readers[read.buffer];
    has_run[v] = 1;
    settled.push_back(v);
    for (const OpId u : next[v]) {
      if (--waits_for[u] == 0) ready.push_back(u);
    }
  };
  for (OpId v = 0; v < static_cast<OpId>(steps.size()); ++v) {
    if (waits_for[v] == 0) ready.push_back(v);
  }
  for (const OpId v : order) {
    if (has_run[v]) continue;
    const std::int64_t highest_bytes = hill_bytes(v);
    run(v);
    for (bool is_more = true; is_more;) {
      is_more = false;
      std::erase_if(ready, [&](OpId u) { return has_run[u] != 0; });
      std::ranges::sort(ready);
      const std::vector<OpId> now = ready;
      for (const OpId u : now) {
        if (left_bytes(u) > 0 || hill_bytes(u) > std::max(planned_bytes[u], highest_bytes))
          continue;
        run(u);
        is_more = true;
      }
    }
  }
  return settled;
}

}  // namespace

// Which values and instances there are before a position: walks along judged runs.
class RepeatSearch::Moment {
 public:
  Moment(const Rerunner& rerunner, std::span<const OpId> runs)
      : rerunner_(rerunner),
        runs_(runs),
        latest_(rerunner.steps().size(), -1),
        held_(rerunner.num_held(), -1),
        version_(rerunner.instances().size(), 0) {
    for (const Rerunner::Instance& instance : rerunner.instances()) {
      last_read_.push_back(instance.birth);
    }
    while (next_instance_ < rerunner.instances().size() &&
           rerunner.instances()[next_instance_].birth < 0) {
      ++next_instance_;
    }
  }

  std::int32_t position() const { return position_; }
  void Advance() {
    const OpId v = runs_[position_];
    const Rerunner::Step& step = rerunner_.steps()[v];
    const std::span<const std::int32_t> read = rerunner_.read_at(position_);
    for (std::size_t slot = 0; slot < step.holds.size(); ++slot) {
      const std::int32_t from = step.holds[slot].read;
      held_[rerunner_.first_held(v) + slot] =
          from >= 0 ? read[from] : static_cast<std::int32_t>(next_instance_++);
    }
    for (const std::int32_t place : step.mutates) ++version_[read[place]];
    for (const std::int32_t instance : read) last_read_[instance] = position_;
    latest_[v] = position_++;
  }

  bool HasRun(OpId v) const { return latest_[v] >= 0; }
  bool IsUsedLater(OpId v) const { return rerunner_.last_use()[latest_[v]] >= position_; }
  std::int32_t Held(const Rerunner::Source& source) const {
    return held_[rerunner_.first_held(source.maker) + source.slot];
  }
  // Do values of the latest run of `u` lie in what the latest run of `v` made?
  bool SharesWith(OpId u, OpId v) const {
    const std::vector<Rerunner::Held>&held = rerunner_.steps()[u].holds,
          &own = rerunner_.steps()[v].holds;
    for (std::size_t i = 0; i < held.size(); ++i) {
      for (std::size_t j = 0; j < own.size(); ++j) {
        const bool is_same =
            held_[rerunner_.first_held(u) + i] == held_[rerunner_.first_held(v) + j];
        if (own[j].read < 0 && is_same) return true;
      }
    }
    return false;
  }
  bool IsAlive(std::int32_t instance) const {
    return rerunner_.instances()[instance].last >= position_;
  }
  std::int32_t version(std::int32_t instance) const { return version_[instance]; }
  // Before the position; or where it was made.
  std::int32_t last_read(std::int32_t instance) const { return last_read_[instance]; }
  // What the latest run of an op has made.
  std::vector<std::int32_t> Made(OpId v) const {
    std::vector<std::int32_t> made;
    const std::vector<Rerunner::Held>& holds = rerunner_.steps()[v].holds;
    for (std::size_t slot = 0; slot < holds.size(); ++slot) {
      if (holds[slot].read < 0) made.push_back(held_[rerunner_.first_held(v) + slot]);
    }
    return made;
  }

 private:
  const Rerunner& rerunner_;
  std::span<const OpId> runs_;
  std::vector<std::int32_t> latest_, held_, version_, last_read_;
  std::size_t next_instance_ = 0;
  std::int32_t position_ = 0;
};

RepeatSearch::RepeatSearch(const Program& program, bool overwrite, const Runs& order)
    : rerunner_(program, overwrite), order_(Settled(rerunner_, order)), runs_(order_) {
  for (const Rerunner::Step& step : rerunner_.steps()) price_.push_back(step.nanoseconds);
}

Rerunner::Judged RepeatSearch::Judge(std::span<const OpId> runs, sched::Budget& budget) {
  budget.Spend(kWorkOfARun * static_cast<std::int64_t>(runs.size()) + 1);
  return rerunner_.Judge(runs, budget_bytes_);
}

RepeatSearch::Found RepeatSearch::Fit(Runs start, std::int64_t budget_bytes, sched::Budget& budget,
                                      std::span<const OpId> preferred) {
  runs_ = std::move(start);
  budget_bytes_ = budget_bytes;
  const std::vector<std::int64_t> prices = price_;
  if (!preferred.empty()) {
    for (std::int64_t& price : price_) price *= kMostShunned;
    for (const OpId v : preferred) price_[v] = prices[v];
  }
  now_ = Judge(runs_, budget);
  while (now_.excess_bytes > 0 && budget.HasWork() && CloseGaps(budget)) {
  }
  price_ = prices;
  const bool fits = now_.excess_bytes == 0;
  if (fits) RemoveNeedless(budget);
  return {runs_, now_.peak_bytes, now_.nanoseconds - rerunner_.nanoseconds(), fits};
}

// Needs the judged runs.
std::vector<RepeatSearch::Gap> RepeatSearch::FindGaps() {
  const std::vector<std::int64_t>& hills = rerunner_.hill_bytes();
  // Sums over all positions before one.
  excess_bytes_.assign(hills.size() + 1, 0);
  in_excess_.assign(hills.size() + 1, 0);
  for (std::size_t i = 0; i < hills.size(); ++i) {
    const std::int64_t over = std::max<std::int64_t>(hills[i] - budget_bytes_, 0);
    excess_bytes_[i + 1] = excess_bytes_[i] + over;
    in_excess_[i + 1] = in_excess_[i] + (over > 0);
  }
  std::vector<std::int32_t> before;  // the last read of each instance so far
  for (const Rerunner::Instance& instance : rerunner_.instances()) before.push_back(instance.birth);
  std::vector<Gap> gaps;
  for (std::size_t i = 0; i <= runs_.size(); ++i) {
    const std::span<const std::int32_t> read = rerunner_.read_at(i);
    const std::vector<Rerunner::Read>& reads =
        i < runs_.size() ? rerunner_.steps()[runs_[i]].reads : rerunner_.end();
    for (std::size_t k = 0; k < read.size(); ++k) {
      const Rerunner::Instance& instance = rerunner_.instances()[read[k]];
      const auto from = static_cast<std::size_t>(before[read[k]] + 1);
      before[read[k]] = static_cast<std::int32_t>(i);
      const std::int64_t bytes = rerunner_.size_bytes(instance.buffer);
      if (instance.birth < 0 || bytes == 0 || from >= i || in_excess_[i] == in_excess_[from])
        continue;
      const OpId maker = runs_[instance.birth];
      if (!rerunner_.steps()[maker].may_repeat) continue;
      Gap gap{static_cast<std::int32_t>(from), static_cast<std::int32_t>(i),
              static_cast<std::int32_t>(k), read[k]};
      gap.relief_bytes = ReliefBytes(bytes, gap.from, gap.position);
      gap.nanoseconds = price_[maker];
      for (std::int32_t w = 0; w < reads[k].version; ++w) {
        gap.nanoseconds += price_[rerunner_.mutators(instance.buffer)[w]];
      }
      gaps.push_back(gap);
    }
  }
  return gaps;
}

// At most, of so many bytes that are gone from one position on, before another.
std::int64_t RepeatSearch::ReliefBytes(std::int64_t bytes, std::int32_t from,
                                       std::int32_t to) const {
  return std::min(bytes * (in_excess_[to] - in_excess_[from]),
                  excess_bytes_[to] - excess_bytes_[from]);
}

// What has to run again before the later read of the gap: its maker, and what that needs.
std::optional<RepeatSearch::Batch> RepeatSearch::Closing(const Gap& gap, Hold hold,
                                                         const Moment& moment) const {
  const std::vector<Rerunner::Step>& steps = rerunner_.steps();
  const Rerunner::Read& target = static_cast<std::size_t>(gap.position) < runs_.size()
                                     ? steps[runs_[gap.position]].reads[gap.read]
                                     : rerunner_.end()[gap.read];
  const std::int64_t bytes = rerunner_.size_bytes(target.buffer);
  Batch batch{.position = gap.position, .relief_bytes = gap.relief_bytes};
  std::vector<OpId> left;
  std::vector<char> is_chosen(steps.size(), 0);
  std::vector<std::int32_t> held;             // instances that live on
  std::int64_t net_bytes = gap.relief_bytes;  // about: less what they take, and more
  const auto run_again = [&](OpId v) {
    if (is_chosen[v]) return;
    is_chosen[v] = 1;
    batch.ops.push_back(v);
    left.push_back(v);
  };
  const auto make_anew = [&](const Rerunner::Read& read) {
    for (const Rerunner::Source& source : read.sources) run_again(source.maker);
    for (std::int32_t w = 0; w < read.version; ++w) run_again(rerunner_.mutators(read.buffer)[w]);
  };
  // Can the read have what there is, or what is held on to?
  const auto is_there = [&](const Rerunner::Read& read) {
    if (read.sources.empty()) return true;
    const std::int32_t instance = moment.Held(read.sources.front());
    if (instance == gap.instance || moment.version(instance) != read.version) return false;
    for (const Rerunner::Source& source : read.sources) {
      if (is_chosen[source.maker] || moment.Held(source) != instance) return false;
    }
    if (moment.IsAlive(instance)) return true;
    const std::int64_t size_bytes = rerunner_.size_bytes(read.buffer);
    const bool is_held = hold == Hold::kAll || (hold == Hold::kNotLarger && size_bytes <= bytes) ||
                         (hold == Hold::kSmall && size_bytes <= bytes / kSmallShare);
    if (is_held && std::ranges::count(held, instance) == 0) {
      held.push_back(instance);
      // Where the gap gives back less than is held, the rest is lost.
      const std::int32_t from = rerunner_.instances()[instance].last + 1;
      const std::int32_t both = std::max(from, gap.from);
      net_bytes -= ReliefBytes(std::min(size_bytes, bytes), both, gap.position);
      net_bytes -= std::max<std::int64_t>(size_bytes - bytes, 0) *
                   (in_excess_[gap.position] - in_excess_[both]);
      net_bytes -= size_bytes * (in_excess_[both] - in_excess_[from]);
    }
    return is_held;
  };
  make_anew(target);
  while (!left.empty()) {
    const OpId v = left.back();
    left.pop_back();
    const Rerunner::Step& step = steps[v];
    if (!step.may_repeat || !moment.HasRun(v)) return std::nullopt;
    for (const OpId u : step.deadlines) {
      if (moment.HasRun(u)) batch.late.push_back(u);
    }
    for (const Rerunner::Read& read : step.reads) {
      if (!is_there(read)) make_anew(read);
    }
    // Views of the old instance that are read later become views of the new one.
    for (const OpId u : step.aliasers) {
      if (moment.HasRun(u) && moment.IsUsedLater(u) && moment.SharesWith(u, v)) run_again(u);
    }
  }
  // What else the ops make is made anew, too, for those that read it later.
  for (const OpId v : batch.ops) {
    for (const std::int32_t instance : moment.Made(v)) {
      if (instance == gap.instance || !moment.IsAlive(instance)) continue;
      net_bytes += ReliefBytes(rerunner_.size_bytes(rerunner_.instances()[instance].buffer),
                               moment.last_read(instance) + 1, gap.position);
    }
  }
  batch.is_doubtful = net_bytes <= 0;
  std::ranges::sort(batch.ops);
  for (const OpId v : batch.ops) batch.nanoseconds += price_[v];
  return batch;
}

std::vector<RepeatSearch::Batch> RepeatSearch::BatchesFor(std::vector<Gap> gaps) const {
  const auto is_cheaper = [](const auto& a, const auto& b) {
    return IsCheaper(a.nanoseconds + 1, a.relief_bytes, b.nanoseconds + 1, b.relief_bytes);
  };
  std::ranges::stable_sort(gaps, is_cheaper);
  if (gaps.size() > kMostGaps) gaps.resize(kMostGaps);
  std::ranges::stable_sort(gaps, {}, &Gap::position);
  std::vector<Batch> batches;
  Moment moment(rerunner_, runs_);
  for (const Gap& gap : gaps) {
    while (moment.position() < gap.position) moment.Advance();
    for (const Hold hold : {Hold::kNothing, Hold::kSmall, Hold::kNotLarger, Hold::kAll}) {
      std::optional<Batch> batch = Closing(gap, hold, moment);
      if (!batch) continue;
      const bool is_known = !batches.empty() && batches.back().position == batch->position &&
                            batches.back().ops == batch->ops;
      if (!is_known) batches.push_back(std::move(*batch));
    }
  }
  std::ranges::stable_sort(batches, is_cheaper);
  std::ranges::stable_partition(batches, [](const Batch& batch) { return !batch.is_doubtful; });
  return batches;
}

// Ops that the repeats have to precede move behind the op that reads these, with all that depend on
// them. Empty if that op does, too.
Runs RepeatSearch::With(const Batch& batch, std::int32_t position) const {
  const std::vector<Rerunner::Step>& steps = rerunner_.steps();
  std::vector<char> is_late(steps.size(), 0);
  for (const OpId v : batch.late) is_late[v] = 1;
  const auto waits = [&](OpId v) {
    const auto is_in = [&](OpId u) { return is_late[u] != 0; };
    return is_late[v] || std::ranges::any_of(steps[v].before, is_in) ||
           std::ranges::any_of(steps[v].makers, is_in);
  };
  Runs runs, late;
  for (std::int32_t i = 0; i < position; ++i) {
    const OpId v = runs_[i];
    if (!batch.late.empty() && waits(v)) {
      is_late[v] = 1;
      late.push_back(v);
    } else {
      runs.push_back(v);
    }
  }
  const auto is_at_end = static_cast<std::size_t>(position) == runs_.size();
  if (!late.empty() &&
      (is_at_end || waits(runs_[position]) || std::ranges::any_of(batch.ops, waits))) {
    return {};
  }
  runs.insert(runs.end(), batch.ops.begin(), batch.ops.end());
  if (!is_at_end) runs.push_back(runs_[position]);
  runs.insert(runs.end(), late.begin(), late.end());
  if (!is_at_end) runs.insert(runs.end(), runs_.begin() + position + 1, runs_.end());
  return runs;
}

bool RepeatSearch::CloseGaps(sched::Budget& budget) {
  const std::vector<Batch> batches = BatchesFor(FindGaps());
  budget.Spend(kWorkOfGaps * static_cast<std::int64_t>(runs_.size()));
  const Runs before = runs_;
  struct Good {
    const Batch* batch = nullptr;
    std::int64_t relief_bytes = 0, nanoseconds = 0;
    Runs runs;
    Rerunner::Judged judged;
  };
  // The runs with a batch more, if that helps.
  const auto judge = [&](const Batch& batch, std::int32_t position) -> std::optional<Good> {
    Good good{.batch = &batch, .runs = With(batch, position)};
    if (good.runs.empty()) return std::nullopt;
    good.runs = rerunner_.WithoutDead(good.runs);
    good.judged = Judge(good.runs, budget);
    if (!good.judged.is_valid || good.judged.excess_bytes >= now_.excess_bytes) return std::nullopt;
    good.relief_bytes = now_.excess_bytes - good.judged.excess_bytes;
    good.nanoseconds = std::max<std::int64_t>(good.judged.nanoseconds - now_.nanoseconds, 0) + 1;
    return good;
  };
  std::vector<Good> good;
  std::size_t judged_count = 0;
  for (const Batch& batch : batches) {
    if (judged_count++ >= kMostJudged && !good.empty()) break;
    if (std::optional<Good> one = judge(batch, batch.position)) good.push_back(std::move(*one));
  }
  std::ranges::stable_sort(good, [](const Good& a, const Good& b) {
    return IsCheaper(a.nanoseconds, a.relief_bytes, b.nanoseconds, b.relief_bytes);
  });
  if (!good.empty()) {
    runs_ = good.front().runs;
    now_ = good.front().judged;
  }
  for (const Good& one : good | std::views::drop(1)) {
    if (now_.excess_bytes == 0 || !budget.HasWork()) break;
    const std::int32_t position = PositionNow(before, one.batch->position);
    std::optional<Good> next;
    if (position >= 0) next = judge(*one.batch, position);
    if (!next ||
        !IsCheaper(next->nanoseconds * kAboutAsGood, next->relief_bytes,
                   good.front().nanoseconds * (kAboutAsGood + 1), good.front().relief_bytes)) {
      continue;
    }
    runs_ = std::move(next->runs);
    now_ = next->judged;
  }
  now_ = Judge(runs_, budget);
  return !good.empty();
}

// Where what was at a position is now; -1 if neither what is before it nor what follows is as it
// was.
std::int32_t RepeatSearch::PositionNow(const Runs& before, std::int32_t position) const {
  const std::ptrdiff_t shift =
      static_cast<std::ptrdiff_t>(runs_.size()) - static_cast<std::ptrdiff_t>(before.size());
  const auto at = before.begin() + position;
  if (position <= static_cast<std::int32_t>(runs_.size()) &&
      std::equal(before.begin(), at, runs_.begin())) {
    const bool is_end = static_cast<std::size_t>(position) == runs_.size();
    const bool is_same =
        at == before.end() || is_end ? at == before.end() && is_end : runs_[position] == *at;
    if (is_same) return position;
  }
  if (position + shift < 0) return -1;
  const bool is_same = std::equal(at, before.end(), runs_.begin() + position + shift);
  return is_same ? static_cast<std::int32_t>(position + shift) : -1;
}

// The last repeats first: those before them may then be dead.
void RepeatSearch::RemoveNeedless(sched::Budget& budget) {
  for (bool is_less = true; is_less && budget.HasWork();) {
    is_less = false;
    for (std::size_t i = runs_.size(); i-- > 0 && budget.HasWork();) {
      if (i >= runs_.size()) continue;  // others went with it
      const Runs runs = WithoutRepeat(i);
      if (runs.empty()) continue;
      const Rerunner::Judged judged = Judge(runs, budget);
      const bool is_good =
          judged.is_valid && judged.excess_bytes == 0 && judged.nanoseconds < now_.nanoseconds;
      if (!is_good) continue;
      runs_ = runs;
      now_ = judged;
      is_less = true;
    }
  }
  now_ = Judge(runs_, budget);
}

// The runs without the one at the position, and without the repeats behind it whose values lie in
// what it makes. Empty if it is no repeat.
Runs RepeatSearch::WithoutRepeat(std::size_t position) const {
  std::vector<char> has_run(rerunner_.steps().size(), 0);
  for (std::size_t i = 0; i < position; ++i) has_run[runs_[i]] = 1;
  const OpId v = runs_[position];
  if (!has_run[v]) return {};
  Runs runs(runs_.begin(), runs_.begin() + static_cast<std::ptrdiff_t>(position));
  const std::vector<OpId>& aliasers = rerunner_.steps()[v].aliasers;
  bool is_next = true;  // no other run of the op has come
  for (std::size_t i = position + 1; i < runs_.size(); ++i) {
    const OpId u = runs_[i];
    is_next &= u != v;
    const bool is_repeat = std::exchange(has_run[u], 1) != 0;
    if (is_repeat && is_next && std::ranges::count(aliasers, u) > 0) continue;
    runs.push_back(u);
  }
  return rerunner_.WithoutDead(runs);
}

RepeatSearch::Found RepeatSearch::Improve(Runs runs, std::int64_t enough_nanoseconds,
                                          sched::Budget& budget) {
  runs_ = std::move(runs);
  now_ = Judge(runs_, budget);
  const std::vector<std::int64_t> prices = price_;
  const auto count_repeats = [&] { return runs_.size() - rerunner_.steps().size(); };
  std::mt19937_64 random(1);
  for (int idle = 0; idle < kMostIdleRounds && count_repeats() > 0; ++idle) {
    if (!budget.HasWork() || now_.nanoseconds - rerunner_.nanoseconds() <= enough_nanoseconds)
      break;
    const Runs best_runs = runs_;
    const Rerunner::Judged best = now_;
    // Other prices, so that other gaps are closed; some repeats near each other are given up.
    for (std::size_t v = 0; v < prices.size(); ++v) {
      price_[v] = prices[v] * static_cast<std::int64_t>(100 + random() % kMostDearer) / 100;
    }
    const std::size_t window = 2 + random() % std::max<std::size_t>(count_repeats() / 2, 2);
    const std::size_t first = random() % count_repeats();
    std::vector<char> has_run(prices.size(), 0);
    std::size_t repeat = 0;
    Runs fewer;
    for (const OpId v : runs_) {
      const bool is_repeat = std::exchange(has_run[v], 1) != 0;
      const bool is_given_up = is_repeat && repeat >= first && repeat < first + window;
      repeat += is_repeat;
      if (is_given_up) {
        price_[v] *= static_cast<std::int64_t>(1 + random() % kMostShunned);
      } else {
        fewer.push_back(v);
      }
    }
    fewer = rerunner_.WithoutDead(fewer);
    now_ = Judge(fewer, budget);
    if (now_.is_valid) {
      runs_ = std::move(fewer);
      while (now_.excess_bytes > 0 && now_.nanoseconds < best.nanoseconds && budget.HasWork() &&
             CloseGaps(budget)) {
      }
      if (now_.excess_bytes == 0) RemoveNeedless(budget);
    }
    price_ = prices;
    if (now_.is_valid && now_.excess_bytes == 0 && now_.nanoseconds <= best.nanoseconds) {
      if (now_.nanoseconds < best.nanoseconds) idle = 0;
      continue;
    }
    runs_ = best_runs;
    now_ = Judge(runs_, budget);
  }
  return {runs_, now_.peak_bytes, now_.nanoseconds - rerunner_.nanoseconds(), true};
}

namespace {

// Plans one program for several budgets.
class Planner {
 public:
  Planner(const Program& program, bool overwrite, const Runs& order,
          const sched::PlanOptions& options)
      : order_(order),
        peak_bytes_(PeakOf(program, overwrite, order)),
        bound_(program, overwrite),
        search_(program, overwrite, order) {
    for (const Op& op : program.ops) nanoseconds_ += op.nanoseconds;
    sched::Budget budget(options.time_budget_seconds, options.search_memory_bytes);
    floor_ = bound_.FindFloor(order, budget);
    clock_stopped_ = budget.clock_stopped();
  }

  std::int64_t peak_bytes() const { return peak_bytes_; }  // of the order
  const RepeatBound::Floor& floor() const { return floor_; }

  // `start`: runs of a higher budget, if there are any.
  RepeatPlan Plan(std::int64_t budget_bytes, const Runs& start, sched::Budget& budget,
                  sched::Budget& bound_budget) const;

 private:
  static std::int64_t PeakOf(const Program& program, bool overwrite, const Runs& order) {
    const Rerunner::Judged judged = Rerunner(program, overwrite).Judge(order, 0);
    if (!judged.is_valid) {
      throw std::invalid_argument("repeats start from an order of all ops; what is given is none");
    }
    return judged.peak_bytes;
  }

  const Runs& order_;
  std::int64_t peak_bytes_ = 0, nanoseconds_ = 0;
  RepeatBound bound_;
  RepeatSearch search_;
  RepeatBound::Floor floor_;
  bool clock_stopped_ = false;
};

RepeatPlan Planner::Plan(std::int64_t budget_bytes, const Runs& start, sched::Budget& budget,
                         sched::Budget& bound_budget) const {
  RepeatSearch search = search_;
  RepeatPlan plan{.runs = order_, .peak_bytes = peak_bytes_, .nanoseconds = nanoseconds_};
  plan.floor = floor_;
  const auto keep = [&](RepeatSearch::Found found) {
    const bool fits = found.peak_bytes <= budget_bytes;
    const bool is_better =
        fits ? plan.peak_bytes > budget_bytes || found.extra_nanoseconds < plan.extra_nanoseconds
             : found.peak_bytes < plan.peak_bytes;
    if (!is_better) return;
    plan.runs = std::move(found.runs);
    plan.peak_bytes = found.peak_bytes;
    plan.extra_nanoseconds = found.extra_nanoseconds;
  };
  if (plan.floor.bytes <= budget_bytes) {
    const auto extra = bound_.FindExtra(order_, budget_bytes, bound_budget);
    if (extra) {
      plan.extra_bound_nanoseconds = extra->nanoseconds;
      if (!start.empty()) keep(search.Fit(start, budget_bytes, budget));
      keep(search.Fit(search.order(), budget_bytes, budget));
      keep(search.Fit(search.order(), budget_bytes, budget, extra->again));
      if (plan.peak_bytes <= budget_bytes) {
        keep(search.Improve(plan.runs, extra->nanoseconds, budget));
      }
    }
  }
  // Else the lowest budget that can be met, as far as halving the rest finds it.
  std::int64_t lowest_bytes = std::max(plan.floor.bytes, budget_bytes);
  for (int i = 0; i < kMostHalvings && plan.peak_bytes > lowest_bytes; ++i) {
    const std::int64_t middle_bytes = lowest_bytes + (plan.peak_bytes - lowest_bytes) / 2;
    keep(search.Fit(search.order(), middle_bytes, budget));
    if (plan.peak_bytes > middle_bytes) lowest_bytes = middle_bytes + 1;
  }
  plan.fits = plan.peak_bytes <= budget_bytes;
  plan.clock_stopped = clock_stopped_ || budget.clock_stopped() || bound_budget.clock_stopped();
  return plan;
}

}  // namespace

RepeatPlan PlanRepeats(const Program& program, bool overwrite, const Runs& order,
                       std::int64_t budget_bytes, const sched::PlanOptions& options) {
  const Planner planner(program, overwrite, order, options);
  sched::Budget budget(options.time_budget_seconds, options.search_memory_bytes);
  sched::Budget bound_budget(options.time_budget_seconds, options.search_memory_bytes);
  return planner.Plan(budget_bytes, {}, budget, bound_budget);
}

std::string WhatNeedsIt(const Program& program, const RepeatBound::Floor& floor) {
  constexpr std::size_t kMost = 5;
  if (floor.op == sched::kNoOp) return "that is what is returned";
  const auto& [source, module_path] = program.ops[floor.op].label;
  const std::string where =
      module_path + (module_path.empty() || source.empty() ? "" : " ") + source;
  std::string text = program.ops[floor.op].name + (where.empty() ? "" : " (" + where + ")");
  std::vector<BufferId> largest = floor.buffers;
  std::ranges::stable_sort(largest, std::greater<>(),
                           [&](BufferId b) { return program.buffers[b].bytes; });
  largest.resize(std::min(largest.size(), kMost));
  text += " needs at once";
  for (std::size_t i = 0; i < largest.size(); ++i) {
    const auto makes = [&](const Op& op) { return std::ranges::count(op.writes, largest[i]) > 0; };
    const auto maker = std::ranges::find_if(program.ops, makes);
    text += (i == 0 ? " " : ", ") +
            (maker == program.ops.end() ? program.buffers[largest[i]].name : "of " + maker->name) +
            " " + Amount(program.buffers[largest[i]].bytes);
  }
  const std::int64_t workspace_bytes = program.ops[floor.op].workspace_bytes;
  if (workspace_bytes > 0) text += " and scratch memory " + Amount(workspace_bytes);
  return text;
}

Reason WhyMissed(const Program& program, const RepeatPlan& plan, std::int64_t peak_bytes) {
  if (!plan.extra_bound_nanoseconds) {
    return {.kind = ReasonKind::kBelowFloor,
            .detail = WhatNeedsIt(program, plan.floor),
            .bytes = plan.floor.bytes};
  }
  const std::int64_t all = std::max<std::int64_t>(plan.nanoseconds, 1);
  const double share = static_cast<double>(plan.extra_nanoseconds) / static_cast<double>(all);
  return {.kind = ReasonKind::kMissed,
          .detail = std::to_string(std::lround(100 * share)) + " %",
          .bytes = peak_bytes,
          .other_bytes = plan.floor.bytes};
}

std::vector<RepeatPlan> PlanRepeatFront(const Program& program, bool overwrite, const Runs& order,
                                        int count, const sched::PlanOptions& options) {
  const Planner planner(program, overwrite, order, options);
  sched::Budget budget(options.time_budget_seconds, options.search_memory_bytes);
  sched::Budget bound_budget(options.time_budget_seconds, options.search_memory_bytes);
  std::vector<RepeatPlan> plans;
  // `left`: budgets that share what work there is.
  const auto plan = [&](std::int64_t budget_bytes, int left, const Runs& start) {
    sched::Budget part = budget.Part(budget.work_left() / left);
    sched::Budget bound_part = bound_budget.Part(bound_budget.work_left() / left);
    plans.push_back(planner.Plan(budget_bytes, start, part, bound_part));
    budget.Spend(part.spent());
    bound_budget.Spend(bound_part.spent());
  };
  plan(planner.peak_bytes(), 1, {});  // needs no repeats
  const std::int64_t range_bytes = planner.peak_bytes() - planner.floor().bytes;
  std::int64_t budget_bytes = planner.peak_bytes();
  for (int i = 1; i <= count && plans.back().fits; ++i) {
    // Without the product of both, which may overflow.
    const std::int64_t next_bytes =
        planner.peak_bytes() - range_bytes / count * i - range_bytes % count * i / count;
    if (next_bytes == std::exchange(budget_bytes, next_bytes)) continue;
    plan(budget_bytes, count - i + 2, Runs(plans.back().runs));
  }
  // From the order on, for the floor, another way down may lead lower.
  if (!plans.back().fits) plan(planner.floor().bytes, 1, {});
  // What a higher budget takes at least, a lower one takes too. One that is missed has a bound that
  // its runs may be below, for they need more.
  for (std::size_t i = 1; i < plans.size(); ++i) {
    std::optional<std::int64_t>& bound = plans[i].extra_bound_nanoseconds;
    const std::optional<std::int64_t> above = plans[i - 1].extra_bound_nanoseconds;
    bound = plans[i].fits ? std::max(bound, above) : above;
  }
  std::ranges::stable_sort(plans, [](const RepeatPlan& a, const RepeatPlan& b) {
    return std::pair(a.peak_bytes, a.extra_nanoseconds) <
           std::pair(b.peak_bytes, b.extra_nanoseconds);
  });
  std::vector<RepeatPlan> front;  // from the lowest peak
  for (RepeatPlan& plan : plans) {
    const bool is_better = front.empty() || plan.extra_nanoseconds < front.back().extra_nanoseconds;
    if (is_better) front.push_back(std::move(plan));
  }
  std::ranges::reverse(front);
  return front;
}

}  // namespace torch_ext::program
