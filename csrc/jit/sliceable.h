// Which nodes of a TorchScript block can run in parts, by the table of operators.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <vector>

#include "jit/probe.h"
#include "program/program.h"

namespace torch_ext::jit {

// Fills what levers/slice.h asks of a program: tensors, results, and how ops are made in parts.
// `program` is of `nodes`, OpNodes of a graph's block, as the probe saw them.
void AddSlicings(program::Program& program, const std::vector<torch::jit::Node*>& nodes,
                 const Probe& probe);

}  // namespace torch_ext::jit
