// What an adaptor knows of a program: plain data, without torch and without a framework's words.
//
// Adaptors (csrc/jit, torch_ext/fx) fill it. What must keep its order follows from it in one place
// (hazards.h), and it lowers to the integers of the core (lower.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "program/operators/slicing.h"
#include "sched/graph.h"

namespace torch_ext::program {

using sched::BufferId;
using sched::OpId;

// What an op does beyond its data flow.
struct Effects {
  std::string undeclared;         // why nobody knows what it writes to; empty if that is known
  bool is_stateful = false;       // changes the state that other ops run in
  bool changes_metadata = false;  // a view made before is another view than one made after
  bool draws_random_numbers = false;
  bool has_side_effect = false;  // raises, prints: keeps its place among what others show
  bool is_collective = false;    // has to meet the same op of other processes
  bool writes_outside = false;   // writes to memory that outlives the call
  bool is_apart_again = false;   // a second run would not: it leaves running statistics alone
  bool runs_once = false;        // nobody knows what a second run would take
};

// How the program names an op and where it comes from. Unknown is empty.
struct Label {
  std::string source;       // the user's line, "file:line"
  std::string module_path;  // e.g. "layer1.0.conv1"
};

using Constant = std::variant<bool, std::int64_t, double>;

// One step.
struct Op {
  std::string name;  // a token of the text format, unlike all others
  std::string oper;  // the operator, without its overload: "aten::relu"
  Label label;
  std::vector<std::string> inputs;   // values, constants left out; a view is a value of its own
  std::vector<std::string> outputs;  // values
  std::map<std::string, Constant> constants;  // arguments that are plain numbers, by name
  std::vector<OpId> makers;                   // earlier ops that made a value it reads
  std::vector<BufferId> reads, writes;        // touches what was made before, makes
  std::vector<BufferId> aliases;              // of `reads`: its values lie in them
  std::vector<BufferId> mutates;              // of `reads`: it writes to them
  std::int64_t workspace_bytes = 0;           // scratch that it takes and gives back
  std::int64_t multiplications = 0;           // that it computes (operators/work.h)
  std::int64_t nanoseconds = 0;               // that a run takes, as measured or given
  Effects effects;
  // For each dimension of its only result: how parts of it are made, if they can be. Needs are by
  // value, constants among them.
  std::vector<std::optional<Slicing>> slicings;
};

// One storage.
struct Buffer {
  std::string name;  // a token of the text format, unlike all others
  std::int64_t bytes = 0;
  bool is_input = false;            // alive from the start
  bool kept = false;                // a result
  std::vector<std::int64_t> shape;  // of a tensor in it
  std::string dtype;                // as torch writes it: "float32"; empty if unknown
};

// A value that is one tensor, or a list of tensors that are alike where it matters.
struct Tensor {
  std::vector<std::int64_t> shape;
  std::string dtype = {};
  BufferId buffer = -1;       // none: older than the program, or several
  bool fills_buffer = false;  // without gaps
  bool is_list = false;
  std::vector<std::int64_t> strides = {};  // in elements; none: those of a new tensor
};

// Two ops that may touch the same memory, of which one writes to it.
struct Conflict {
  OpId earlier = sched::kNoOp;
  OpId later = sched::kNoOp;
  bool by_statistics = false;  // what is written are running statistics; no schema says so
  bool is_inside = false;      // in buffers of the program, which a second run makes anew
  bool is_left_alone = false;  // a second run of the earlier op would not touch that memory
};

// An op writes a result over an argument that dies with it.
struct Overwrite {
  OpId op = sched::kNoOp;
  BufferId result = -1;    // that the op makes
  BufferId argument = -1;  // that it reads
  // Beside those that read the argument: ops that may touch its memory in another run.
  std::vector<OpId> others = {};
};

// An argument that an op copies into memory of its own before it reads it; the copy may as well be
// made by an op of its own. None that the op may overwrite.
struct Copy {
  OpId op = sched::kNoOp;
  std::string value;            // the argument, among the op's inputs
  std::vector<OpId> makers;     // of that value
  std::vector<BufferId> reads;  // the argument's storage; none if it is older than the program
  bool is_read_beside = false;  // does the op read that storage by another input, too?
  std::int64_t bytes = 0;       // of the copy, among the op's workspace
  std::string dtype;
};

// Ops in their original order.
struct Program {
  std::vector<Op> ops;
  std::vector<Buffer> buffers;
  std::vector<Conflict> conflicts;
  // What the operators allow (operators/overwriting.h), so far as it concerns one op alone: there
  // is a form of it that keeps the bits, and the storages look alike. Whether the argument dies
  // with the op is not in it.
  std::vector<Overwrite> overwritable;
  std::vector<Copy> copyable;
  // Of slices (levers/slice.h): what is known of values, and those that leave the program.
  std::map<std::string, Tensor> tensors;
  std::vector<std::string> results;
  // Where an op minds runs, parts are multiples of that: for all shares of so many threads.
  std::int64_t run_elements = 32;
  int threads = 1;
  // An op may run placed (levers/slice.h) if none of its parts is of more numbers than that.
  std::int64_t most_placed = std::int64_t{1} << 14;
};

}  // namespace torch_ext::program
