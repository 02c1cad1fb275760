// Numbers that follow from the sizes of the inputs, as constants.
//
// Traces compute sizes from sizes: `x.view(x.size(0) // 7, ...)`. Such numbers could be others in
// another call, so what is called with them is not cut into parts (program/sliceable.h). In a graph
// that asks for the sizes of its inputs (fallback.h) they are the same in every call, and may as
// well be constants.
//
// A number is fixed if it is computed, by operators that do nothing else, from sizes of tensors
// whose sizes follow from those of the inputs: of operators in the table of slices
// (program/operators/slicing.h), and of those that make tensors of given sizes.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "jit/fallback.h"
#include "jit/values.h"

namespace torch_ext::jit {

struct FixedNumbers {
  InputSizes sizes;                                            // for which they hold
  std::vector<std::pair<std::size_t, c10::IValue>> constants;  // by the place of the node

  bool empty() const { return constants.empty(); }
};

// Runs the graph once. Its inputs other than tensors and modules are taken for numbers that may
// change.
FixedNumbers FindFixedNumbers(const std::shared_ptr<torch::jit::Graph>& graph, Stack inputs);

// `graph` is equal to the one in which they were found.
void FixNumbers(const std::shared_ptr<torch::jit::Graph>& graph, const FixedNumbers& numbers);

}  // namespace torch_ext::jit
