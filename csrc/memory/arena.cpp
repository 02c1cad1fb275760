#include "memory/arena.h"

#include <pthread.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "memory/allocator.h"
#include "memory/environment.h"
#include "memory/ranges.h"
#include "sched/addresses.h"

namespace torch_ext::memory {
namespace {

// Of all pools, their plans and their counts; free in the child of a fork, as the locks of the
// allocator are. Nothing else is locked while it is held.
std::mutex& PoolsMutex() {
  static auto* const mutex = [] {
    auto* const made = new std::mutex;
    const auto lock = [] { PoolsMutex().lock(); };
    const auto unlock = [] { PoolsMutex().unlock(); };
    pthread_atfork(lock, unlock, unlock);
    return made;
  }();
  return *mutex;
}

ArenaStatistics& StatisticsOfAll() {
  static auto* const statistics = new ArenaStatistics;
  return *statistics;
}

void Count(Deviation deviation, std::int64_t blocks, std::int64_t bytes,
           ArenaStatistics& statistics) {
  ++statistics.calls.at(static_cast<std::size_t>(deviation));
  statistics.served_blocks += blocks;
  statistics.served_bytes += bytes;
}

}  // namespace

ArenaPlan PlanArena(const Recording& recording, sched::Budget& budget) {
  std::vector<sched::Lifetime> lifetimes;
  for (const RecordedBlock& block : recording) {
    if (block.death) lifetimes.push_back({sched::Aligned(block.bytes), block.birth, *block.death});
  }
  const sched::AddressPlan addresses = sched::PlanAddresses(lifetimes, budget);
  ArenaPlan plan{.height_bytes = addresses.height_bytes, .bound_bytes = addresses.bound_bytes};
  std::size_t next = 0;
  for (const RecordedBlock& block : recording) {
    plan.slots.push_back(
        {block.bytes, block.death ? addresses.offsets[next++] : ArenaPlan::kOutlivesTheCall});
  }
  return plan;
}

// --- pool ----------------------------------------------------------------------------------------

struct ArenaPool::Shared {
  std::map<std::string, std::shared_ptr<const ArenaPlan>> plans;  // by signature
  ArenaStatistics statistics;
};

ArenaPool::ArenaPool() : shared_(std::make_shared<Shared>()) {
  InstallAllocator();
}

void ArenaPool::Insert(const std::string& signature, ArenaPlan plan) {
  if (signature.find('\n') != std::string::npos) {
    throw std::invalid_argument("a signature is one line");
  }
  for (const ArenaPlan::Slot& slot : plan.slots) {
    if (slot.offset == ArenaPlan::kOutlivesTheCall) continue;
    if (slot.offset < 0 || slot.offset % kArenaAlignment != 0) {
      throw std::invalid_argument("an offset is a multiple of 64, not " +
                                  std::to_string(slot.offset));
    }
  }
  auto shared = std::make_shared<const ArenaPlan>(std::move(plan));
  const std::lock_guard lock(PoolsMutex());
  shared_->plans.insert_or_assign(signature, std::move(shared));
}

void ArenaPool::Erase(const std::string& signature) {
  const std::lock_guard lock(PoolsMutex());
  shared_->plans.erase(signature);
}

bool ArenaPool::Has(const std::string& signature) const {
  const std::lock_guard lock(PoolsMutex());
  return shared_->plans.contains(signature);
}

std::vector<std::string> ArenaPool::signatures() const {
  const std::lock_guard lock(PoolsMutex());
  std::vector<std::string> names;
  for (const auto& [signature, plan] : shared_->plans) names.push_back(signature);
  return names;
}

std::int64_t ArenaPool::height_bytes() const {
  const std::lock_guard lock(PoolsMutex());
  std::int64_t height = 0;
  for (const auto& [signature, plan] : shared_->plans) {
    height = std::max(height, plan->height_bytes);
  }
  return height;
}

ArenaStatistics ArenaPool::statistics() const {
  const std::lock_guard lock(PoolsMutex());
  return shared_->statistics;
}

ArenaStatistics StatisticsOfArenas() {
  const std::lock_guard lock(PoolsMutex());
  return StatisticsOfAll();
}

// --- text ----------------------------------------------------------------------------------------
//
//   arena 1
//   plan 602112 602112 Float[1,3,224,224]     # height, bound, signature
//   602112 0                                  # bytes, offset of each block
//   4000 -                                    # left to malloc

namespace {

constexpr std::string_view kHeader = "arena 1";
constexpr std::string_view kPlan = "plan ";

class TextReader {
 public:
  explicit TextReader(std::string_view text) : text_(text) {}

  bool HasLine() const { return !text_.empty(); }
  std::string_view Line() {
    ++line_;
    const std::size_t end = std::min(text_.find('\n'), text_.size());
    const std::string_view line = text_.substr(0, end);
    text_.remove_prefix(std::min(end + 1, text_.size()));
    return line;
  }
  [[noreturn]] void Fail(const std::string& what) const {
    throw std::invalid_argument("line " + std::to_string(line_) + ": " + what);
  }
  // The number before the next blank, which is taken off `line` with it.
  std::int64_t Number(std::string_view& line) const {
    std::int64_t value = -1;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    const auto length = static_cast<std::size_t>(end - line.data());
    const bool is_whole = length == line.size() || line[length] == ' ';
    if (error != std::errc() || value < 0 || value > kMostBytes || !is_whole) {
      Fail("expected a number of bytes in \"" + std::string(line) + '"');
    }
    line.remove_prefix(std::min(length + 1, line.size()));
    return value;
  }

