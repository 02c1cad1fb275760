// Calls served from an arena: the i-th block of a call lies where a plan says, and malloc is asked
// for nothing but what outlives the call.
//
//   record   one settled call: sizes in sequence, births, deaths          recorder.h
//   plan     lifetimes -> offsets (sched/addresses.h)                     PlanArena
//   replay   the i-th allocation, if its size is the i-th of the plan and nothing alive lies there
//
// A plan is a hint, never a licence. The first allocation that is not as planned, and all after it
// until the call ends, go to malloc, counted with the reason. Whatever is planned, blocks that are
// alive share no address (ranges.h), and a block that outlives its call keeps its range for itself.
//
// USAGE   const ArenaPool pool = ArenaPool::FromText(text);   // shared by threads
//         { const ArenaGuard guard(pool, SignatureOf(inputs));  module.forward(inputs); }
//
// Needs c10 of LibTorch and nothing else of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memory/recorder.h"
#include "sched/budget.h"
#include "sched/lifetimes.h"

namespace torch_ext::memory {

using sched::kArenaAlignment;

// Where the blocks of a call lie, in the sequence of their allocation.
struct ArenaPlan {
  struct Slot {
    std::int64_t bytes = 0;                  // as asked for
    std::int64_t offset = kOutlivesTheCall;  // a multiple of kArenaAlignment
  };
  static constexpr std::int64_t kOutlivesTheCall = -1;  // left to malloc

  std::vector<Slot> slots;
  std::int64_t height_bytes = 0;  // what a range needs
  std::int64_t bound_bytes = 0;   // no placement of these lifetimes is lower
};

// Sizes count rounded up to kArenaAlignment. Deterministic (sched/addresses.h).
ArenaPlan PlanArena(const Recording& recording, sched::Budget& budget);

// Why an allocation was left to malloc, for the rest of the call.
enum class Deviation {
  kNone,
  kNoPlan,           // for this signature
  kNoRange,          // too many calls at once, or no address space
  kOtherSize,        // than planned
  kMoreAllocations,  // than planned
  kFewerAllocations,
  kStillAlive,  // something lies there that should have been released
  kOutlived,    // a block that should not have outlived the call
  kDisabled,    // by TORCH_EXT_DISABLE=1 in the environment
};
inline constexpr std::array<std::pair<Deviation, const char*>, 9> kDeviationNames = {{
    {Deviation::kNone, "served"},
    {Deviation::kNoPlan, "no plan for these inputs"},
    {Deviation::kNoRange, "no memory for an arena"},
    {Deviation::kOtherSize, "a block of another size"},
    {Deviation::kMoreAllocations, "more blocks than planned"},
    {Deviation::kFewerAllocations, "fewer blocks than planned"},
    {Deviation::kStillAlive, "a block that was to be released"},
    {Deviation::kOutlived, "a block that outlived the call"},
    {Deviation::kDisabled, "disabled"},
}};

struct ArenaStatistics {
  std::array<std::int64_t, kDeviationNames.size()> calls{};  // by Deviation
  std::int64_t served_blocks = 0;
  std::int64_t served_bytes = 0;
};

// The plans of one program, by signature. Copies share them. Safe to use from many threads.
class ArenaPool {
 public:
  ArenaPool();

  // The text that ToText makes. Throws std::invalid_argument `line N: what is wrong`.
  static ArenaPool FromText(std::string_view text);
  std::string ToText() const;

  // Any line of text tells calls apart that allocate differently; one plan each, the last one
  // stays. Throws std::invalid_argument for offsets that are no multiples of kArenaAlignment.
  void Insert(const std::string& signature, ArenaPlan plan);
  void Erase(const std::string& signature);
  bool Has(const std::string& signature) const;
  std::vector<std::string> signatures() const;
  std::int64_t height_bytes() const;  // of the highest plan
  ArenaStatistics statistics() const;

 private:
  friend class ArenaGuard;
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

// Of all pools of the process.
ArenaStatistics StatisticsOfArenas();

// While it lives, what its thread allocates has its place in an arena. One call of one thread; in
// the call of another guard, or of a Recorder, it does nothing: the outer one sees its blocks.
class ArenaGuard final : ThreadObserver {
 public:
  ArenaGuard(const ArenaPool& pool, const std::string& signature);
  ~ArenaGuard() { Stop(); }
  ArenaGuard(const ArenaGuard&) = delete;
  ArenaGuard& operator=(const ArenaGuard&) = delete;

  void Stop();  // in the thread that made it
  bool is_nested() const { return is_nested_; }
  Deviation deviation() const { return deviation_; }  // so far

 private:
  void* Serve(std::int64_t bytes) override;
  void Allocated(const void* address, std::int64_t bytes) override;
  void Released(const void* address) override;
  void Deviate(Deviation deviation);

  std::shared_ptr<ArenaPool::Shared> pool_;
  std::shared_ptr<const ArenaPlan> plan_;
  struct Range* range_ = nullptr;
  std::size_t next_ = 0;
  Deviation deviation_ = Deviation::kNone;
  std::int64_t served_blocks_ = 0, served_bytes_ = 0;
  bool is_nested_ = false;
  bool is_open_ = true;
};

}  // namespace torch_ext::memory
