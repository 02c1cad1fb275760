#include "jit/slices.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "jit/apply.h"
#include "jit/copyable.h"
#include "jit/effects.h"
#include "jit/execute.h"
#include "jit/nodes.h"
#include "jit/observe.h"
#include "jit/overwritable.h"
#include "jit/prepare.h"
#include "jit/same_threads.h"
#include "jit/sliceable.h"
#include "jit/stretch.h"
#include "jit/to_program.h"
#include "jit/values.h"
#include "memory/thread_meter.h"

namespace torch_ext::jit {
namespace {

using program::Interval;
using program::SlicedStretch;
using program::SliceFacts;
using program::Stretch;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

// The fallback asks tensors that are inputs where they are, and nobody asks others.
bool HasPlainInputs(Graph& graph) {
  bool has_tensor = false;
  for (const Value* input : graph.inputs()) {
    const bool is_tensor = input->type()->kind() == c10::TypeKind::TensorType;
    has_tensor |= is_tensor;
    if (!is_tensor && !input->type()->is_module() && MayHoldTensors(input->type())) return false;
  }
  return has_tensor;
}

// Kind, sizes and a hash of the bits: two tensors of one fingerprint have the same bits, but for
// one in 2^64, and then the module as a whole is still compared. So values of the whole need not be
// kept until their parts are made: all of them at once are many times the peak.
struct Fingerprint {
  at::ScalarType dtype = at::ScalarType::Undefined;
  std::vector<std::int64_t> sizes;
  std::size_t bits = 0;

