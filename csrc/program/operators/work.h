// What an operator computes, where that takes longer than writing its result.
#pragma once

#include <cstdint>

#include "program/operators/slicing.h"

namespace torch_ext::program {

// Multiplications of numbers of the call, of convolutions, products of matrices and attention; of
// others none are counted. A count, not a time: so plans do not depend on a clock.
std::int64_t Multiplications(const Call& call);

}  // namespace torch_ext::program
