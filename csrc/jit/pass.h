// The registered pass: while enabled, every graph that torch's profiling executor optimises is
// ordered before it is compiled. No inputs, no verification by running; what may move is decided by
// the rules in program/hazards.h, and any doubt leaves a block as it is.
//
// USAGE   torch_ext::jit::ScopedPass pass;   // or EnablePass(), DisablePass()
//         module.forward(inputs);            // profiles
//         module.forward(inputs);            // compiles, and runs in the new order from here on
//
// Thread-safe: modules may run in other threads while the pass is enabled and disabled. Only the
// first use of the process writes to torch's list of passes, which has no lock: let it happen
// before other threads compile. The pass stays in that list and does nothing while disabled.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

namespace torch_ext::jit {

struct PassOptions {
  bool observe = false;              // move nothing, only count and log what would be gained
  double time_budget_seconds = 0.2;  // of planning, per graph
  double learning_seconds = 1.0;     // of running ops to learn their scratch memory, per graph
};

// Since the process began.
struct PassStats {
  std::int64_t graphs_seen = 0;
  std::int64_t reordered = 0;                      // in observe mode: would have been
  std::int64_t proven = 0;                         // the order is optimal by the sizes known
  std::map<std::string, std::int64_t> left_alone;  // why -> graphs
  std::int64_t saved_bytes = 0;                    // of peaks, by estimate
  std::int64_t guessed_sizes = 0;  // tensors of a type that does not tell their size
  std::int64_t ops_not_run = 0;    // whose scratch memory is not known
  double seconds = 0;
};

void EnablePass(const PassOptions& options = {});
void DisablePass();
bool IsPassEnabled();
PassStats GetPassStats();

// Enables the pass, and puts back at the end what was before.
class ScopedPass {
 public:
  explicit ScopedPass(const PassOptions& options = {});
  ~ScopedPass();
  ScopedPass(const ScopedPass&) = delete;
  ScopedPass& operator=(const ScopedPass&) = delete;

 private:
  std::optional<PassOptions> before_;
};

// Called with each decision (`is_detail`: what only a debugger wants); no lock is held then. Beside
// it decisions go to the JIT's own log: PYTORCH_JIT_LOG_LEVEL=">pass", or ">>pass" for details.
using PassLogger = std::function<void(bool is_detail, const std::string& message)>;
void SetPassLogger(PassLogger logger);

// What EnablePass and Optimize obey: TORCH_EXT_DISABLE=1 in the environment turns both into no-ops;
// Optimize still measures.
bool IsDisabledByEnvironment();

}  // namespace torch_ext::jit
