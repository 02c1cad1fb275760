#include "jit/probe.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/nodes.h"
#include "jit/observe.h"
#include "jit/prepare.h"
#include "memory/meter.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// What a value held when an observing node looked at it.
struct Held {
  std::size_t value;  // index into the node's reads or outputs
  const void* address;
  std::string dtype;
  std::vector<std::int64_t> shape, strides;
  bool is_alone;      // it is the value, and not in a list
  bool fills_memory;  // see SeenTensor
};

// What was seen around one node; events are numbered as the meter reports them.
struct Sighting {
  std::size_t first_event = 0;
  std::size_t last_event = 0;
  std::vector<Held> read;
  std::vector<Held> written;
  std::vector<std::size_t> opaque_outputs;  // outputs that may hold memory nobody can look into
  bool uses_random_state = false;
};

at::Tensor RandomState() {
  return at::detail::getDefaultCPUGenerator().get_state();
}

bool FillsMemory(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() && tensor.storage().nbytes() == tensor.nbytes();
}

class Prober {
 public:
  explicit Prober(const std::shared_ptr<Graph>& graph) : graph_(graph->copy()) {
    nodes_ = OpNodes(graph_->block());
    sightings_.resize(nodes_.size());
    for (std::size_t i = 0; i < nodes_.size(); ++i) Surround(i);
  }

  Probe Run(const Stack& inputs) {
    for (Sighting& sighting : sightings_) sighting = {};
    other_devices_ = false;
    random_state_.reset();  // else the run would release it
    const torch::jit::Code code(graph_, "probe");
    meter_ = std::make_unique<memory::Meter>(/*record_events=*/true);
    Stack stack = inputs;  // the caller holds the inputs until the end
    torch::jit::InterpreterState(code).run(stack);
    const std::size_t end = meter_->num_events();
    meter_->Stop();
    return Explain(meter_->events(), end);
  }

 private:
  // Puts an observing node on each side of node i.
  void Surround(std::size_t i) {
    Node* node = nodes_[i];
    const std::vector<Value*> reads = ReadValues(node);
    const std::vector<Value*> outputs(node->outputs().begin(), node->outputs().end());
    Insert(reads, [this, i](at::ArrayRef<c10::IValue> values) {
      Look(values, sightings_[i].read, nullptr);
      random_state_ = RandomState();
      sightings_[i].first_event = meter_->num_events();
    })->insertBefore(node);
    Insert(outputs, [this, i](at::ArrayRef<c10::IValue> values) {
      sightings_[i].last_event = meter_->num_events();
      Look(values, sightings_[i].written, &sightings_[i].opaque_outputs);
      const at::Tensor state = RandomState();
      sightings_[i].uses_random_state =
          std::memcmp(state.const_data_ptr(), random_state_.const_data_ptr(), state.nbytes()) != 0;
    })->insertAfter(node);
  }

  Node* Insert(const std::vector<Value*>& values, Observers::Observer observer) {
    return observers_.Create(*graph_, values, std::move(observer));
  }

  void Look(at::ArrayRef<c10::IValue> values, std::vector<Held>& held,
            std::vector<std::size_t>* opaque) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool known = ForEachTensor(values[i], false, [&](const at::Tensor& tensor) {
        if (!tensor.device().is_cpu() && !tensor.is_meta()) other_devices_ = true;
        if (!HasMemory(tensor) || tensor.storage().nbytes() == 0) return;
        const std::string dtype(c10::getDtypeNames(tensor.scalar_type()).first);
        const bool is_strided = tensor.layout() == c10::kStrided;
        held.push_back({.value = i,
                        .address = tensor.storage().data(),
                        .dtype = dtype,
                        .shape = tensor.sizes().vec(),
                        .strides = is_strided ? tensor.strides().vec() : tensor.sizes().vec(),
                        .is_alone = values[i].isTensor() && is_strided,
                        .fills_memory = is_strided && FillsMemory(tensor)});
      });
      if (!known && opaque != nullptr) opaque->push_back(i);
    }
  }

  Probe Explain(const std::vector<memory::Meter::Event>& events, std::size_t end) const;

  std::shared_ptr<Graph> graph_;
  std::vector<Node*> nodes_;
  std::vector<Sighting> sightings_;
  Observers observers_;
  std::unique_ptr<memory::Meter> meter_;
  at::Tensor random_state_;
  bool other_devices_ = false;
};

using Live = std::unordered_map<const void*, std::int32_t>;  // address -> allocation

std::vector<std::optional<SeenTensor>> SeenTensors(const std::vector<Held>& all, std::size_t count,
                                                   const Live& live) {
  std::vector<std::optional<SeenTensor>> seen(count);
  for (const Held& held : all) {
    if (!held.is_alone) continue;
    const auto found = live.find(held.address);
    seen[held.value] = {found == live.end() ? -1 : found->second, held.fills_memory, held.dtype,
                        held.shape, held.strides};
  }
  return seen;
}

void AddOnce(std::vector<std::int32_t>& ids, std::int32_t id) {
  if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
}

