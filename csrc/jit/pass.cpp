#include "jit/pass.h"

#include <torch/csrc/jit/jit_log.h>
#include <torch/csrc/jit/passes/pass_manager.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "jit/apply.h"
#include "jit/estimate.h"
#include "jit/interference.h"
#include "jit/nodes.h"
#include "jit/op_costs.h"
#include "jit/to_program.h"
#include "memory/environment.h"
#include "program/amount.h"
#include "program/hazards.h"
#include "program/lower.h"
#include "sched/plan.h"
#include "sched/simulate.h"
#include "sched/way_back.h"

namespace torch_ext::jit {
namespace {

using torch::jit::AliasDb;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using Clock = std::chrono::steady_clock;

// What all threads share. The lock is held for copies only: never while planning, running an op,
// or logging.
struct Shared {
  std::mutex mutex;
  std::optional<PassOptions> options;  // none: disabled
  PassStats stats;
  PassLogger logger;
  OpCosts costs;
  std::once_flag registered;
};

Shared& TheShared() {
  static Shared* shared = new Shared;  // never destroyed: threads may outlive statics
  return *shared;
}

void Log(bool is_detail, const std::string& message) {
  if (is_detail) {
    GRAPH_DEBUG(message);
  } else {
    GRAPH_UPDATE(message);
  }
  PassLogger logger;
  {
    const std::scoped_lock lock(TheShared().mutex);
    logger = TheShared().logger;
  }
  if (logger) logger(is_detail, message);
}

bool IsInside(const Block* inner, const Block* outer) {
  while (inner != nullptr && inner != outer) {
    inner = inner->owningNode() == nullptr ? nullptr : inner->owningNode()->owningBlock();
  }
  return inner == outer;
}

std::int64_t CountBlocks(Block* block) {
  std::int64_t count = 1;
  for (Node* node : block->nodes()) {
    for (Block* inner : node->blocks()) count += CountBlocks(inner);
  }
  return count;
}

// One graph on its way through the pass.
class Run {
 public:
  Run(const std::shared_ptr<Graph>& graph, const PassOptions& options)
      : graph_(graph), options_(options), alias_db_(graph) {
    planning_.time_budget_seconds = options.time_budget_seconds / 2;
    inner_planning_.time_budget_seconds =
        planning_.time_budget_seconds / static_cast<double>(CountBlocks(graph->block()));
  }

  void Plan() {
    const auto learning = std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(options_.learning_seconds));
    Estimator estimator(TheShared().costs, Clock::now() + learning,
                        [this](Block* block, const BlockEstimate& estimate) {
                          return PlanBlock(block, estimate, inner_planning_);
                        });
    peaks_ = PlanBlock(graph_->block(), estimator.Estimate(*graph_), planning_);
    guessed_sizes_ = estimator.num_guessed();
    ops_not_run_ = estimator.num_not_run();
  }

  // All moves or none.
  void Apply() {
    std::size_t done = 0;
    try {
      for (; done < moves_.size(); ++done) {
        ApplyOrder(moves_[done].block, moves_[done].nodes, moves_[done].order);
      }
    } catch (...) {
      for (std::size_t i = 0; i <= done; ++i) {
        sched::Order original(moves_[i].nodes.size());
        std::iota(original.begin(), original.end(), 0);
        ApplyOrder(moves_[i].block, moves_[i].nodes, original);
      }
      throw;
    }
  }

  const BlockPeaks& peaks() const { return peaks_; }
  bool is_optimal() const { return is_optimal_; }
  const std::string& refusal() const { return refusal_; }
  // What a debugger wants to know.
  std::string Details() const {
    std::string details;
    for (const Move& move : moves_) {
      details += std::to_string(sched::MovedOps(move.order)) + " of " +
                 std::to_string(move.nodes.size()) + " ops of a block moved; ";
    }
    details += std::to_string(guessed_sizes_) + " sizes guessed, " + std::to_string(ops_not_run_) +
               " ops known by their types only";
    for (const std::string& barrier : barriers_) details += "; not passed: " + barrier;
    return details;
  }
  std::int64_t guessed_sizes() const { return guessed_sizes_; }
  std::int64_t ops_not_run() const { return ops_not_run_; }

 private:
  struct Move {
    Block* block;
    std::vector<Node*> nodes;
    sched::Order order;
  };

  // Blocks inside are planned already; their moves stay only if this block needs them.
  BlockPeaks PlanBlock(Block* block, const BlockEstimate& estimate,
                       const sched::PlanOptions& planning) {
    const std::vector<Node*> nodes = OpNodes(block);
    const Interference interference = FindInterference(alias_db_, nodes, {});
    refusal_ = interference.refusal;
    program::Program program = ToProgram(nodes, estimate.probe, interference);
    for (const program::Op& op : program.ops) {
      if (const std::string why = program::WhyBarrier(op); !why.empty()) barriers_.push_back(why);
    }
    const sched::Graph graph = program::Lower(program);
    const auto is_inside = [&](const Move& move) { return IsInside(move.block, block); };
    std::optional<sched::Graph> unmoved;  // with the blocks inside in their original order
    if (std::ranges::any_of(moves_, is_inside)) {
      for (std::size_t i = 0; i < nodes.size(); ++i) {
        program.ops[i].workspace_bytes +=
            estimate.original_hill_bytes[i] - estimate.probe.nodes[i].hill_bytes;
      }
      unmoved = program::Lower(program);
    }
    const std::int64_t original_bytes =
        sched::PeakBytes(unmoved ? *unmoved : graph, graph.OriginalOrder());
    if (!refusal_.empty()) {
      std::erase_if(moves_, is_inside);
      is_optimal_ = false;
      return {original_bytes, original_bytes};
    }
    const sched::Plan plan = sched::MakePlan(graph, planning);
    if (unmoved && sched::PeakBytes(*unmoved, plan.order) <= plan.peak_bytes) {
      std::erase_if(moves_, is_inside);
    }
    if (plan.peak_bytes < plan.original_peak_bytes) moves_.push_back({block, nodes, plan.order});
    is_optimal_ = plan.is_optimal();
    return {original_bytes, plan.peak_bytes};
  }

