#include "sched/simulate.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace torch_ext::sched {
namespace {

constexpr std::int32_t kForEver = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kNever = -2;

// A buffer is alive from the hill at `born` to the hill at `dies`, both included. Inputs are born
// at -1; one that nobody reads and that is not kept never lives.
struct Lifetime {
  std::int32_t born = kNever;
  std::int32_t dies = kNever;
};

// Empty if `order` is valid, else the sentence that says why not.
std::string WhyInvalid(const Graph& graph, std::span<const OpId> order) {
  if (order.size() != graph.ops().size()) {
    return "the order has " + std::to_string(order.size()) + " ops, the graph has " +
           std::to_string(graph.num_ops());
  }
  std::vector<char> has_run(order.size(), 0);
  for (OpId v : order) {
    if (v < 0 || v >= graph.num_ops()) return "the order names the op number " + std::to_string(v);
    if (has_run[v]) return "op '" + graph.op(v).name + "' runs twice";
    for (OpId p : graph.op(v).predecessors) {
      if (!has_run[p]) {
        return "op '" + graph.op(v).name + "' runs before '" + graph.op(p).name +
               "', which it depends on";
      }
    }
    has_run[v] = 1;
  }
  return {};
}

std::vector<Lifetime> Lifetimes(const Graph& graph, std::span<const OpId> order) {
  const std::vector<std::int32_t> positions = PositionsOf(order);
  std::vector<Lifetime> lifetimes(graph.buffers().size());
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    const Buffer& buffer = graph.buffer(b);
    if (buffer.is_input() && !buffer.kept && buffer.users.empty()) continue;
    const std::int32_t born = buffer.is_input() ? -1 : positions[buffer.producer];
    std::int32_t dies = born;
    for (OpId user : buffer.users) dies = std::max(dies, positions[user]);
    lifetimes[b] = {born, buffer.kept ? kForEver : dies};
  }
  return lifetimes;
}

}  // namespace

std::int64_t Profile::PeakBytes() const {
  const std::int32_t position = PeakPosition();
  return position < 0 ? start_bytes : hill_bytes[position];
}

std::int32_t Profile::PeakPosition() const {
  if (hill_bytes.empty()) return -1;
  return static_cast<std::int32_t>(std::max_element(hill_bytes.begin(), hill_bytes.end()) -
                                   hill_bytes.begin());
}

bool IsValidOrder(const Graph& graph, std::span<const OpId> order) {
  return WhyInvalid(graph, order).empty();
}

Profile Simulate(const Graph& graph, std::span<const OpId> order) {
  if (std::string why = WhyInvalid(graph, order); !why.empty()) throw std::invalid_argument(why);
  Profile profile;
  std::vector<std::int64_t> freed(order.size(), 0);
  const std::vector<Lifetime> lifetimes = Lifetimes(graph, order);
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    const Lifetime& life = lifetimes[b];
    if (life.born == -1) profile.start_bytes += graph.buffer(b).size_bytes;
    if (life.dies >= 0 && life.dies != kForEver) freed[life.dies] += graph.buffer(b).size_bytes;
  }
  std::int64_t live = profile.start_bytes;
  for (std::size_t i = 0; i < order.size(); ++i) {
    profile.hill_bytes.push_back(live + graph.HillBytes(order[i]));
    for (BufferId b : graph.op(order[i]).writes) live += graph.buffer(b).size_bytes;
    live -= freed[i];
    profile.valley_bytes.push_back(live);
  }
  return profile;
}

std::int64_t PeakBytes(const Graph& graph, std::span<const OpId> order) {
  return Simulate(graph, order).PeakBytes();
}

std::vector<BufferId> LiveBuffersAt(const Graph& graph, std::span<const OpId> order,
                                    std::int32_t position) {
  std::vector<BufferId> live;
  const std::vector<Lifetime> lifetimes = Lifetimes(graph, order);
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    const Lifetime& life = lifetimes[b];
    if (life.born != kNever && life.born <= position && position <= life.dies) live.push_back(b);
  }
  return live;
}

}  // namespace torch_ext::sched
