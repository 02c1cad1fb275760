// What the nodes of a block do beyond their data flow, and which of them may meet in memory: what
// the rules of program/hazards.h need to know of a TorchScript program.
//
// Which memory is shared is told by torch's AliasDb: through views, list elements and inner blocks;
// and by HidesAliases of ops that return what they were given although their schemas do not tell.
#pragma once

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/ir.h>

#include <memory>
#include <string>
#include <vector>

#include "jit/probe.h"
#include "program/program.h"

namespace torch_ext::jit {

struct Interference {
  std::vector<program::Effects> effects;  // of each node, with what its inner blocks do
  std::vector<program::Conflict> conflicts;
  bool writes_outside = false;  // may write to inputs, parameters, buffers or attributes
  std::string refusal;          // not empty: nothing can be said about this graph, and why
};

// `nodes` are OpNodes of one block; `alias_db` is of the whole graph; `probes` (one for each
// example) add what was seen.
Interference FindInterference(const torch::jit::AliasDb& alias_db,
                              const std::vector<torch::jit::Node*>& nodes,
                              const std::vector<Probe>& probes);

// `nodes` are OpNodes of the graph's block.
Interference FindInterference(const std::shared_ptr<torch::jit::Graph>& graph,
                              const std::vector<torch::jit::Node*>& nodes,
                              const std::vector<Probe>& probes);

}  // namespace torch_ext::jit
