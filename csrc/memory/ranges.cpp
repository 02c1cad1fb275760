#include "memory/ranges.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace torch_ext::memory {

struct Range {
  struct Block {
    std::int64_t offset, end;
  };

  char* base = nullptr;
  std::int64_t bytes = 0;
  bool is_used = false;
  std::vector<Block> live;  // by offset

  bool IsFree() const { return !is_used && live.empty(); }
};

namespace {

std::int64_t WholePages(std::int64_t bytes) {
  const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

class Ranges {
 public:
  Range* Acquire(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    Range* found = nullptr;
    Range* too_small = nullptr;
    for (const auto& [base, range] : ranges_) {
      if (!range->IsFree()) continue;
      if (range->bytes < bytes) {
        if (too_small == nullptr || range->bytes > too_small->bytes) too_small = range.get();
      } else if (found == nullptr || range->bytes < found->bytes) {
        found = range.get();
      }
    }
    if (found == nullptr) {
      // The largest of those that are too small makes room, so that calls of growing sizes hold no
      // more than the largest needs.
      if (too_small != nullptr) Unmap(too_small);
      found = Map(WholePages(bytes));
    }
    if (found != nullptr) found->is_used = true;
    return found;
  }

  void Release(Range* range) {
    const std::lock_guard lock(mutex_);
    range->is_used = false;
    if (!range->live.empty()) GiveGapsBack(*range);
  }

  void* Take(Range* range, std::int64_t offset, std::int64_t bytes) {
    if (offset < 0 || bytes <= 0 || bytes > range->bytes || offset > range->bytes - bytes) {
      return nullptr;
    }
    const std::lock_guard lock(mutex_);
    const auto above = FirstFrom(range, offset);
    if (above != range->live.end() && above->offset < offset + bytes) return nullptr;
    if (above != range->live.begin() && std::prev(above)->end > offset) return nullptr;
    range->live.insert(above, {offset, offset + bytes});
    ASAN_UNPOISON_MEMORY_REGION(range->base + offset, bytes);
    return range->base + offset;
  }

  std::int64_t BlockBytes(const void* address) {
    if (IsOutside(address)) return 0;
    const std::lock_guard lock(mutex_);
    const Place place = Find(address);
    return place.range == nullptr ? 0 : place.block->end - place.block->offset;
  }
  void GiveBack(const void* address) {
    const std::lock_guard lock(mutex_);
    const Place place = Find(address);
    ASAN_POISON_MEMORY_REGION(address, place.block->end - place.block->offset);
    place.range->live.erase(place.block);
  }

  std::int64_t NumLive(const Range* range) {
    const std::lock_guard lock(mutex_);
    return static_cast<std::int64_t>(range->live.size());
  }

  RangeStatistics Statistics() {
    const std::lock_guard lock(mutex_);
    RangeStatistics statistics;
    for (const auto& [base, range] : ranges_) {
      ++statistics.ranges;
      statistics.reserved_bytes += range->bytes;
      statistics.live_blocks += static_cast<std::int64_t>(range->live.size());
    }
    return statistics;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  struct Place {
    Range* range = nullptr;  // null: no block begins there
    std::vector<Range::Block>::iterator block;
  };

  bool IsOutside(const void* address) const {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    return at < lowest_.load(std::memory_order_acquire) ||
           at >= end_.load(std::memory_order_acquire);
  }
  Place Find(const void* address) {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    const auto behind = ranges_.upper_bound(at);
    if (behind == ranges_.begin()) return {};
    Range* const range = std::prev(behind)->second.get();
    const auto block = FirstFrom(range, static_cast<std::int64_t>(at - std::prev(behind)->first));
    const bool is_there = block != range->live.end() &&
                          range->base + block->offset == static_cast<const char*>(address);
    return is_there ? Place{range, block} : Place{};
  }
  static std::vector<Range::Block>::iterator FirstFrom(Range* range, std::int64_t offset) {
    return std::lower_bound(
        range->live.begin(), range->live.end(), offset,
        [](const Range::Block& block, std::int64_t value) { return block.offset < value; });
  }

  // A range that what outlives its call keeps from others holds no more pages than that needs.
  static void GiveGapsBack(const Range& range) {
    const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
    std::int64_t begin = 0;
    const auto give_back = [&](std::int64_t end) {
      const std::int64_t first = WholePages(begin), last = end / page * page;
      if (first < last) {
        madvise(range.base + first, static_cast<std::size_t>(last - first), MADV_DONTNEED);
      }
    };
    for (const Range::Block& block : range.live) {
      give_back(block.offset);
      begin = block.end;
    }
    give_back(range.bytes);
  }

  Range* Map(std::int64_t bytes) {
    static const std::size_t most =
        std::max<std::size_t>(16, 4 * std::thread::hardware_concurrency());
    if (bytes <= 0 || ranges_.size() >= most) return nullptr;
    void* base = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    ASAN_POISON_MEMORY_REGION(base, bytes);
    auto range = std::make_unique<Range>();
    range->base = static_cast<char*>(base);
    range->bytes = bytes;
    const auto at = reinterpret_cast<std::uintptr_t>(base);
    Range* const added = ranges_.emplace(at, std::move(range)).first->second.get();
    // Bounds grow only: addresses between ranges cost a look under the lock, no more.
    lowest_.store(std::min(lowest_.load(), at), std::memory_order_release);
    end_.store(std::max(end_.load(), at + static_cast<std::uintptr_t>(bytes)),
               std::memory_order_release);
    return added;
  }
  void Unmap(const Range* range) {
    ASAN_UNPOISON_MEMORY_REGION(range->base, range->bytes);
    munmap(range->base, static_cast<std::size_t>(range->bytes));
    ranges_.erase(reinterpret_cast<std::uintptr_t>(range->base));
  }

  std::mutex mutex_;
  std::map<std::uintptr_t, std::unique_ptr<Range>> ranges_;  // by first address
  std::atomic<std::uintptr_t> lowest_{UINTPTR_MAX}, end_{0};
};

// Never destroyed: tensors may be released after main has returned.
Ranges& All() {
  static auto* ranges = new Ranges;
  return *ranges;
}

}  // namespace

Range* AcquireRange(std::int64_t bytes) {
  return All().Acquire(bytes);
}
void ReleaseRange(Range* range) {
  All().Release(range);
}
void* TakeBlock(Range* range, std::int64_t offset, std::int64_t bytes) {
  return All().Take(range, offset, bytes);
}
std::int64_t LiveBlocks(const Range* range) {
  return All().NumLive(range);
}
std::int64_t BlockBytes(const void* address) {
  return All().BlockBytes(address);
}
void GiveBlockBack(const void* address) {
  All().GiveBack(address);
}
RangeStatistics StatisticsOfRanges() {
  return All().Statistics();
}
std::mutex& RangesMutex() {
  return All().mutex();
}

}  // namespace torch_ext::memory
