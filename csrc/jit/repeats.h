// Ops of a TorchScript block that run again (program/levers/repeat.h): what has to be known of the
// nodes for that, and the edit.
//
// DISGUISE. Torch takes nodes with equal inputs for one (EliminateCommonSubexpression, in
// PrepareGraph and in the executor). So where a run reads what an earlier run of the same node has
// read, it reads one input through `aten::alias`, another view of the same tensor, which no pass
// takes for the tensor: through one for the second such run, through two for the third. An input
// that is a list gets a list of its own, with such a view in it. That input is one of the call:
// views of constants are constants to torch. Nodes that read none run once.
//
// ALIASES. What a node writes to and returns views of is seen in one run. Ops whose memory is
// written to in place may run again only if it is so in every run: their values are new, views, or
// results of writing in place, by their operators. What may be a view or a copy (`reshape`) counts
// as neither, and nothing that may share its memory runs again.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "jit/interference.h"
#include "jit/probe.h"
#include "program/levers/repeat.h"
#include "program/program.h"

namespace torch_ext::jit {

// Fills what levers/repeat.h asks of a program, but for the times. It is of `nodes`, OpNodes of the
// graph's block, as the probe saw them.
void AddRepeating(program::Program& program, const std::shared_ptr<torch::jit::Graph>& graph,
                  const std::vector<torch::jit::Node*>& nodes, const Probe& probe);

// The same program, so far as a lower bound may count on it, whatever copies are hoisted: of nodes
// that are `certain` (CertainNodes). Less `released_bytes` of the probe, which it does not know.
program::Program Certain(program::Program program, const std::vector<torch::jit::Node*>& nodes,
                         const std::vector<char>& certain, Probe probe,
                         const Interference& interference);

// Puts the nodes of the block in the sequence of the runs, with copies of those that run again, and
// marks each with its place (TakeMarks). A node reads what the latest run of another has made.
// `nodes` are OpNodes of the block, and no more afterwards.
void ApplyRuns(torch::jit::Block* block, const std::vector<torch::jit::Node*>& nodes,
               const program::Runs& runs);

// Gives the ops and buffers of a program with runs the names that they have in `runs`
// (program::WithRepeats). Its nodes are those that the marks were taken from.
void NameRuns(program::Program& program, const std::vector<std::int64_t>& marks,
              const program::Program& runs);

}  // namespace torch_ext::jit
