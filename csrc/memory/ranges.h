// Addresses that arenas lie in: reserved ranges, and what is alive in them.
//
// A range serves one call at a time, and only while nothing of an earlier one is alive in it. What
// is taken lies where the caller says, unless something alive is there: so no plan, however wrong,
// puts two living blocks on one address. What is given back is found by its address alone, in any
// thread, during the call or long after it.
//
// One lock for all ranges; addresses outside of all of them are told apart without it. After fork()
// (allocator.h) the child has copies of all ranges; those that other threads were using stay taken
// there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

namespace torch_ext::memory {

struct Range;  // of one call

// Of at least `bytes`: one that nobody uses and nothing lives in, else a new one. Null if there are
// too many (of calls at once, and of ranges with something alive in them) or the system refuses.
Range* AcquireRange(std::int64_t bytes);
void ReleaseRange(Range* range);  // what is alive in it stays there

// Null if something is alive at [offset, offset + bytes) or that is not inside of the range.
// Time: O(log n) and a move of n words, n blocks being alive in the range.
void* TakeBlock(Range* range, std::int64_t offset, std::int64_t bytes);
std::int64_t LiveBlocks(const Range* range);

// The bytes of the block that begins there; 0 if no block in any range does.
std::int64_t BlockBytes(const void* address);
void GiveBlockBack(const void* address);

struct RangeStatistics {
  std::int64_t ranges = 0;
  std::int64_t reserved_bytes = 0;
  std::int64_t live_blocks = 0;
};
RangeStatistics StatisticsOfRanges();

std::mutex& RangesMutex();  // that one lock

}  // namespace torch_ext::memory
