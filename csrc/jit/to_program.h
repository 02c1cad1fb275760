// From a TorchScript block to a program.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <vector>

#include "jit/interference.h"
#include "jit/probe.h"
#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::jit {

// Op i is nodes[i], without a label; buffers are the probe's allocations, with names made unique.
// Makers are those of all values, whatever their type. Without interference (a default one) nothing
// but the data flow is known.
program::Program ToProgram(const std::vector<torch::jit::Node*>& nodes, const Probe& probe,
                           const Interference& interference);

// Labels the ops; the nodes' graph is one of the module's.
void Label(program::Program& program, const std::vector<torch::jit::Node*>& nodes,
           const torch::jit::Module& module);

// Leaves of the probe what a lower bound may count on; returns whether that is less. Nodes that are
// not `certain` (CertainNodes) hold, take and make nothing; what a node releases before it takes
// the most it does not hold at that moment.
bool KeepCertain(const std::vector<char>& certain, Probe& probe);

}  // namespace torch_ext::jit
