// For tests only: a module in an order drawn at random from all that data flow and hazards allow.
// Planned orders move few ops; what is wrong with a rule shows under many orders sooner.
#pragma once

#include <torch/csrc/jit/api/module.h>

#include <cstdint>

#include "jit/overwrite_rules.h"
#include "jit/values.h"
#include "program/hazards.h"

namespace torch_ext::jit {

// The same seed and module give the same order. Throws c10::Error if torch's alias analysis refuses
// the graph, as Optimize would.
torch::jit::Module Shuffle(const torch::jit::Module& module, std::uint64_t seed,
                           const program::HazardRules& rules = {});

// The same with some copies hoisted and as many overwrites as can be done together, taken at
// random; probed on copies of the example. Throws whatever the module throws.
torch::jit::Module ShuffleOverwriting(const torch::jit::Module& module, const Stack& example,
                                      std::uint64_t seed, const OverwriteRules& rules = {});

// The same with stretches at random that run in parts, of those that keep their bits in a run on
// copies of the example. Throws whatever the module throws.
torch::jit::Module ShuffleSlicing(const torch::jit::Module& module, const Stack& example,
                                  std::uint64_t seed);

// The same with nodes at random that run again, some several times; probed on copies of the
// example. Throws whatever the module throws.
torch::jit::Module ShuffleRepeating(const torch::jit::Module& module, const Stack& example,
                                    std::uint64_t seed);

}  // namespace torch_ext::jit
