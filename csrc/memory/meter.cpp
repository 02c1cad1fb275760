#include "memory/meter.h"

#include <algorithm>
#include <mutex>

#include "memory/allocator.h"

namespace torch_ext::memory {

struct Meter::Counter final : Listener {
  bool record_events = false;
  std::int64_t live_bytes = 0;
  std::int64_t peak_bytes = 0;
  std::size_t num_events = 0;
  std::vector<Event> events;

  void Report(const void* address, std::int64_t bytes) override {
    live_bytes += bytes;
    peak_bytes = std::max(peak_bytes, live_bytes);
    ++num_events;
    if (record_events) events.push_back({address, bytes});
  }
};

Meter::Meter(bool record_events) : counter_(std::make_unique<Counter>()) {
  InstallAllocator();
  counter_->record_events = record_events;
  AddListener(counter_.get());
}

Meter::~Meter() {
  Stop();
}

void Meter::Stop() {
  RemoveListener(counter_.get());
}

std::int64_t Meter::peak_bytes() const {
  const std::lock_guard lock(ListenersMutex());
  return counter_->peak_bytes;
}
std::int64_t Meter::live_bytes() const {
  const std::lock_guard lock(ListenersMutex());
  return counter_->live_bytes;
}
std::size_t Meter::num_events() const {
  const std::lock_guard lock(ListenersMutex());
  return counter_->num_events;
}
std::vector<Meter::Event> Meter::events() const {
  const std::lock_guard lock(ListenersMutex());
  return counter_->events;
}

}  // namespace torch_ext::memory
