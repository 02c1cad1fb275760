// What one thread takes while something runs: for one op, beside whatever else runs in the process.
#pragma once

#include <c10/core/Allocator.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

namespace torch_ext::memory {

// Allocations of this thread while it is installed, from torch's own reports. Others may run.
class ThreadMeter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* address, std::int64_t bytes, std::size_t, std::size_t,
                         c10::Device device) override {
    if (!device.is_cpu()) return;
    if (bytes > 0) {
      live_[address] = bytes;
      taken_ += bytes;
      hill_bytes_ = std::max(hill_bytes_, taken_);
    } else if (const auto found = live_.find(address); found != live_.end()) {
      taken_ -= found->second;
      live_.erase(found);
    }
  }
  bool memoryProfilingEnabled() const override { return true; }

  std::int64_t hill_bytes() const { return hill_bytes_; }
  std::int64_t live_bytes() const { return taken_; }
  std::int64_t LiveBytesAt(const void* address) const {
    const auto found = live_.find(address);
    return found == live_.end() ? 0 : found->second;
  }

 private:
  std::unordered_map<const void*, std::int64_t> live_;
  std::int64_t taken_ = 0;
  std::int64_t hill_bytes_ = 0;
};

}  // namespace torch_ext::memory
