// Bytes live and peak while something runs, from the allocator's own reports.
//
// The first meter of the process installs our allocator (allocator.h), which tells of every thread.
// Memory that is older than that is not seen when it is released.
//
// USAGE   Meter meter;  Run();  meter.Stop();  meter.peak_bytes();
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace torch_ext::memory {

class Meter {
 public:
  // One report of the allocator: `bytes` above zero were taken, below zero given back.
  struct Event {
    const void* address;
    std::int64_t bytes;
  };

  explicit Meter(bool record_events = false);
  ~Meter();
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  void Stop();  // counts no longer; what was counted stays readable

  // The highest running sum of allocations less releases, at least 0, and the sum now.
  std::int64_t peak_bytes() const;
  std::int64_t live_bytes() const;

  std::size_t num_events() const;
  std::vector<Event> events() const;  // empty unless recorded

  struct Counter;

 private:
  std::unique_ptr<Counter> counter_;
};

}  // namespace torch_ext::memory
