// Random programs that do nothing but allocate and release, by torch's CPU allocator.
//
// Each block is filled with a pattern of its own and looked at before it is released: blocks that
// share an address are noticed, whoever served them.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "support/random_graphs.h"

namespace torch_ext::memory::test {

using sched::test::Random;

class Block {
 public:
  Block(std::int64_t bytes, std::uint64_t pattern)
      : data_(c10::GetCPUAllocator()->allocate(static_cast<std::size_t>(bytes))),
        bytes_(bytes),
        pattern_(static_cast<unsigned char>(pattern * 131 + 7)) {
    auto* const at = static_cast<unsigned char*>(data_.get());
    std::fill(at, at + bytes_, pattern_);
  }
  Block(Block&&) = default;
  Block& operator=(Block&& other) {
    Check();
    data_ = std::move(other.data_);
    bytes_ = other.bytes_;
    pattern_ = other.pattern_;
    return *this;
  }
  ~Block() { Check(); }

  const void* address() const { return data_.get(); }

 private:
  void Check() const {
    const auto* const at = static_cast<const unsigned char*>(data_.get());
    if (at == nullptr) return;  // moved
    for (std::int64_t i = 0; i < bytes_; ++i) {
      if (at[i] != pattern_) {
        ADD_FAILURE() << "a block of " << bytes_ << " bytes was written to by another";
        return;
      }
    }
  }

  c10::DataPtr data_;
  std::int64_t bytes_;
  unsigned char pattern_;
};

// A step takes a block of `bytes` > 0 under a key, or releases the one under it.
struct Step {
  std::int64_t key = 0;
  std::int64_t bytes = 0;
};
using Steps = std::vector<Step>;

inline Steps RandomSteps(Random& random, std::int64_t most) {
  Steps steps;
  std::vector<std::int64_t> live;
  const std::int64_t num_steps = random.Between(1, most);
  for (std::int64_t key = 0; static_cast<std::int64_t>(steps.size()) < num_steps;) {
    if (live.empty() || random.Chance(55)) {
      live.push_back(key);
      steps.push_back({key++, random.Between(1, random.Chance(20) ? 5000 : 300)});
    } else {
      const auto at =
          static_cast<std::size_t>(random.Between(0, static_cast<std::int64_t>(live.size()) - 1));
      steps.push_back({live[at], 0});
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  return steps;
}

// What is alive in the end.
using Live = std::map<std::int64_t, Block>;

inline Live RunSteps(const Steps& steps, std::uint64_t seed = 0) {
  Live live;
  for (const Step& step : steps) {
    if (step.bytes > 0) {
      live.emplace(step.key, Block(step.bytes, seed + static_cast<std::uint64_t>(step.key)));
    } else {
      live.erase(step.key);
    }
  }
  return live;
}

}  // namespace torch_ext::memory::test
