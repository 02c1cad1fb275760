// optimize_model MODEL.pt OUT.pt SHAPE...: optimises a model for float inputs of the shapes given
// (as 1x3x224x224), saves it, and compares what was saved with the original. Then runs the original
// under the pass, as a server would that gets its models from elsewhere.
#include <torch/script.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "jit/optimize.h"
#include "jit/pass.h"

namespace {

at::Tensor RandomInput(const std::string& shape) {
  std::vector<std::int64_t> sizes;
  std::stringstream stream(shape);
  for (std::string size; std::getline(stream, size, 'x');) sizes.push_back(std::stoll(size));
  return torch::randn(sizes);
}

std::string TextOf(const torch_ext::jit::Comparison& comparison) {
  return comparison.difference.empty() ? "identical" : comparison.difference;
}

void Run(const std::string& path, const std::string& out_path, const torch_ext::jit::Stack& input) {
  const torch::jit::Module model = torch::jit::load(path);
  const torch_ext::jit::Optimized optimized = torch_ext::jit::Optimize(model, {input});
  if (!optimized.changed) std::cout << "unchanged: " << optimized.report.reason << '\n';
  optimized.module.save(out_path);

  // The order is in the file: whoever loads it has the lower peak, with torch_ext or without.
  const torch::jit::Module loaded = torch::jit::load(out_path);
  const torch_ext::jit::Comparison comparison = torch_ext::jit::Compare(model, loaded, {input});
  std::cout << "original peak bytes: " << comparison.peak_bytes_a.front() << '\n'
            << "peak bytes: " << comparison.peak_bytes_b.front() << '\n'
            << "outputs: " << TextOf(comparison) << '\n';

  // A file with edits holds the original, too: on another processor it is compared with itself.
  if (!optimized.report.levers.empty() && optimized.report.levers.back().edits > 0) {
    std::cout << "outputs of the original inside: "
              << TextOf(torch_ext::jit::CompareWithOriginal(loaded, {input})) << '\n';
  }
}

void RunUnderPass(const std::string& path, const torch_ext::jit::Stack& input) {
  const torch_ext::jit::ScopedPass pass;
  const torch::NoGradGuard no_grad;
  torch::jit::Module model = torch::jit::load(path);
  model.forward(input);  // profiles
  model.forward(input);  // compiles; from here on it runs in the new order
  const torch_ext::jit::PassStats stats = torch_ext::jit::GetPassStats();
  std::cout << "graphs reordered by the pass: " << stats.reordered << '\n'
            << "bytes saved by the pass: " << stats.saved_bytes << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: optimize_model MODEL.pt OUT.pt SHAPE...\n";
    return 2;
  }
  try {
    torch_ext::jit::Stack input;
    for (int i = 3; i < argc; ++i) input.emplace_back(RandomInput(argv[i]));
    Run(argv[1], argv[2], input);
    RunUnderPass(argv[1], input);
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