 private:
  static constexpr std::int64_t kMostBytes = std::int64_t{1} << 62;

  std::string_view text_;
  int line_ = 0;
};

}  // namespace

ArenaPool ArenaPool::FromText(std::string_view text) {
  TextReader reader(text);
  if (reader.Line() != kHeader) reader.Fail("expected \"" + std::string(kHeader) + '"');
  ArenaPool pool;
  std::string signature;
  ArenaPlan plan;
  bool has_plan = false;
  while (reader.HasLine()) {
    std::string_view line = reader.Line();
    if (line.starts_with(kPlan)) {
      if (has_plan) pool.Insert(signature, std::exchange(plan, {}));
      line.remove_prefix(kPlan.size());
      has_plan = true;
      plan.height_bytes = reader.Number(line);
      plan.bound_bytes = reader.Number(line);
      signature = line;
      if (plan.bound_bytes > plan.height_bytes) reader.Fail("a bound above the height");
      if (pool.Has(signature)) reader.Fail("a second plan for " + signature);
      continue;
    }
    if (!has_plan) reader.Fail("expected \"plan HEIGHT BOUND SIGNATURE\"");
    ArenaPlan::Slot slot{reader.Number(line)};
    if (line != "-") {
      slot.offset = reader.Number(line);
      if (!line.empty()) reader.Fail("expected nothing behind an offset");
      if (slot.offset % kArenaAlignment != 0) reader.Fail("an offset is a multiple of 64");
      if (slot.bytes > plan.height_bytes - slot.offset) reader.Fail("a block above the height");
    }
    plan.slots.push_back(slot);
  }
  if (has_plan) pool.Insert(signature, std::move(plan));
  return pool;
}

std::string ArenaPool::ToText() const {
  const std::lock_guard lock(PoolsMutex());
  std::string text = std::string(kHeader) + '\n';
  for (const auto& [signature, plan] : shared_->plans) {
    text += std::string(kPlan) + std::to_string(plan->height_bytes) + ' ' +
            std::to_string(plan->bound_bytes) + ' ' + signature + '\n';
    for (const ArenaPlan::Slot& slot : plan->slots) {
      text += std::to_string(slot.bytes) + ' ';
      text += slot.offset == ArenaPlan::kOutlivesTheCall ? "-" : std::to_string(slot.offset);
      text += '\n';
    }
  }
  return text;
}

// --- one call ------------------------------------------------------------------------------------

ArenaGuard::ArenaGuard(const ArenaPool& pool, const std::string& signature)
    : pool_(pool.shared_), is_nested_(CurrentObserver() != nullptr) {
  if (is_nested_) return;
  if (IsDisabledByEnvironment()) {
    deviation_ = Deviation::kDisabled;
    return;
  }
  {
    const std::lock_guard lock(PoolsMutex());
    if (const auto found = pool_->plans.find(signature); found != pool_->plans.end()) {
      plan_ = found->second;
    }
  }
  if (plan_ == nullptr) {
    deviation_ = Deviation::kNoPlan;
    return;
  }
  if (plan_->height_bytes > 0) {
    range_ = AcquireRange(plan_->height_bytes);
    if (range_ == nullptr) {
      deviation_ = Deviation::kNoRange;
      return;
    }
  }
  SetObserver(this);
}

void ArenaGuard::Stop() {
  if (is_nested_ || !is_open_) return;
  is_open_ = false;
  if (CurrentObserver() == this) {
    SetObserver(nullptr);
    if (next_ < plan_->slots.size()) Deviate(Deviation::kFewerAllocations);
  }
  if (range_ != nullptr) {
    if (LiveBlocks(range_) > 0) Deviate(Deviation::kOutlived);
    ReleaseRange(range_);
  }
  const std::lock_guard lock(PoolsMutex());
  for (ArenaStatistics* statistics : {&pool_->statistics, &StatisticsOfAll()}) {
    Count(deviation_, served_blocks_, served_bytes_, *statistics);
  }
}

void ArenaGuard::Deviate(Deviation deviation) {
  if (deviation_ == Deviation::kNone) deviation_ = deviation;
}

void* ArenaGuard::Serve(std::int64_t bytes) {
  if (deviation_ != Deviation::kNone) return nullptr;
  if (next_ == plan_->slots.size()) {
    Deviate(Deviation::kMoreAllocations);
    return nullptr;
  }
  const ArenaPlan::Slot& slot = plan_->slots[next_++];
  if (slot.bytes != bytes) {
    Deviate(Deviation::kOtherSize);
    return nullptr;
  }
  if (slot.offset == ArenaPlan::kOutlivesTheCall) return nullptr;
  void* const address =  // a plan of no height has no range
      range_ == nullptr ? nullptr : TakeBlock(range_, slot.offset, bytes);
  if (address == nullptr) {
    Deviate(Deviation::kStillAlive);
    return nullptr;
  }
  ++served_blocks_;
  served_bytes_ += bytes;
  return address;
}

void ArenaGuard::Allocated(const void* /*address*/, std::int64_t /*bytes*/) {}
void ArenaGuard::Released(const void* /*address*/) {}

}  // namespace torch_ext::memory