  const std::shared_ptr<Graph>& graph_;
  const PassOptions& options_;
  const AliasDb alias_db_;
  sched::PlanOptions planning_, inner_planning_;
  std::vector<Move> moves_;
  BlockPeaks peaks_;  // of the graph
  bool is_optimal_ = false;
  std::string refusal_;
  std::vector<std::string> barriers_;
  std::int64_t guessed_sizes_ = 0;
  std::int64_t ops_not_run_ = 0;
};

std::string WhyLeftAlone(const Run& run) {
  if (!run.refusal().empty()) return run.refusal();
  // torch profiles what it may want to fuse, and nothing else.
  if (run.guessed_sizes() > 0)
    return "no gain shows, but types do not tell the size of all tensors";
  if (run.peaks().original_bytes == 0) return "no op takes memory";
  if (run.is_optimal()) return "the original order is optimal";
  return "no better order was found within the budget";
}

void OrderGraph(std::shared_ptr<Graph>& graph) {
  Shared& shared = TheShared();
  std::optional<PassOptions> options;
  {
    const std::scoped_lock lock(shared.mutex);
    options = shared.options;
  }
  if (!options) return;
  const Clock::time_point started = Clock::now();
  PassStats seen;
  seen.graphs_seen = 1;
  std::string message, details;
  try {
    Run run(graph, *options);
    run.Plan();
    seen.guessed_sizes = run.guessed_sizes();
    seen.ops_not_run = run.ops_not_run();
    const BlockPeaks& peaks = run.peaks();
    message = program::Amount(peaks.original_bytes);
    if (peaks.planned_bytes < peaks.original_bytes) {
      if (!options->observe) run.Apply();
      seen.reordered = 1;
      seen.saved_bytes = peaks.original_bytes - peaks.planned_bytes;
      message += (options->observe ? " could be " : " -> ") + program::Amount(peaks.planned_bytes);
      if (run.is_optimal() && seen.guessed_sizes == 0) message += " (optimal)";
    } else {
      const std::string why = WhyLeftAlone(run);
      seen.left_alone[why] = 1;
      message += ", left alone: " + why;
    }
    details = run.Details();
    seen.proven = run.is_optimal() && seen.guessed_sizes == 0;
  } catch (const std::exception& error) {
    // A user's program must run whatever becomes of our plan.
    const std::string why = std::string("an error: ") + error.what();
    seen.left_alone[why.substr(0, why.find('\n'))] = 1;
    message = "left alone: " + why;
  }
  seen.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  {
    const std::scoped_lock lock(shared.mutex);
    PassStats& all = shared.stats;
    all.graphs_seen += seen.graphs_seen;
    all.reordered += seen.reordered;
    all.proven += seen.proven;
    for (const auto& [why, count] : seen.left_alone) all.left_alone[why] += count;
    all.saved_bytes += seen.saved_bytes;
    all.guessed_sizes += seen.guessed_sizes;
    all.ops_not_run += seen.ops_not_run;
    all.seconds += seen.seconds;
  }
  Log(/*is_detail=*/false,
      "a graph of " + std::to_string(OpNodes(graph->block()).size()) + " ops: " + message);
  if (!details.empty()) Log(/*is_detail=*/true, details);
}

// Returns what was before.
std::optional<PassOptions> SetOptions(std::optional<PassOptions> options) {
  Shared& shared = TheShared();
  if (options && IsDisabledByEnvironment()) options.reset();
  if (options) {
    std::call_once(shared.registered, [] { torch::jit::registerPostPass(OrderGraph); });
  }
  const std::scoped_lock lock(shared.mutex);
  return std::exchange(shared.options, std::move(options));
}

}  // namespace

void EnablePass(const PassOptions& options) {
  SetOptions(options);
}

void DisablePass() {
  SetOptions(std::nullopt);
}

bool IsPassEnabled() {
  const std::scoped_lock lock(TheShared().mutex);
  return TheShared().options.has_value();
}

PassStats GetPassStats() {
  const std::scoped_lock lock(TheShared().mutex);
  return TheShared().stats;
}

ScopedPass::ScopedPass(const PassOptions& options) : before_(SetOptions(options)) {}

ScopedPass::~ScopedPass() {
  SetOptions(before_);
}

void SetPassLogger(PassLogger logger) {
  const std::scoped_lock lock(TheShared().mutex);
  TheShared().logger = std::move(logger);
}

bool IsDisabledByEnvironment() {
  return memory::IsDisabledByEnvironment();
}

}  // namespace torch_ext::jit
