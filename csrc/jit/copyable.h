// What matmul copies before it multiplies, and how the copy becomes a node of its own.
//
// With a batch in two dimensions, torch's matmul sees each argument as one batch: as a view where
// the matrices lie at equal distances in memory, else as a copy. So heads of attention are copied
// in batches of more than one. A copy that is made before gives it the very same matrices.
//
// Whether there is a copy is asked again in every call, and where there is none, the argument is
// passed on as it is. With another number of dimensions (a matrix, say) matmul does something else,
// which may depend on how an argument lies in memory: then what was copied is put back as it lay.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstddef>
#include <vector>

#include "jit/overwrite_rules.h"
#include "jit/probe.h"
#include "program/program.h"

namespace torch_ext::jit {

struct CopyForm {
  torch::jit::Node* node;
  std::size_t input;  // that it copies
};

// The i-th copy of each probe and `forms[i]` are the same. Where a probe saw none, it has no bytes.
struct Copyable {
  std::vector<CopyForm> forms;
  std::vector<std::vector<program::Copy>> copies;  // of each probe
};

// `nodes` are OpNodes of a block.
Copyable FindCopyable(const std::vector<torch::jit::Node*>& nodes,
                      const std::vector<Probe>& probes);

// Copies as nodes of their own, in front of those that made them.
class HoistedCopies {
 public:
  // `hoists` are places in `forms`, which outlive this.
  HoistedCopies(const std::vector<CopyForm>& forms, const std::vector<std::size_t>& hoists);

  // For each of `forms` the node that copies; null for those that are not hoisted. Move it at will,
  // between the maker of its input and its reader.
  const std::vector<torch::jit::Node*>& nodes() const { return nodes_; }

  // Adds what has to be asked in every call.
  void Finish(const OverwriteRules& rules = {});

 private:
  const std::vector<CopyForm>& forms_;
  std::vector<torch::jit::Node*> nodes_;
};

}  // namespace torch_ext::jit
