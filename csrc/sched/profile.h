// The algebra of profiles: what an order does to memory, as far as anything around it can notice.
//
// A profile is written as segments, each with its hill above the segment's start and its net
// change. One op is a segment, and concatenation is concatenation of the lists. Profile P
// *dominates* Q if the two can be walked together, each only forwards and either one allowed to
// wait, so that P is never above Q. What runs a dominating order in place of another never makes
// the peak of the whole higher, whatever else runs in between.
//
//   memory           ._.               What matters for dominance is kept: the lowest valley (the
//     |  ._.        |   |              cut, marked v); before it, falling segments whose hills
//   --'  |  '-.  ._.'   |  ._.         rise and whose valleys fall; after it, rising ones whose
//             '--'  v   '--'  '---     hills fall and whose valleys rise. All else lies below a
//    [ falling ][ rising   ][rising]   hill that was passed anyway.
//
// Source: canonical forms as in Section 4 of arXiv 2312.13526; the hill-valley segments of Liu, "An
// application of generalized tree pebbling to sparse matrix factorization", 1987.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/simulate.h"

namespace torch_ext::sched {

struct Segment {
  std::int64_t hill_bytes = 0;  // highest memory on the way, above the start of the segment
  std::int64_t net_bytes = 0;   // memory at its end, above the start; not above the hill
  std::int32_t num_ops = 1;

  bool operator==(const Segment&) const = default;
};

// Each op a segment.
std::vector<Segment> SegmentsOf(const Profile& profile);

// The canonical form, equivalent to `segments`: cut at the first lowest valley; walking away from
// the cut, the last of equally high hills, then the last of equally low valleys. A segment of net
// change 0 at the cut is kept only if its hill exceeds every other. O(segments).
std::vector<Segment> Canonical(std::span<const Segment> segments);

// Of canonical forms that start at the same memory: is P nowhere above Q? O(segments).
bool Dominates(std::span<const Segment> p, std::span<const Segment> q);

// How to interleave independent canonical profiles: all falling segments by rising hill, then all
// rising ones by falling (hill - net). The result, as one list, dominates every interleaving.
// Ties: the earlier part. O(segments log segments).
struct MergedSegment {
  std::size_t part;
  std::size_t segment;
};
std::vector<MergedSegment> MergeIndependent(std::span<const std::vector<Segment>> parts);

}  // namespace torch_ext::sched
