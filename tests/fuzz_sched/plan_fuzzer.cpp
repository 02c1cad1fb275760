// Any bytes as options and a small graph: the judge accepts the plan, and where the graph is small
// enough for an oracle no bound is above the optimum and an ample budget finds it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fail.h"
#include "sched/budget.h"
#include "sched/instance.h"
#include "sched/plan.h"
#include "sched/simulate.h"
#include "support/brute_force.h"

namespace torch_ext::sched::test {
namespace {

constexpr std::int32_t kMostOps = 40;
constexpr std::int32_t kMostOpsForOracle = 8;
constexpr std::size_t kOptionBytes = 3;

// The input byte by byte; zeros once it has ended.
class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool at_end() const { return bytes_.empty(); }
  int Next() {
    if (at_end()) return 0;
    const int byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

// Every string of bytes is a graph. References count backwards from the newest, or from the oldest
// if the high bit is set: a copied piece of input thus becomes an equal part of the graph, perhaps
// of the same hub.
template <typename Id>
void AddReferences(Bytes& bytes, int count, Id num_known, std::vector<Id>& ids) {
  for (int i = 0; i < count; ++i) {
    const int byte = bytes.Next();
    if (num_known == 0) continue;
    const Id distance = (byte & 0x7f) % num_known;
    ids.push_back((byte & 0x80) != 0 ? distance : num_known - 1 - distance);
  }
}

Graph BuildGraph(Bytes bytes) {
  // Sizes are 0 to 31, so that equal ones meet, or so large that their sum nears the limit.
  const int first = bytes.Next();
  const std::int64_t unit = (first & 1) != 0 ? std::int64_t{1} << 49 : 1;
  const auto size = [&] { return (bytes.Next() & 31) * unit; };

  Graph graph;
  for (int i = 0; i < ((first >> 1) & 3); ++i) {
    const int flags = bytes.Next();
    graph.AddInput("x" + std::to_string(i), (flags & 31) * unit, (flags & 0x80) != 0);
  }
  while (!bytes.at_end() && graph.num_ops() <= kMostOps) {
    const int shape = bytes.Next();
    std::vector<BufferId> reads, writes;
    std::vector<OpId> after;
    AddReferences(bytes, shape & 3, graph.num_buffers(), reads);
    AddReferences(bytes, (shape & 0x0c) == 0x0c ? 1 : 0, graph.num_ops(), after);
    const std::int64_t workspace = (shape & 0x30) == 0x30 ? size() : 0;
    const std::string name = std::to_string(graph.num_ops());
    for (int i = 0; i < (shape >> 6); ++i) {
      const int flags = bytes.Next();
      writes.push_back(graph.AddBuffer("b" + name + "_" + std::to_string(i), (flags & 31) * unit,
                                       (flags & 0xe0) == 0xe0));
    }
    graph.AddOp("op" + name, std::move(reads), std::move(writes), workspace, std::move(after));
  }
  return graph;
}

PlanOptions ReadOptions(Bytes bytes, const Graph& graph) {
  PlanOptions options;
  const int rules_on = bytes.Next();
  const int flags = bytes.Next();
  for (std::size_t r = 0; r < kRuleNames.size(); ++r) {  // the ninth is in the other byte
    options.rules.*kRuleNames[r].second = (((rules_on | (flags & 1) << 8) >> r) & 1) != 0;
  }
  if ((flags & 2) != 0) options.scope = Scope::kBottleneck;
  if ((flags & 4) != 0) options.search_memory_bytes = std::int64_t{1} << (flags >> 4);
  if ((flags & 8) != 0) {
    const std::int64_t peak = PeakBytes(graph, graph.OriginalOrder());
    options.memory_budget_bytes = peak / 16 * (flags >> 4);
  }
  const int effort = bytes.Next();  // up to 16,256 units of work, often only some hundreds
  options.time_budget_seconds = effort * effort / 4 / Budget::kWorkPerSecond;
  return options;
}

std::string Describe(const Graph& graph, const PlanOptions& options) {
  const double units = options.time_budget_seconds * Budget::kWorkPerSecond;
  std::string text = PrintInstance(graph) + "# " + std::to_string(units) + " units of work, " +
                     std::to_string(options.search_memory_bytes) + " bytes to search, scope " +
                     (options.scope == Scope::kAll ? "all" : "bottleneck");
  if (options.memory_budget_bytes) {
    text += ", memory budget " + std::to_string(*options.memory_budget_bytes);
  }
  for (const auto& [name, rule] : kRuleNames) {
    if (!(options.rules.*rule)) text += std::string(", no ") + name;
  }
  return text;
}

// A plan that passes the judge.
Plan PlanAndCheck(const Graph& graph, const PlanOptions& options) {
  const auto expect = [&](bool holds, const char* what) {
    if (!holds) Fail(std::string("not so: ") + what, Describe(graph, options));
  };
  Plan plan;
  try {
    plan = MakePlan(graph, options);
  } catch (const std::exception& error) {
    Fail(error.what(), Describe(graph, options));
  }
  const std::int64_t original_bytes = PeakBytes(graph, graph.OriginalOrder());
  expect(IsValidOrder(graph, plan.order), "the order is valid");
  expect(PeakBytes(graph, plan.order) == plan.peak_bytes, "the peak is what the judge says");
  expect(plan.original_peak_bytes == original_bytes, "so is that of the original order");
  expect(plan.peak_bytes <= original_bytes, "the peak is not above the original");
  expect(plan.lower_bound_bytes <= plan.peak_bytes, "the bound is not above the peak");
  expect(plan.is_optimal() == !plan.proof.empty(), "what is optimal has a proof");
  expect(plan.bottleneck.has_value() == (graph.num_ops() > 0), "there is a bottleneck");
  std::int32_t num_ops = 0;
  for (const Region& region : plan.regions) num_ops += region.num_ops;
  expect(num_ops == graph.num_ops(), "the regions cover the graph");
  const Graph around = ExtractBottleneck(graph);
  expect(PeakBytes(around, around.OriginalOrder()) == original_bytes,
         "the block around the peak has that peak");

  if (graph.num_ops() > kMostOpsForOracle) return plan;
  const std::int64_t lowest_bytes = DownSets(graph).LowestPeak();  // of all orders
  expect(plan.peak_bytes >= lowest_bytes, "the peak is not below the optimum");
  expect(plan.lower_bound_bytes <= lowest_bytes, "the bound is not above the optimum");
  expect(!plan.bottleneck || plan.bottleneck->bytes <= lowest_bytes,
         "the bottleneck is not above the optimum");
  return plan;
}

void TestOneInput(std::span<const std::uint8_t> input) {
  const std::size_t num_option_bytes = std::min(input.size(), kOptionBytes);
  const Graph graph = BuildGraph(Bytes(input.subspan(num_option_bytes)));
  if (graph.num_ops() > kMostOps) return;
  const PlanOptions options = ReadOptions(Bytes(input.first(num_option_bytes)), graph);
  PlanAndCheck(graph, options);
  if (graph.num_ops() > kMostOpsForOracle) return;

  PlanOptions ample;
  ample.rules = options.rules;
  ample.time_budget_seconds = 10;
  if (!PlanAndCheck(graph, ample).is_optimal()) {
    Fail("an ample budget did not find the optimum", Describe(graph, ample));
  }
}

}  // namespace
}  // namespace torch_ext::sched::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  torch_ext::sched::test::TestOneInput({data, size});
  return 0;
}