  bool operator==(const Fingerprint&) const = default;
};

// `nan_is_nan`: of what is no number one is as good as another.
Fingerprint FingerprintOf(const at::Tensor& tensor, bool nan_is_nan) {
  at::Tensor dense = at::empty(tensor.sizes(), tensor.options()).copy_(tensor);  // without gaps
  if (nan_is_nan && dense.is_floating_point()) {
    dense.masked_fill_(dense.isnan(), std::numeric_limits<double>::quiet_NaN());
  }
  const std::string_view bytes(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
  return {dense.scalar_type(), dense.sizes().vec(), std::hash<std::string_view>()(bytes)};
}

// One stretch while it runs whole and then in parts: compares the values, and measures the ops.
class PartWatch {
 public:
  PartWatch(const program::Program& program, SlicedStretch stretch)
      : stretch_(std::move(stretch)), facts_(stretch_.ops.size()), whole_(stretch_.ops.size()) {
    std::unordered_map<std::string, std::size_t> made_by;
    for (std::size_t i = 0; i < stretch_.ops.size(); ++i) {
      const program::Op& op = program.ops[stretch_.ops[i].op];
      std::vector<std::size_t>& before = before_.emplace_back();
      for (const std::string& value : op.inputs) {
        const auto maker = made_by.find(value);
        if (maker != made_by.end()) before.push_back(maker->second);
      }
      made_by[op.outputs[0]] = i;
    }
    // Numbers that are changed in place later are not those that the op was given.
    std::set<program::BufferId> changed;
    is_read_unchanged_.resize(stretch_.ops.size());
    for (std::size_t i = stretch_.ops.size(); i-- > 0;) {
      const program::Op& op = program.ops[stretch_.ops[i].op];
      const bool changes = op.slicings[stretch_.ops[i].dimension]->changes_argument;
      if (changes) changed.insert(program.tensors.at(op.outputs[0]).buffer);
      is_read_unchanged_[i] = std::ranges::none_of(op.inputs, [&](const std::string& value) {
        const auto tensor = program.tensors.find(value);
        return tensor != program.tensors.end() && changed.contains(tensor->second.buffer);
      });
    }
  }

  // Is there an op that does not run in these parts?
  bool has_found() const {
    return running_.has_value() ||
           std::ranges::any_of(facts_, [](const Seen& seen) { return !seen.keeps_bits; });
  }

  // Returns the node that runs the parts.
  Node* Insert(const program::Program& program, const std::vector<Node*>& nodes, const Probe& probe,
               const FormsOfArguments& forms, ValueNames& names, Trial trial) {
    is_alone_ = trial == Trial::kAlone;
    Node* parts =
        ApplyStretch(program, stretch_, nodes, probe, forms, names, /*may_run=*/nullptr, trial,
                     [&](std::size_t place, Node* node, Value* part, Value* number) {
                       InsertAround(place, node, part, number);
                     });
    // In front of the parts, which are behind the last node.
    Graph& graph = *nodes[0]->owningGraph();
    for (std::size_t place = 0; place < stretch_.ops.size(); ++place) {
      Node* node = nodes[stretch_.ops[place].op];
      observers_
          .Create(graph, {node->output(0)},
                  [this, place](at::ArrayRef<c10::IValue> values) {
                    if (values[0].isTensor()) NoteWhole(place, values[0].toTensor());
                  })
          ->insertAfter(node);
    }
    return parts;
  }

  // What has been seen; an op that has not run to its end is none to run in parts.
  void TellTo(SliceFacts& facts) const {
    for (std::size_t place = 0; place < stretch_.ops.size(); ++place) {
      const SlicedStretch::PartOp& op = stretch_.ops[place];
      const bool has_failed = running_ == place;
      if (facts_[place].runs == 0 && !has_failed) continue;
      const bool keeps_bits = facts_[place].keeps_bits && !has_failed;
      facts.Learn(op.Longest(), {keeps_bits, facts_[place].workspace_bytes});
    }
  }

 private:
  struct Seen {
    int runs = 0;
    bool keeps_bits = true;
    std::int64_t workspace_bytes = 0;
    std::unordered_set<std::int64_t> differs;  // parts
  };

  void NoteWhole(std::size_t place, const at::Tensor& whole) {
    const SlicedStretch::PartOp& op = stretch_.ops[place];
    whole_[place].clear();
    for (const Interval& interval : op.Computed()) {
      const at::Tensor part = whole.narrow(op.dimension, interval.begin, interval.length());
      whole_[place].push_back(FingerprintOf(part, is_alone_));
    }
  }

  void InsertAround(std::size_t place, Node* node, Value* part, Value* number) {
    Graph& graph = *node->owningGraph();
    observers_
        .Create(graph, {},
                [this, place](at::ArrayRef<c10::IValue>) {
                  running_ = place;
                  meter_ = std::make_shared<memory::ThreadMeter>();
                  guard_ = std::make_unique<c10::DebugInfoGuard>(c10::DebugInfoKind::PROFILER_STATE,
                                                                 meter_);
                })
        ->insertBefore(node);
    observers_
        .Create(graph, {node->output(0), part, number},
                [this, place](at::ArrayRef<c10::IValue> values) {
                  guard_.reset();
                  running_.reset();
                  Look(place, values[0], values[1], values[2].toInt());
                })
        ->insertAfter(part->node());
  }

  void Look(std::size_t place, const c10::IValue& made, const c10::IValue& part,
            std::int64_t number) {
    if (is_alone_) {
      LookAlone(place, part, number);
      return;
    }
    Seen& seen = facts_[place];
    ++seen.runs;
    std::int64_t made_bytes = 0;
    if (made.isTensor() && HasMemory(made.toTensor())) {
      made_bytes = meter_->LiveBytesAt(made.toTensor().storage().data());
    }
    seen.workspace_bytes = std::max(seen.workspace_bytes, meter_->hill_bytes() - made_bytes);
    const bool has_others =
        std::ranges::any_of(before_[place], [&](std::size_t u) { return GivesOthers(u, number); });
    if (!part.isTensor()) {
      if (has_others) seen.differs.insert(number);
      return;
    }
    if (IsAsInWhole(place, part.toTensor(), number)) return;
    seen.differs.insert(number);
    if (!has_others) seen.keeps_bits = false;
  }

  // Does what reads the op's part read other bits? Rows that are kept may be of any part before.
  bool GivesOthers(std::size_t place, std::int64_t number) const {
    const bool keeps_rows = stretch_.ops[place].keeps_rows;
    return std::ranges::any_of(facts_[place].differs, [&](std::int64_t part) {
      return keeps_rows ? part <= number : part == number;
    });
  }

  void LookAlone(std::size_t place, const c10::IValue& part, std::int64_t number) {
    if (!part.isTensor() || !is_read_unchanged_[place]) return;
    if (!IsAsInWhole(place, part.toTensor(), number)) facts_[place].keeps_bits = false;
  }

  bool IsAsInWhole(std::size_t place, const at::Tensor& part, std::int64_t number) const {
    return FingerprintOf(part, is_alone_) == whole_[place].at(number);
  }

  SlicedStretch stretch_;
  std::vector<std::vector<std::size_t>> before_;  // places of what an op reads
  std::vector<Seen> facts_;
  std::vector<std::vector<Fingerprint>> whole_;  // of each op, and part of what it makes
  bool is_alone_ = false;
  std::vector<char> is_read_unchanged_;
  Observers observers_;
  std::optional<std::size_t> running_;
  std::shared_ptr<memory::ThreadMeter> meter_;
  std::unique_ptr<c10::DebugInfoGuard> guard_;
};

void FillWithNumbers(at::ArrayRef<c10::IValue> values) {
  if (!values[0].isTensor()) return;
  const at::Tensor tensor = values[0].toTensor();
  if (!HasMemory(tensor) || !tensor.is_floating_point()) return;
  tensor.normal_(0, 1, at::detail::createCPUGenerator(/*seed=*/tensor.numel()));
}

// From here on ops that make new memory make random numbers, and so have attributes, in copies of
// their own. Called before observers are put behind nodes: these see what an op has really made.
void MakeRandom(const program::Program& program, const std::vector<Node*>& nodes, ValueNames& names,
                Observers& observers) {
  for (std::size_t v = 0; v < nodes.size(); ++v) {
    Node* node = nodes[v];
    if (node->outputs().size() != 1) continue;
    const auto tensor = program.tensors.find(program.ops[v].outputs[0]);
    if (tensor == program.tensors.end() || !tensor->second.fills_buffer) continue;
    Graph& graph = *node->owningGraph();
    Value* value = node->output();
    if (node->kind() == c10::prim::GetAttr) {
      const torch::jit::WithInsertPoint behind(node->next());
      Node* clone = graph.insertNode(
          graph.create(c10::aten::clone, {value, graph.insertConstant(c10::IValue())}, 1));
      value->replaceAllUsesAfterNodeWith(clone, clone->output());
      names[clone->output()] = names.at(value);
      value = clone->output();
    } else if (program.ops[v].writes.empty()) {
      continue;
    }
    observers.Create(graph, {value}, FillWithNumbers)->insertAfter(value->node());
  }
}

// Nothing runs behind the node.
void EndAt(Graph& graph, const Node* last) {
  while (!graph.outputs().empty()) graph.eraseOutput(graph.outputs().size() - 1);
  while (graph.block()->return_node()->prev() != last) {
    graph.block()->return_node()->prev()->destroy();
  }
}

}  // namespace

Slicer::Slicer(std::shared_ptr<Graph> graph, sched::Order order, Probe probe,
               Interference interference, std::function<Stack()> make_inputs,
               std::vector<std::string> names)
    : graph_(std::move(graph)),
      order_(std::move(order)),
      probe_(std::move(probe)),
      interference_(std::move(interference)),
      make_inputs_(std::move(make_inputs)),
      names_(std::move(names)),
      overwritable_(FindOverwritable(graph_, OpNodes(graph_->block()), {probe_}, interference_)),
      forms_(FormsByArgument(overwritable_)),
      program_(ProgramOf(OpNodes(graph_->block()))),
      facts_(program_) {}

program::Program Slicer::ProgramOf(const std::vector<Node*>& nodes) const {
  program::Program program = ToProgram(nodes, probe_, interference_);
  for (std::size_t i = 0; i < names_.size(); ++i) program.ops[i].name = names_[i];
  const bool may_slice = HasPlainInputs(*graph_) && WhyNotEdited(nodes, interference_).empty();
  if (may_slice) AddSlicings(program, nodes, probe_);
  program.overwritable = overwritable_.overwrites[0];
  return program;
}

void Slicer::NameBuffersLike(const program::Program& named) {
  std::unordered_map<std::string, const program::Op*> op_named;
  for (const program::Op& op : named.ops) op_named[op.name] = &op;
  for (std::size_t b = 0; b < program_.buffers.size(); ++b) {
    program_.buffers[b].name = "unnamed." + std::to_string(b);
  }
  for (const program::Op& op : program_.ops) {
    const auto found = op_named.find(op.name);
    if (found == op_named.end() || found->second->writes.size() != op.writes.size()) continue;
    for (std::size_t i = 0; i < op.writes.size(); ++i) {
      program_.buffers[op.writes[i]].name = named.buffers[found->second->writes[i]].name;
    }
  }
}

std::string Slicer::Obstacles() const {
  return program::ObstaclesText(program_, facts_, choices_);
}

program::SliceFloor Slicer::Floor() const {
  const std::vector<Node*> nodes = OpNodes(graph_->block());
  Probe probe = probe_;
  KeepCertain(CertainNodes(graph_), probe);
  program::Program certain = ToProgram(nodes, probe, interference_);
  AddSlicings(certain, nodes, probe);
  certain.overwritable = overwritable_.overwrites[0];
  const Copyable copyable = FindCopyable(nodes, {probe_});
  if (!copyable.copies.empty()) certain.copyable = copyable.copies[0];
  program::SliceFloor floor = program::FloorOf(certain);
  floor.bytes = std::max<std::int64_t>(0, floor.bytes - probe_.released_bytes);
  return floor;
}

std::vector<program::Stretches::Choice> Slicer::Choose(const program::SliceTargets& targets) {
  const auto learn = [this](const std::vector<Stretch>& stretches) { Learn(stretches); };
  choices_ = program::ChooseStretches(program_, order_, facts_, targets, learn);
  return choices_;
}

std::vector<Stretch> Slicer::Random(std::uint64_t seed) {
  const auto learn = [this](const std::vector<Stretch>& stretches) { Learn(stretches); };
  return program::RandomStretches(program_, order_, facts_, seed, learn);
}

std::vector<program::OpId> Slicer::OpsInParts(const Stretch& stretch) const {
  const std::optional<SlicedStretch> sliced = program::Sliced(program_, stretch, facts_);
  TORCH_INTERNAL_ASSERT(sliced, "torch_ext: a stretch that was chosen is none");
  std::vector<program::OpId> ops;
  for (const SlicedStretch::PartOp& op : sliced->ops) ops.push_back(op.op);
  return ops;
}

void Slicer::Apply(const std::shared_ptr<Graph>& graph,
                   const std::vector<Stretch>& stretches) const {
  const std::vector<Node*> nodes = OpNodes(graph->block());
  ApplyOrder(graph->block(), nodes, order_);
  const program::Program program = ProgramOf(nodes);
  for (std::size_t v = 0; v < nodes.size(); ++v) Mark(nodes[v], static_cast<std::int64_t>(v));
  ValueNames names = NamesOf(nodes);
  Value* may_run = stretches.empty() ? nullptr : AskForThreads(nodes[stretches[0].ops[0]]);
  for (std::size_t i = 0; i < stretches.size(); ++i) {
    const SlicedStretch sliced = *program::Sliced(program, stretches[i], facts_);
    Mark(ApplyStretch(program, sliced, nodes, probe_, forms_, names, may_run),
         kFirstStretch + static_cast<std::int64_t>(i));
  }
}

void Slicer::NameAlike(program::Program& sliced, const std::vector<std::int64_t>& marks,
                       const std::vector<Stretch>& stretches) const {
  const auto rename = [&](const std::vector<program::BufferId>& ids,
                          const std::vector<program::BufferId>& like) {
    if (ids.size() != like.size()) return;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      sliced.buffers[ids[i]].name = program_.buffers[like[i]].name;
    }
  };
  for (std::size_t b = 0; b < sliced.buffers.size(); ++b) {
    sliced.buffers[b].name = "stretch.buffer." + std::to_string(b);
  }
  for (std::size_t v = 0; v < sliced.ops.size(); ++v) {
    program::Op& op = sliced.ops[v];
    if (marks[v] == kUnmarked) {
      op.name = "stretch.guard." + std::to_string(v);
    } else if (marks[v] >= kFirstStretch) {
      const auto number = static_cast<std::size_t>(marks[v] - kFirstStretch);
      op.name = NameOfStretch(number);
      std::vector<program::BufferId> results;
      const SlicedStretch stretch = *program::Sliced(program_, stretches[number], facts_);
      for (const std::string& value : stretch.results) {
        results.push_back(program_.tensors.at(value).buffer);
      }
      rename(op.writes, results);
    } else {
      op.name = program_.ops[marks[v]].name;
      rename(op.writes, program_.ops[marks[v]].writes);
    }
  }
}

void Slicer::Learn(const std::vector<Stretch>& stretches) {
  std::vector<std::unique_ptr<PartWatch>> watches;
  // Of zeros, which masks and new weights make, parts are the same by any order of sums: so each op
  // is tried alone, too, on random numbers. They may lead elsewhere, or nowhere.
  for (const Trial trial : {Trial::kTogether, Trial::kAlone}) {
    const std::shared_ptr<Graph> copy = graph_->copy();
    const std::vector<Node*> nodes = OpNodes(copy->block());
    ApplyOrder(copy->block(), nodes, order_);
    // Its values may be called otherwise than those of program_, and as those of the other copy.
    const program::Program program = ProgramOf(nodes);
    ValueNames names = NamesOf(nodes);
    for (std::size_t i = watches.size(); i < stretches.size(); ++i) {
      watches.push_back(
          std::make_unique<PartWatch>(program, *program::Sliced(program, stretches[i], facts_)));
    }
    Observers observers;
    Stack stack = make_inputs_();
    if (trial == Trial::kAlone) {
      FillAtRandom(stack);
      MakeRandom(program, nodes, names, observers);
    }
    const Node* last = nullptr;
    for (const auto& watch : watches) {
      const Node* parts = watch->Insert(program, nodes, probe_, forms_, names, trial);
      if (last == nullptr || parts->isAfter(last)) last = parts;
    }
    EndAt(*copy, last);
    const torch::jit::Code code(copy, "parts");
    try {
      torch::jit::InterpreterState(code).run(stack);
    } catch (const std::exception&) {
      // An op that raises in parts, or makes what is no part, is not run in parts again.
      const auto has_found = [](const auto& watch) { return watch->has_found(); };
      if (trial == Trial::kTogether && std::ranges::none_of(watches, has_found)) throw;
    }
    for (const auto& watch : watches) watch->TellTo(facts_);
  }
}

std::string NameOfStretch(std::size_t number) {
  return "stretch." + std::to_string(number);
}

}  // namespace torch_ext::jit