// Replays the events against what was seen: who made each allocation, who held it, who let it go.
Probe Prober::Explain(const std::vector<memory::Meter::Event>& events, std::size_t end) const {
  Probe probe;
  probe.nodes.resize(nodes_.size());
  probe.other_devices = other_devices_;
  Live live;
  std::unordered_map<const void*, std::size_t> passing;  // address -> event, taken by this node
  std::unordered_set<const void*> observers;             // addresses of what they took themselves
  std::unordered_map<const Value*, std::vector<std::int32_t>> in_opaque;

  // A release outside any node (a captured value after an If) belongs to the node before it.
  // Tells the allocation, if it was made in this run.
  const auto release = [&](const memory::Meter::Event& event,
                           std::size_t node) -> std::optional<std::int32_t> {
    const auto found = live.find(event.address);
    if (found == live.end()) {
      if (observers.erase(event.address) == 0) probe.released_bytes -= event.bytes;
      return std::nullopt;
    }
    const std::int32_t id = found->second;
    NodeProbe& releaser = probe.nodes[node];
    const auto& own = releaser.writes;
    if (std::find(own.begin(), own.end(), id) == own.end()) AddOnce(releaser.reads, id);
    live.erase(found);
    return id;
  };

  std::size_t next = 0;
  const auto replay_gap = [&](std::size_t until, std::size_t node_before) {
    for (; next < until; ++next) {
      if (events[next].bytes < 0) {
        release(events[next], node_before);
      } else {
        observers.insert(events[next].address);
      }
    }
  };
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const Sighting& seen = sightings_[i];
    NodeProbe& node = probe.nodes[i];
    replay_gap(seen.first_event, i == 0 ? 0 : i - 1);
    node.uses_random_state = seen.uses_random_state;
    for (const Held& held : seen.read) {
      if (const auto found = live.find(held.address); found != live.end()) {
        AddOnce(node.reads, found->second);
      }
    }
    const std::vector<Value*> read_values = ReadValues(nodes_[i]);
    node.read = SeenTensors(seen.read, read_values.size(), live);
    for (Value* value : read_values) {
      if (const auto found = in_opaque.find(value); found != in_opaque.end()) {
        for (std::int32_t id : found->second) AddOnce(node.reads, id);
      }
    }

    passing.clear();
    std::int64_t taken = 0;
    std::vector<std::int32_t> released;
    for (; next < seen.last_event; ++next) {
      const auto& [address, bytes] = events[next];
      if (bytes > 0) {
        passing[address] = next;
        taken += bytes;
        if (taken <= node.hill_bytes) continue;
        node.hill_bytes = taken;
        node.released_before_hill = released;
      } else if (passing.erase(address) > 0) {
        taken += bytes;
      } else {
        if (const auto id = release(events[next], i)) released.push_back(*id);
      }
    }
    std::vector<std::size_t> made;
    for (const auto& [address, event] : passing) made.push_back(event);
    std::sort(made.begin(), made.end());
    for (std::size_t event : made) {
      const auto& [address, bytes] = events[event];
      const auto id = static_cast<std::int32_t>(probe.allocations.size());
      Allocation allocation{bytes, false, {}, {}, {}};
      for (const Held& held : seen.written) {
        if (held.address != address) continue;
        allocation.value_name = nodes_[i]->output(held.value)->debugName();
        allocation.dtype = held.dtype;
        allocation.shape = held.shape;
        break;
      }
      if (allocation.value_name.empty()) {
        for (std::size_t output : seen.opaque_outputs) {
          in_opaque[nodes_[i]->output(output)].push_back(id);
        }
      }
      probe.allocations.push_back(std::move(allocation));
      node.writes.push_back(id);
      live[address] = id;
    }
    for (const Held& held : seen.written) {
      if (const auto found = live.find(held.address); found != live.end()) {
        AddOnce(node.holds, found->second);
      }
    }
    node.written = SeenTensors(seen.written, nodes_[i]->outputs().size(), live);
  }
  if (!nodes_.empty()) replay_gap(end, nodes_.size() - 1);
  for (const auto& [address, id] : live) probe.allocations[id].kept = true;

  return probe;
}

}  // namespace

bool SeenTensor::HasNewStrides() const {
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    if (strides[d] != stride) return false;
    stride *= std::max<std::int64_t>(shape[d], 1);
  }
  return true;
}

const std::optional<SeenTensor>& SeenBy(Node* node, const NodeProbe& seen, const Value* value) {
  const std::vector<Value*> read = ReadValues(node);
  return seen.read[std::ranges::find(read, value) - read.begin()];
}

Probe RunProbe(const std::shared_ptr<Graph>& graph, const std::function<Stack()>& make_inputs) {
  Prober prober(graph);
  prober.Run(make_inputs());
  Probe probe = prober.Run(make_inputs());
  const std::vector<char> folded = FoldedNodes(graph);
  for (std::size_t i = 0; i < folded.size(); ++i) {
    if (!folded[i]) continue;
    probe.nodes[i].hill_bytes = 0;
    for (std::int32_t a : probe.nodes[i].writes) probe.allocations[a].bytes = 0;
  }
  return probe;
}

}  // namespace torch_ext::jit
