// Bare graphs: what the text format says in version 2, where ops may run again.
//
//   graph 2
//   op conv    reads x writes a nanoseconds 5000       # of one run; 0, or without it: runs once
//   op dropout reads a writes b nanoseconds 900 once   # must not run again: it draws
//   op add_    reads b c mutates b nanoseconds 700     # of what it reads: it writes to b in place
//
// Everything else is as in version 1 (sched/instance.h), in which the new words are names.
//
// `mutates` follows the versions of levers/repeat.h: whoever reads the buffer sees what it held at
// that place of the original order. So ops that touch it keep their order about each write to it,
// and an input that is written to is memory which outlives the call. `after` holds for repeats too:
// no repeat of an op comes later than what had to run after it, for that may have written to what
// the op reads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::program {

// What version 2 says of an op beside version 1.
struct OpFacts {
  std::int64_t nanoseconds = 0;  // of a run; 0: nobody knows, so it runs once
  bool once = false;
  std::vector<std::string> mutates = {};  // of what it reads: buffers that it writes to in place

  bool SaysMore() const { return nanoseconds != 0 || once || !mutates.empty(); }
};

// A bare graph by names. Methods throw std::invalid_argument with one sentence that names the
// offender, and change nothing then.
class GraphBuilder {
 public:
  void AddBuffer(const std::string& name, std::int64_t size_bytes, bool input, bool kept);
  void AddOp(const std::string& name, const std::vector<std::string>& reads,
             const std::vector<std::string>& writes, std::int64_t workspace_bytes,
             const std::vector<std::string>& after, OpFacts facts = {});
  // The program so far; throws if a buffer has no producer.
  Program Build() const;

 private:
  friend GraphBuilder ParseInstance(std::string_view text, const std::string& file);
  friend std::string PrintInstance(const GraphBuilder& builder);

  void CheckFacts(const std::string& op, const std::vector<std::string>& reads,
                  const OpFacts& facts) const;
  void Keep(OpFacts facts);  // of the op that was added last, or of the next line

  sched::GraphBuilder graph_;
  std::vector<OpFacts> facts_;  // per op
  std::int64_t nanoseconds_ = 0;
};

// Versions 1 and 2. `file` is only for messages. Throws std::invalid_argument
// `FILE: line N: what is wrong`.
GraphBuilder ParseInstance(std::string_view text, const std::string& file = "<text>");

// In version 1 if that says all, else in version 2. ParseInstance(PrintInstance(b)) equals b.
// Throws std::invalid_argument if a buffer has no producer, or a name is a word of version 2.
std::string PrintInstance(const GraphBuilder& builder);

}  // namespace torch_ext::program
