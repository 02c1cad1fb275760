// Trains the module of a file that `step.save` of torch_ext.training_step wrote, with LibTorch
// alone:
//   train_model STEP.pt BATCH.pt STEPS LR TRAINED.pt
// BATCH.pt holds a tuple of tensors. The first half of the steps uses the file's learning rate, the
// rest LR. Prints the loss of each step in hexadecimal, which loses no bit.
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s STEP.pt BATCH.pt STEPS LR TRAINED.pt\n", argv[0]);
    return 2;
  }
  try {
    // The bits of the eager loop; the executor's optimisations may round differently, which
    // training magnifies.
    torch::jit::GraphOptimizerEnabledGuard without_optimisations(false);
    torch::jit::Module step = torch::jit::load(argv[1]);
    std::ifstream file(argv[2], std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const auto batch = torch::jit::pickle_load(bytes).toTuple();
    const int steps = std::atoi(argv[3]);
    for (int i = 0; i < steps; ++i) {
      if (i == steps / 2) step.run_method("set_lr", std::atof(argv[4]), 0);
      const at::Tensor loss = step.forward(batch->elements()).toTensor();
      std::printf("%a\n", loss.item<double>());
    }
    step.save(argv[5]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
