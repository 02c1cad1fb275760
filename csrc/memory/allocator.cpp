#include "memory/allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <unordered_map>
#include <vector>

#include "memory/ranges.h"

namespace torch_ext::memory {
namespace {

class Listeners {
 public:
  void Add(Listener* listener) {
    const std::lock_guard lock(mutex_);
    listeners_.push_back(listener);
    has_any_.store(true, std::memory_order_release);
  }
  void Remove(Listener* listener) {
    const std::lock_guard lock(mutex_);
    std::erase(listeners_, listener);
    has_any_.store(!listeners_.empty(), std::memory_order_release);
  }
  void Report(const void* address, std::int64_t bytes) {
    if (!has_any_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex_);
    for (Listener* listener : listeners_) listener->Report(address, bytes);
  }
  std::mutex& mutex() { return mutex_; }

 private:
  std::mutex mutex_;
  std::vector<Listener*> listeners_;
  std::atomic<bool> has_any_{false};
};

// Sizes of everything that malloc served through us and that is not yet released.
class SizeTable {
 public:
  void Insert(const void* address, std::int64_t bytes) {
    Shard& shard = ShardOf(address);
    const std::lock_guard lock(shard.mutex);
    shard.sizes[address] = bytes;
  }
  template <typename Do>
  void ForEachMutex(Do&& act) {
    for (Shard& shard : shards_) act(shard.mutex);
  }
  std::int64_t Take(const void* address) {
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
    std::unordered_map<const void*, std::int64_t> sizes;
  };
  Shard& ShardOf(const void* address) {
    return shards_[(reinterpret_cast<std::uintptr_t>(address) >> 6) % shards_.size()];
  }
  std::array<Shard, 32> shards_;
};

// Never destroyed: tensors may be released after main has returned.
Listeners& AllListeners() {
  static auto* listeners = new Listeners;
  return *listeners;
}
SizeTable& Sizes() {
  static auto* sizes = new SizeTable;
  return *sizes;
}

c10::Allocator* g_inner = nullptr;
thread_local ThreadObserver* g_observer = nullptr;

// Reports come before the memory is released: once it is, another thread may be given its address.
void Release(void* address) {
  if (g_observer != nullptr) g_observer->Released(address);
  if (const std::int64_t bytes = BlockBytes(address); bytes != 0) {
    AllListeners().Report(address, -bytes);
    c10::profiledCPUMemoryReporter().Delete(address);
    GiveBlockBack(address);
    return;
  }
  const std::int64_t bytes = Sizes().Take(address);
  if (bytes != 0) AllListeners().Report(address, -bytes);
  g_inner->raw_deleter()(address);
}

class InstalledAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    const auto bytes = static_cast<std::int64_t>(size);
    if (bytes > 0 && g_observer != nullptr) {
      if (void* const served = g_observer->Serve(bytes)) {
        c10::profiledCPUMemoryReporter().New(served, size);
        AllListeners().Report(served, bytes);
        g_observer->Allocated(served, bytes);
        return {served, served, &Release, c10::Device(c10::DeviceType::CPU)};
      }
    }
    c10::DataPtr data = g_inner->allocate(size);
    void* const address = data.get();
    const bool is_ours = address != nullptr && data.get_context() == address &&
                         data.compare_exchange_deleter(g_inner->raw_deleter(), &Release);
    if (!is_ours) return data;
    Sizes().Insert(address, bytes);
    AllListeners().Report(address, bytes);
    if (g_observer != nullptr) g_observer->Allocated(address, bytes);
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Release; }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    g_inner->copy_data(to, from, size);
  }
};

// No two of these are ever held at once, except by a fork.
template <typename Do>
void ForEachMutex(Do&& act) {
  act(ListenersMutex());
  Sizes().ForEachMutex(act);
  act(RangesMutex());
}
void LockAll() {
  ForEachMutex([](std::mutex& mutex) { mutex.lock(); });
}
void UnlockAll() {
  ForEachMutex([](std::mutex& mutex) { mutex.unlock(); });
}

}  // namespace

void InstallAllocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    constexpr std::uint8_t kPriority = 255;  // nobody may silently take our place
    g_inner = c10::GetCPUAllocator();
    c10::SetCPUAllocator(new InstalledAllocator, kPriority);
    pthread_atfork(&LockAll, &UnlockAll, &UnlockAll);
  });
}

void AddListener(Listener* listener) {
  AllListeners().Add(listener);
}
void RemoveListener(Listener* listener) {
  AllListeners().Remove(listener);
}
std::mutex& ListenersMutex() {
  return AllListeners().mutex();
}

ThreadObserver* CurrentObserver() {
  return g_observer;
}
void SetObserver(ThreadObserver* observer) {
  g_observer = observer;
}

}  // namespace torch_ext::memory
