// The edits that levers make of a program, beside the order of its ops.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::program {

struct Edits {
  std::vector<std::size_t> hoists;      // places in `copyable` (levers/hoist.h)
  std::vector<std::size_t> overwrites;  // places in `overwritable` (levers/overwrite.h)

  bool empty() const { return hoists.empty() && overwrites.empty(); }
};

// A program with some edits done, ops in an order that they allow, as near to the original as that
// is.
struct Edited {
  Program program;                            // with those overwritable that are left
  std::vector<OpId> old_ops;                  // of each op: what it was, see OldOpOfCopy
  std::vector<BufferId> new_buffers;          // of each old buffer: the one that it is in
  std::vector<std::size_t> old_overwritable;  // of each that is left: its old place

  sched::Order ToOldOps(sched::Order order) const;
  sched::Order ToNewOps(sched::Order order) const;  // leaves out ops that are not there
};

// Copies that are hoisted count as ops behind all others of the old program.
OpId OldOpOfCopy(const Program& old, std::size_t copy);

// Nothing if no order has all these edits.
std::optional<Edited> WithEdits(const Program& program, const Edits& edits);

}  // namespace torch_ext::program
