// How much a search may spend: counted work, so that results do not depend on the machine; a clock
// only as an emergency stop; and memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace torch_ext::sched {

class Budget {
 public:
  // One unit is about one look at one op (State::Look). The constant is set so that on a core of
  // 2020 the work of a budget takes about its seconds at most.
  static constexpr double kWorkPerSecond = 2.5e7;

  // Work for `seconds`; the clock is for emergencies and stops at twice that. Any number will do:
  // what is below 0 counts as 0 and what would overflow the counters as 30 years.
  explicit Budget(double seconds, std::int64_t memory_bytes = std::int64_t{1} << 30)
      : work_(static_cast<std::int64_t>(InRange(seconds) * kWorkPerSecond)),
        work_left_(work_),
        memory_bytes_(memory_bytes),
        deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(2 * InRange(seconds)))) {}

  // Takes `units` of work; false once the work or the time is spent.
  bool Spend(std::int64_t units) {
    work_left_ -= units;
    units_to_clock_ -= units;
    if (units_to_clock_ <= 0) {
      units_to_clock_ = kUnitsPerClockLook;
      if (!clock_stopped_ && Clock::now() > deadline_) clock_stopped_ = true;
    }
    return HasWork();
  }
  bool HasWork() const { return work_left_ > 0 && !clock_stopped_; }
  std::int64_t work_left() const { return work_left_; }
  // A budget of at most `units` of what is left and a share of the memory, under the same clock.
  // What it spends is to be spent here too: Spend(part.spent()).
  Budget Part(std::int64_t units, int memory_share = 1) const {
    Budget part = *this;
    part.memory_bytes_ /= memory_share;
    part.work_left_ = part.work_ = std::min(std::max<std::int64_t>(units, 0), work_left_);
    return part;
  }
  std::int64_t spent() const { return work_ - work_left_; }
  std::int64_t memory_bytes() const { return memory_bytes_; }
  bool clock_stopped() const { return clock_stopped_; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::int64_t kUnitsPerClockLook = 4096;
  static constexpr double kMostSeconds = 30 * 365.25 * 86400;

  static double InRange(double seconds) { return std::max(0.0, std::min(kMostSeconds, seconds)); }

  std::int64_t work_;
  std::int64_t work_left_;
  std::int64_t memory_bytes_;
  std::int64_t units_to_clock_ = kUnitsPerClockLook;
  Clock::time_point deadline_;
  bool clock_stopped_ = false;
};

}  // namespace torch_ext::sched
