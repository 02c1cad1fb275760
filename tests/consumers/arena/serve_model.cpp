// serve_model MODEL.pt SHAPE THREADS: calls a model, whose file has planned addresses, in several
// threads, for float inputs of the shape given (as 1x3x224x224), and tells how the calls went.
#include <torch/script.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "memory/arena.h"
#include "memory/signature.h"

namespace memory = torch_ext::memory;

namespace {

at::Tensor Input(const std::string& shape) {
  std::vector<std::int64_t> sizes;
  std::stringstream stream(shape);
  for (std::string size; std::getline(stream, size, 'x');) sizes.push_back(std::stoll(size));
  return torch::ones(sizes);
}

int Serve(const std::string& path, const std::string& shape, int num_threads) {
  torch::jit::ExtraFilesMap extra{{"torch_ext.arena", ""}};
  torch::jit::Module module = torch::jit::load(path, torch::kCPU, extra);
  const memory::ArenaPool pool = memory::ArenaPool::FromText(extra["torch_ext.arena"]);

  const std::vector<c10::IValue> inputs = {Input(shape)};
  const torch::NoGradGuard no_grad;
  const at::Tensor expected = module.forward(inputs).toTensor();
  std::atomic<int> num_different{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&] {
      const torch::NoGradGuard no_grad_here;
      for (int call = 0; call < 10; ++call) {
        const memory::ArenaGuard guard(pool, memory::SignatureOf(inputs));
        if (!module.forward(inputs).toTensor().equal(expected)) ++num_different;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const memory::ArenaStatistics statistics = pool.statistics();
  for (const auto& [deviation, name] : memory::kDeviationNames) {
    const std::int64_t calls = statistics.calls.at(static_cast<std::size_t>(deviation));
    if (calls > 0) std::cout << name << ": " << calls << '\n';
  }
  std::cout << "arena bytes: " << pool.height_bytes() << '\n'
            << "different outputs: " << num_different << '\n';
  return num_different == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: serve_model MODEL.pt SHAPE THREADS\n";
    return 2;
  }
  try {
    return Serve(argv[1], argv[2], std::stoi(argv[3]));
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
