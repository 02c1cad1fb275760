// Seeded random graphs of many shapes, and graphs made from graphs for metamorphic tests.
//
// The same seed gives the same graph with every compiler: std::mt19937_64 is fixed by the standard,
// the std:: distributions are not and are not used.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  // Uniform enough in [low, high]: the ranges are tiny against 2^64.
  std::int64_t Between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Between(1, 100) <= percent; }
  template <typename T>
  const T& Pick(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(Between(0, static_cast<std::int64_t>(from.size()) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

// What the precedence looks like; sizes, inputs and the like are drawn independently of it.
enum class Shape {
  kSeriesParallel,  // series and parallel compositions, drawn recursively
  kNested,          // fork, branches that are nested themselves, join
  kPumpkin,         // one source, parallel chains, one sink
  kLayered,         // edges between neighbouring layers, some skips
  kOutTree,         // one predecessor each
  kInTree,          // one successor each
  kSparse,          // Erdos-Renyi, about one edge per op
  kDense,           // Erdos-Renyi, any density
  kChain,           // one op after the other
  kIndependent,     // no precedence; coupled by shared inputs only
};
inline constexpr std::array kShapes = {
    Shape::kSeriesParallel, Shape::kNested, Shape::kPumpkin, Shape::kLayered, Shape::kOutTree,
    Shape::kInTree,         Shape::kSparse, Shape::kDense,   Shape::kChain,   Shape::kIndependent};

Graph RandomGraph(Shape shape, std::int32_t num_ops, Random& random);

// Every shape in turn, 1 to `max_ops` ops, large ones more often.
Graph RandomGraph(std::uint64_t seed, std::int32_t max_ops);

// For SCOPED_TRACE: everything needed to see the case again.
std::string Describe(const Graph& graph, std::uint64_t seed);

// A random valid order.
Order RandomOrder(const Graph& graph, Random& random);

// The same program with `order` as its original order: op i of the result is op order[i].
Graph Relabelled(const Graph& graph, std::span<const OpId> order);

// All sizes and workspaces times `factor`.
Graph Scaled(const Graph& graph, std::int64_t factor);

// With one more op that needs no memory: after some earlier op, and with luck before an op that
// had to come later than that one anyway.
Graph WithZeroByteOp(const Graph& graph, Random& random);

// Each buffer that is not kept is read by its first user only; the precedences stay.
Graph WithOneReaderEach(const Graph& graph);

// Time reversed: the op that freed a buffer now writes it and the producer frees it; results become
// inputs and inputs results. Needs a graph in which no buffer that is not kept has two users, for
// the op that writes would depend on the order otherwise. Op i of the result is op n - 1 - i.
Graph Reversed(const Graph& graph);

// `count` times the environment variable TORCH_EXT_TEST_SCALE (1 if unset), at least 1.
int ScaledCount(int count);

}  // namespace torch_ext::sched::test
