// The lever *repeat*: an op runs a second time, right before its result is needed again; in between
// nobody holds that result.
//
// RUNS. A list of ops in which each occurs at least once; its first run is the original, the others
// are repeats. A run reads, of each op that made a value for it, the values of the latest run
// before it. Each run makes storages of its own: an *instance* of each buffer that the op writes.
// Values that lie in a storage of another op (views, results of writing in place) lie in the
// instance that their run read. An instance lives from its making to the last run that reads it.
//
// VALID. Runs do what the original program does, bit for bit, if
//   first     first runs respect data flow and hazards (hazards.h);
//   once      what draws random numbers, shows, blocks others, writes to memory that outlives the
//             call, or takes a time that nobody knows runs once. Batch norm in training may run
//             again, without its running statistics;
//   instance  all values by which a run reads a buffer lie in one instance: a view of an old one
//             does not stand beside the new one;
//   version   an instance was written to in place as often as the buffer was before that op in the
//             original program: by the same ops then, for each of these minds its version, too;
//   deadline  no repeat comes after what its original had to precede: a barrier, or a write to
//             memory that is older than the program (a parameter that is read before its update).
// By induction over runs: every instance has, at each version, the bits that the buffer had.
// What the caller gets is read at the end: all values that lie in a kept buffer, at its last
// version.
//
// MEMORY. While a run works: all live instances, those that it makes, its workspace. A result that
// may overwrite an argument (levers/overwrite.h) takes no memory of its own if the argument's
// instance ends there. `WithRepeats` is the program in which each run is an op; it lowers to an
// ordinary graph, so that the judge and every proof of the core stand for it.
//
// Attack: repeat_test.cpp, a machine that knows of contents alone.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "program/program.h"

namespace torch_ext::program {

using Runs = std::vector<OpId>;

// What the times of all ops, each run once, may sum up to: more than a year. Many runs of all do
// not overflow.
inline constexpr std::int64_t kMostNanoseconds = std::int64_t{1} << 55;

// Switched off only to show that a test finds what a rule prevents.
struct RepeatRules {
  bool once = true;
  bool instance = true;
  bool version = true;
  bool deadline = true;
};

inline constexpr std::array<std::pair<const char*, bool RepeatRules::*>, 4> kRepeatRuleNames = {{
    {"once", &RepeatRules::once},
    {"instance", &RepeatRules::instance},
    {"version", &RepeatRules::version},
    {"deadline", &RepeatRules::deadline},
}};

// May it run again, by what it does?
bool MayRepeat(const Op& op);

// Each run as an op, the second of NAME as "NAME/2", with buffers and values of its own that are
// called alike. The runs must be valid. Edits that were allowed for an op are for each of its runs.
// Throws std::invalid_argument if an op or a buffer is called as another one's second run is.
Program WithRepeats(const Program& program, std::span<const OpId> runs);

// Runs by the names that they have there. Throws std::invalid_argument for a name of none, or of
// one that comes before a run of the same op with a lower number.
Runs RunsNamed(const Program& program, const std::vector<std::string>& names);

// Throws std::invalid_argument if the runs are not valid.
void RequireValid(const Program& program, std::span<const OpId> runs);

// The program by numbers, for judging many lists of runs.
class Rerunner {
 public:
  // `overwrite`: results take no memory where they may overwrite. Throws std::invalid_argument if
  // the time of an op is negative, or the sum too long.
  Rerunner(const Program& program, bool overwrite, const RepeatRules& rules = {});

  // A read of a buffer by an op. It comes by values of those ops, each by the place of the buffer
  // among the ones that these hold; none for what is there from the start.
  struct Source {
    OpId maker = sched::kNoOp;
    std::int32_t slot = 0;
  };
  struct Read {
    BufferId buffer = -1;
    std::int32_t version = 0;  // writes in place before the op
    std::vector<Source> sources;
  };
  struct Held {
    BufferId buffer = -1;
    std::int32_t read = -1;  // place among the op's reads; -1: the op makes it
  };
  struct Over {  // an overwrite by places
    std::int32_t held = 0, read = 0;
    std::vector<OpId> others;
  };
  struct Step {
    std::vector<Read> reads;
    std::vector<Held> holds;              // the buffers that the values of a run lie in
    std::vector<std::int32_t> mutates;    // places among reads
    std::vector<OpId> makers;             // of the values that it reads
    std::vector<OpId> before, deadlines;  // ops that must have run; that must not, for a repeat
    std::vector<OpId> aliasers;           // ops whose values lie in what it makes
    std::vector<Over> overwrites;
    std::int64_t workspace_bytes = 0;
    std::int64_t nanoseconds = 0;
    bool may_repeat = false;
  };
  const std::vector<Step>& steps() const { return steps_; }
  const std::vector<Read>& end() const { return end_; }  // what the caller gets
  const std::vector<OpId>& mutators(BufferId b) const { return mutators_[b]; }
  std::int64_t size_bytes(BufferId b) const { return program_->buffers[b].bytes; }
  const Program& program() const { return *program_; }
  std::int64_t nanoseconds() const { return nanoseconds_; }  // of the ops, each run once

  struct Instance {
    BufferId buffer = -1;
    std::int32_t version = 0;
    std::int32_t birth = -1;  // position; -1: there from the start
    std::int32_t last = -1;   // position of the last read; runs.size(): the end
    bool is_over = false, is_written_over = false;  // which of two that overwriting makes one
  };
  struct Judged {
    bool is_valid = false;
    std::int64_t peak_bytes = 0;
    std::int64_t excess_bytes = 0;  // above a budget, summed over positions
    std::int64_t nanoseconds = 0;
  };
  // O(runs and what they read). Keeps what `hill_bytes` and the rest tell until the next call.
  Judged Judge(std::span<const OpId> runs, std::int64_t budget_bytes);
  // Of the last list that was judged: per position.
  const std::vector<std::int64_t>& hill_bytes() const { return hill_bytes_; }
  const std::vector<Instance>& instances() const { return instances_; }
  // The last position at which a value of the run there is read; its own if nobody does.
  const std::vector<std::int32_t>& last_use() const { return last_use_; }
  // The instance of each read of the run at a position; of runs.size(): of each read of the end.
  std::span<const std::int32_t> read_at(std::size_t position) const {
    return std::span(reads_).subspan(first_read_[position],
                                     first_read_[position + 1] - first_read_[position]);
  }
  // Where the places begin of what an op holds, in an array of all that ops hold.
  std::size_t first_held(OpId op) const { return first_held_[op]; }
  std::size_t num_held() const { return num_held_; }

  // The runs without repeats that nobody reads. O(runs and what they read).
  Runs WithoutDead(std::span<const OpId> runs) const;

 private:
  void Link();
  // Which instance the read is of, or -1 if it may not be read.
  std::int32_t Resolve(const Read& read) const;

  const Program* program_;
  RepeatRules rules_;
  std::vector<Step> steps_;
  std::vector<Read> end_;
  std::vector<std::vector<OpId>> mutators_;  // per buffer, in their order
  std::vector<std::size_t> first_held_;
  std::vector<std::int32_t> input_instance_;
  std::size_t num_held_ = 0;
  std::int64_t nanoseconds_ = 0;

  std::vector<std::int64_t> hill_bytes_;
  std::vector<Instance> instances_;
  std::vector<std::int32_t> last_use_, latest_, held_, reads_;
  std::vector<std::size_t> first_read_;
  struct Chance {
    std::int32_t position;
    const Over* over;
    std::int32_t result, argument;  // instances
  };
  std::vector<Chance> chances_;
};

}  // namespace torch_ext::program
