// Runs of a module on copies of its inputs and state, so that nothing of the caller's is changed.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/jit/api/module.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "jit/values.h"

namespace torch_ext::jit {

// While alive: no grad, the default generator's state is put back at the end, and what the program
// prints is collected instead of printed.
class QuietRun {
 public:
  QuietRun();
  ~QuietRun();
  QuietRun(const QuietRun&) = delete;
  QuietRun& operator=(const QuietRun&) = delete;

  void RewindRandomState() const;  // to what it was at the start
  static std::string TakePrinted();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A copy of a module with methods of its own and the same parameters, buffers and attributes. The
// methods, and the executor's plans with them, are gone when it is, unless kept: torch itself keeps
// both as long as the compilation unit lives, which for Python's modules is for ever.
class ScratchModule {
 public:
  explicit ScratchModule(const torch::jit::Module& original);
  ~ScratchModule();
  ScratchModule(const ScratchModule&) = delete;
  ScratchModule& operator=(const ScratchModule&) = delete;

  torch::jit::Module& module() { return module_; }
  torch::jit::Module Keep();

  // From here on forward writes to constants of its own, if it writes to constants.
  void CopyConstants();

 private:
  torch::jit::Module module_;
  bool kept_ = false;
};

// With tensors of its own, of whatever kind: torch itself cannot copy all of them.
torch::jit::Module DeepCopy(const torch::jit::Module& module);

// One call and everything it left behind.
struct Call {
  c10::IValue state;  // the module object it ran on
  Stack inputs;
  c10::IValue output;
  at::Tensor random_state;
  std::string printed;
};

// The module run three times from the same state: the executor profiles in the first call,
// optimises in the second, and is settled in the third, in which memory is measured.
struct Execution {
  Call first;
  Call last;
  std::int64_t peak_bytes = 0;  // measured in the last call, above its start, results included
};

// What a call is made with: the module, or a deep copy, and copies of the arguments.
Stack CopiedInputs(const torch::jit::Module& module, const Stack& example, bool copy_state);

// Random numbers, of a stream of their own, in the tensors of floats among the arguments.
void FillAtRandom(Stack& arguments);

// Throws whatever the module throws. `copy_state`: the program may write to its parameters or
// attributes, so each call gets a deep copy of the module.
Execution Execute(const torch::jit::Module& module, const Stack& example, bool copy_state,
                  const QuietRun& quiet);

// Empty if equal, else the first difference.
std::string FindDifference(const Execution& a, const Execution& b);

// Seconds of a call of each, the median over calls in turns.
struct PairedSeconds {
  double a = 0, b = 0;
};
PairedSeconds TimeInTurns(const torch::jit::Module& a, const torch::jit::Module& b,
                          const Stack& example, bool copy_state, const QuietRun& quiet);

}  // namespace torch_ext::jit
