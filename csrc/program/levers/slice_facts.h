// What is known of ops in parts (slice.h): what an adaptor found out by running them, and what
// follows from it.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::program {

// The bytes of so many of all lines, rounded down.
std::int64_t Scaled(std::int64_t bytes, std::int64_t length, std::int64_t size);

// Ops that are called alike share facts: of the same operator, with the same shapes, numbers and
// scratch memory.
class SliceFacts {
 public:
  struct Part {
    OpId op = sched::kNoOp;
    int dimension = 0;         // of its result
    std::int64_t length = 0;   // at most
    bool reads_older = false;  // some interval that it reads is a view of an older tensor
    bool is_placed = false;

    auto operator<=>(const Part&) const = default;
  };
  struct Fact {
    bool keeps_bits = true;
    std::int64_t workspace_bytes = 0;
  };

  explicit SliceFacts(const Program& program);

  void Learn(const Part& part, Fact fact);
  bool Knows(const Part& part) const;
  // That of the first op that is called alike: what is learned of one is known of the other.
  Part Twin(Part part) const;

  // May a stretch be chosen of which not all is known? One that keeps no rows, and one that does.
  enum class Asking { kOfAll, kOfKeptRows, kOfNone };
  void SetAsking(Asking asking) { asking_ = asking; }
  bool may_ask() const { return asking_ == Asking::kOfAll; }
  bool may_ask_of_kept_rows() const { return asking_ != Asking::kOfNone; }

  // False if it is known that the bits are others, whatever the part reads.
  bool MayKeepBits(Part part) const;
  // One op of each kind of call that was learned to have other bits in some parts.
  std::vector<OpId> OpsOfOtherBits() const;
  // All that is known of the op in parts.
  std::vector<Fact> Known(OpId op) const;
  // Known; or between what is known and the whole, in a straight line; else in proportion. Placed,
  // what the whole takes and the values in which parts are placed.
  std::int64_t WorkspaceBytes(const Program& program, const Part& part) const;

 private:
  using ByLength = std::map<std::int64_t, Fact>;
  const ByLength* Find(const Part& part) const;

  std::vector<OpId> twin_of_;       // of each op the first that is called alike
  std::map<Part, ByLength> facts_;  // by parts without a length
  Asking asking_ = Asking::kOfAll;
};

}  // namespace torch_ext::program
