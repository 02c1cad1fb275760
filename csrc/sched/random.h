// Numbers by chance for searches: seeded, and the same with every compiler.
#pragma once

#include <algorithm>
#include <cstdint>

namespace torch_ext::sched {

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::int32_t Below(std::int32_t limit) {
    return static_cast<std::int32_t>(Next() % static_cast<std::uint64_t>(limit));
  }
  // Every power of two as likely as any other; at least 1, at most `most`.
  std::int32_t LogUniform(std::int32_t most) {
    std::int32_t bits = 0;
    while ((std::int64_t{1} << bits) <= most) ++bits;
    const std::int32_t low = 1 << Below(bits);
    return std::min(most, low + Below(low));
  }

 private:
  std::uint64_t state_;
};

}  // namespace torch_ext::sched
