#include "memory/meter.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <mutex>
#include <unordered_map>

namespace torch_ext::memory {

struct Meter::Counter {
  bool record_events = false;
  std::int64_t live_bytes = 0;
  std::int64_t peak_bytes = 0;
  std::size_t num_events = 0;
  std::vector<Event> events;
};

namespace {

// All meters that count at the moment. One lock orders the events of all threads.
class Counters {
 public:
  void Add(std::shared_ptr<Meter::Counter> counter) {
    const std::lock_guard lock(mutex_);
    counters_.push_back(std::move(counter));
  }
  void Remove(const std::shared_ptr<Meter::Counter>& counter) {
    const std::lock_guard lock(mutex_);
    std::erase(counters_, counter);
  }
  void Report(const void* address, std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    for (const auto& counter : counters_) {
      counter->live_bytes += bytes;
      counter->peak_bytes = std::max(counter->peak_bytes, counter->live_bytes);
      ++counter->num_events;
      if (counter->record_events) counter->events.push_back({address, bytes});
    }
  }
  template <typename Read>
  auto Locked(Read read) {
    const std::lock_guard lock(mutex_);
    return read();
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<Meter::Counter>> counters_;
};

// Sizes of everything allocated through us and not yet released.
class SizeTable {
 public:
  void Insert(void* address, std::int64_t bytes) {
    Shard& shard = ShardOf(address);
    const std::lock_guard lock(shard.mutex);
    shard.sizes[address] = bytes;
  }
  std::int64_t Take(void* address) {
    Shard& shard = ShardOf(address);
    const std::lock_guard lock(shard.mutex);
    const auto found = shard.sizes.find(address);
    if (found == shard.sizes.end()) return 0;
    const std::int64_t bytes = found->second;
    shard.sizes.erase(found);
    return bytes;
  }

 private:
  struct Shard {
    std::mutex mutex;
    std::unordered_map<void*, std::int64_t> sizes;
  };
  Shard& ShardOf(const void* address) {
    return shards_[(reinterpret_cast<std::uintptr_t>(address) >> 6) % shards_.size()];
  }
  std::array<Shard, 32> shards_;
};

// Never destroyed: tensors may be released after main has returned.
Counters& AllCounters() {
  static auto* counters = new Counters;
  return *counters;
}
SizeTable& Sizes() {
  static auto* sizes = new SizeTable;
  return *sizes;
}

c10::Allocator* g_inner = nullptr;

void CountedDelete(void* address) {
  // Report first: once the memory is released another thread may be given the same address.
  const std::int64_t bytes = Sizes().Take(address);
  if (bytes != 0) AllCounters().Report(address, -bytes);
  g_inner->raw_deleter()(address);
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    c10::DataPtr data = g_inner->allocate(size);
    void* address = data.get();
    const bool countable = address != nullptr && data.get_context() == address &&
                           data.compare_exchange_deleter(g_inner->raw_deleter(), &CountedDelete);
    if (countable) {
      Sizes().Insert(address, static_cast<std::int64_t>(size));
      AllCounters().Report(address, static_cast<std::int64_t>(size));
    }
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &CountedDelete; }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    g_inner->copy_data(to, from, size);
  }
};

void InstallOnce() {
  static std::once_flag once;
  std::call_once(once, [] {
    constexpr std::uint8_t kPriority = 255;  // nobody may silently take our place
    g_inner = c10::GetCPUAllocator();
    c10::SetCPUAllocator(new CountingAllocator, kPriority);
  });
}

}  // namespace

Meter::Meter(bool record_events) : counter_(std::make_shared<Counter>()) {
  InstallOnce();
  counter_->record_events = record_events;
  AllCounters().Add(counter_);
}

Meter::~Meter() {
  Stop();
}

void Meter::Stop() {
  AllCounters().Remove(counter_);
}

std::int64_t Meter::peak_bytes() const {
  return AllCounters().Locked([&] { return counter_->peak_bytes; });
}
std::int64_t Meter::live_bytes() const {
  return AllCounters().Locked([&] { return counter_->live_bytes; });
}
std::size_t Meter::num_events() const {
  return AllCounters().Locked([&] { return counter_->num_events; });
}
std::vector<Meter::Event> Meter::events() const {
  return AllCounters().Locked([&] { return counter_->events; });
}

}  // namespace torch_ext::memory
