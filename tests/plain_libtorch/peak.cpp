// peak MODEL.pt ROWS COLUMNS: prints the peak bytes and a checksum of the third forward call.
#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/script.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>

// torch's own reports of what this thread takes and gives back.
struct Meter : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t,
                         c10::Device) override {
    live_bytes += bytes;
    peak_bytes = std::max(peak_bytes, live_bytes);
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t live_bytes = 0;
  std::int64_t peak_bytes = 0;
};

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  at::set_num_threads(2);
  const torch::NoGradGuard no_grad;
  torch::jit::Module module = torch::jit::load(argv[1]);
  const at::Tensor x = torch::arange(std::atoi(argv[2]) * std::atoi(argv[3]), torch::kFloat)
                           .reshape({std::atoi(argv[2]), std::atoi(argv[3])})
                           .sin();
  for (int i = 0; i < 2; ++i) module.forward({x});
  const auto meter = std::make_shared<Meter>();
  at::Tensor result;
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
    result = module.forward({x}).toTensor();
  }
  std::cout.precision(17);
  std::cout << meter->peak_bytes << ' ' << result.to(torch::kDouble).sum().item<double>() << '\n';
}
