// The edit *hoist*: an op that copies an argument before it reads it (matmul, where the batches of
// the argument do not lie at equal distances) finds the copy made by an op of its own. That op runs
// when it pleases, and what was copied may die before the op runs, which takes less scratch memory.
//
// THEOREM. Hoisting never costs. In any order, put each copy right before its op: none of its hills
// is above the op's.
//   The op held its arguments and all its copies at once, for its scratch memory is measured with
//   them. At each copy there are the arguments and some of the copies, at the op the copies, and
//   the arguments that live on: never more.
// So all copies are hoisted before planning, and a bound of that program is a bound over all orders
// and all choices of hoists. Those are undone afterwards without which the peak is the same.
//
// Attack: hoist_test.cpp, against all orders and all choices.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "program/edits.h"
#include "program/program.h"

namespace torch_ext::program {

// Of the op that makes a copy, and of the buffer it makes: "matmul.3/copy0".
std::string NameOfCopy(const Program& program, std::size_t copy);

// `hoists` are places in `copyable`. Copies come right before their op; what is overwritable stays
// in its places, and nothing is copyable any more. O(program + hoists * copyable).
Edited WithHoists(const Program& program, std::span<const std::size_t> hoists);

}  // namespace torch_ext::program
