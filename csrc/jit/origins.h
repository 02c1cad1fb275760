// Where the memory of a value may come from, in any run: what an op may write over depends on it.
//
// An origin is a result of one op that may be new memory. A value may hold memory of its own
// origin, and of those of whatever it may be a view of, or contain: told op by op, by schemas, by
// torch's AliasDb where they name a view, and by HidesAliases where they tell too little. So a
// `contiguous` that copies in one run and returns its input in another has both origins. An If
// holds what it reads, unless either block returns new memory, each output its own. Two values may
// share memory only if they have an origin in common (origins_test.cpp compares with AliasDb's
// answer for all pairs).
#pragma once

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/ir.h>

#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "program/program.h"

namespace torch_ext::jit {

class Origins {
 public:
  // `nodes` are OpNodes of one block; `effects` are of each node.
  Origins(const torch::jit::AliasDb& alias_db, const std::vector<torch::jit::Node*>& nodes,
          const std::vector<program::Effects>& effects);

  // Is all that the value may hold memory of this call alone: none from outside the block, of
  // constants or of results, or where nobody knows who else holds it?
  bool IsOurs(const torch::jit::Value* value) const;

  // Does the value, whatever it is a view of, cover all of that memory?
  bool IsWhole(const torch::jit::Value* value) const;

  // Is it new memory in every run, and no view of what an op made?
  bool IsNew(const torch::jit::Value* value) const { return new_.contains(value); }

  bool MayShare(const torch::jit::Value* a, const torch::jit::Value* b) const;

  // The ops that may touch memory of the value, in their order.
  std::vector<program::OpId> Touchers(const torch::jit::Value* value) const;

 private:
  using Ids = std::vector<std::size_t>;  // sorted

  void AddNode(const torch::jit::AliasDb& alias_db, program::OpId op, torch::jit::Node* node,
               const program::Effects& effects);
  const Ids& Of(const torch::jit::Value* value) const;
  Ids All(const std::vector<torch::jit::Value*>& values) const;

  Ids outside_{0};  // of values that are not made by the nodes
  std::unordered_map<const torch::jit::Value*, Ids> ids_;
  std::unordered_map<const torch::jit::Value*, bool> is_whole_;
  std::unordered_set<const torch::jit::Value*> new_;
  std::vector<char> is_ours_{0};                          // by id
  std::vector<std::vector<program::OpId>> touchers_{{}};  // by id
};

}  // namespace torch_ext::jit
