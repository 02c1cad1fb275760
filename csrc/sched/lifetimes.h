// When buffers are alive, and how much they take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

namespace torch_ext::sched {

inline constexpr std::int64_t kArenaAlignment = 64;  // that of torch's CPU memory

constexpr std::int64_t Aligned(std::int64_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

// A buffer takes `bytes` > 0 at the steps begin, ..., end - 1; begin < end.
struct Lifetime {
  std::int64_t bytes = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;

  bool Meets(const Lifetime& other) const { return begin < other.end && other.begin < end; }
};

// A birth or a death, of the lifetime with this index.
struct LifetimeEvent {
  std::int32_t step = 0;
  bool is_birth = false;
  std::int32_t lifetime = 0;
};

// By step; deaths come before births of the same step, for a buffer may lie where one lay that has
// just died.
inline std::vector<LifetimeEvent> EventsOf(std::span<const Lifetime> lifetimes) {
  std::vector<LifetimeEvent> events;
  events.reserve(2 * lifetimes.size());
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(lifetimes.size()); ++i) {
    events.push_back({lifetimes[i].begin, true, i});
    events.push_back({lifetimes[i].end, false, i});
  }
  std::sort(events.begin(), events.end(), [](const LifetimeEvent& a, const LifetimeEvent& b) {
    return std::tie(a.step, a.is_birth, a.lifetime) < std::tie(b.step, b.is_birth, b.lifetime);
  });
  return events;
}

}  // namespace torch_ext::sched
