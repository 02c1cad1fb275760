// The lever *slice*: a stretch of the order runs part by part.
//
// A stretch is a run of ops, a dimension of the last op's result, and a size of parts. Walking back
// from that result, the rules of the operators (operators/slicing.h) tell which interval of every
// value a part needs. What is read after the stretch (its results) is allocated whole before it,
// and each part writes its interval. Everything else that the stretch makes exists one part at a
// time. Rows that two parts need are computed twice, or kept (KEPT ROWS).
//
// In the program a stretch becomes ONE op: it reads what is made before, writes its results, and
// its workspace is the peak of a part. So the program lowers to an ordinary graph, and nothing in
// the core knows of slices.
//
// RULES. A run of ops is a stretch if
//   reached   each of its ops is needed, in parts, by one behind it in the stretch, or is the last,
//             or makes a smaller result, in as many parts, of what is made in parts anyway;
//             or none of it is needed: then it runs behind the parts, or else ahead of them, past
//             no op that it is in conflict with. What it reads of the stretch is a result
//   whole     what a part needs the whole of is older than the stretch
//   pure      its ops do nothing beyond their data flow, but for writing over an argument in place
//   in place  such an argument is new memory that the stretch makes, and nobody reads an older
//             value of that memory later
//   results   those read later have memory of their own, one each, and fill it; the parts cover
//             them
//   runs      where kernels compute the ends of runs of elements by other code, and round otherwise
//             (gelu, sigmoid, batch norm), the ends are the same in parts, or the op runs placed
//   facts     the adaptor knows nothing against it: an op whose bits are others in parts of that
//             size, and that does not run placed
// Then every part of each value is computed from the same numbers as in the whole. Whether by the
// same bits is up to kernels: that is tried, op by op, and verified by running.
//
// KEPT ROWS. A stretch either computes again what a part needs of rows that the part before it had,
// or keeps them. Then an op computes the rows alone that are new, a copy of those that are had is
// joined with them, and what the next part will need is copied. So nothing in front of it computes
// anything twice, however many windows there are, for one more copy of the value and the kept rows,
// which are alive through the whole stretch. The same elements are computed, from the same numbers,
// in other parts: facts tell of those. Lists, and tensors in other memory than a new one, are
// computed again.
//
// PLACED. A small op of which parts alone would have other bits may run placed: its part of each
// argument is copied to its place in zeros of the whole's size, the op runs on those, and its part
// of what that makes is copied out. The kernel is called with the sizes and strides of the whole,
// and what an element of the part is computed from is the same: so its bits are, by whatever code
// the kernel computes an element at that place. It costs the work of the whole for each part, and
// the whole of these values while the op runs; hence for small ones alone (Program::most_placed):
// the few numbers of a squeeze-and-excite block, between large images that are cut by samples.
//
// OVERWRITES. A part may be written over the part of an argument that dies with it. So an op that
// can write over an argument (Program::overwritable) does so in parts if
//   made here  the argument is what another op of the stretch makes new, in the same intervals
//   last       no later op of the stretch reads its memory, and those that touch it in other runs
//              are among those that read it in this one
// Then no part reads the argument's numbers later (a result that is read behind the stretch has
// been copied to its place), and what the part takes is less by what the op makes.
//
// CHOICE. Over one order, by dynamic programming over its places: of all sets of stretches that do
// not overlap, with parts of some sizes (PartSizes), one with the lowest peak, or one with the
// least added work among those below a limit (bytes that are written and numbers that are
// multiplied once more). What is alive before a place does not depend on stretches before it; what
// a stretch reads is counted as alive until it ends. Ops that are in none do the overwrites that
// are forced (levers/overwrite.h). O(ops * length of stretches * sizes * dimensions), times the
// length for what a part takes.
//
// FLOOR. Whatever is sliced, hoisted, overwritten or ordered: all results are whole at the end; and
// an op of which no dimension can be sliced runs whole, so what it reads and makes is whole at that
// moment, less what it may write over and may have been copied for it.
//
// Attack: slice_test.cpp: all sets of stretches of small programs, unrolled and judged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "program/levers/slice_facts.h"
#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::sched {
struct Profile;
}

namespace torch_ext::program {

class Index;  // of a program in an order

struct Stretch {
  std::vector<OpId> ops;  // in the order in which they run
  int dimension = 0;      // of the result of the last
  std::int64_t part_size = 0;
  bool keeps_rows = false;

  bool operator==(const Stretch&) const = default;
};

std::int64_t LongestOf(const std::vector<Interval>& parts);

// Of each interval what is behind the one before.
std::vector<Interval> NewRows(const std::vector<Interval>& parts);

// How a stretch runs.
struct SlicedStretch {
  struct PartOp {
    OpId op = sched::kNoOp;
    int dimension = 0;            // of its result
    std::vector<Interval> parts;  // of it, as others read them
    bool reads_older = false;     // see SliceFacts
    std::string overwrites = {};  // an argument whose parts it writes its own over; none: empty
    bool is_placed = false;
    bool keeps_rows = false;

    std::vector<Interval> Computed() const { return keeps_rows ? NewRows(parts) : parts; }
    SliceFacts::Part Longest() const {
      return {op, dimension, LongestOf(Computed()), reads_older, is_placed};
    }
  };
  std::vector<OpId> ahead, behind;  // each in their order
  std::vector<PartOp> ops;
  std::vector<std::string> results;  // values
  std::int64_t result_bytes = 0;
  std::int64_t part_bytes = 0;   // the peak of a part
  std::int64_t taken_bytes = 0;  // at most, beside what is alive before: with ops ahead and behind
  std::int64_t extra_bytes = 0;  // what is written more often than in the whole
  bool is_known = false;         // by the facts, all of it
};

// Nothing if the ops are none by the rules.
std::optional<SlicedStretch> Sliced(const Program& program, const Stretch& stretch,
                                    const SliceFacts& facts);

// The sizes of parts that are tried for a dimension of that size, from large to small.
std::vector<std::int64_t> PartSizes(std::int64_t size);

// A bound on the peak over all edits there are, see above. Of buffers that are certain.
struct SliceFloor {
  std::int64_t bytes = 0;
  bool is_of_results = true;  // else of one op
};
SliceFloor FloorOf(const Program& program);

// All stretches of an order, as runs of its ops.
class Stretches {
 public:
  Stretches(const Program& program, const sched::Order& order, const SliceFacts& facts,
            bool may_keep_rows = true);

  struct Choice {
    std::int64_t peak_bytes = 0;
    std::vector<Stretch> stretches;  // in their order
    OpId highest = sched::kNoOp;     // runs at the peak; the last of a stretch stands for all of it
  };
  // The lowest peak; of equal ones the least work.
  Choice Lowest() const;
  // The least work with that peak at most; if there is none, the lowest peak.
  Choice Within(std::int64_t peak_bytes) const;

 private:
  struct Candidate {
    std::size_t begin, end;  // places in the order
    int dimension;
    std::int64_t part_size;
    bool keeps_rows;
    std::int64_t hill_bytes, extra_bytes;
  };
  // Those that end there and run like that one. Do parts need rows that others have?
  bool AddCandidates(const Index& index, const SliceFacts& facts, const sched::Profile& profile,
                     std::size_t end, const Stretch& like);

  const sched::Order order_;
  std::vector<std::int64_t> hill_bytes_;            // of each place of the order
  std::vector<std::vector<Candidate>> candidates_;  // by their end
};

}  // namespace torch_ext::program
