#include "jit/stretch.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "jit/builder.h"
#include "jit/nodes.h"

namespace torch_ext::jit {
namespace {

using program::Interval;
using program::Need;
using program::PaddedPart;
using program::SlicedStretch;
using program::Slicing;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;
using torch::jit::WithInsertPoint;

using IntList = std::vector<std::int64_t>;

class StretchBuilder : public Builder {
 public:
  StretchBuilder(Graph& graph, const program::Program& program, const SlicedStretch& stretch,
                 const std::vector<Node*>& nodes, const Probe& probe, const FormsOfArguments& forms,
                 const ValueNames& names, Trial trial)
      : Builder(graph),
        is_alone_(trial == Trial::kAlone),
        program_(program),
        stretch_(stretch),
        nodes_(nodes),
        probe_(probe),
        forms_(forms),
        names_(names) {
    for (std::size_t i = 0; i < stretch.ops.size(); ++i) {
      made_by_[OutputOf(i)] = i;
      const bool is_result = std::ranges::count(stretch.results, NameOf(OutputOf(i))) > 0;
      if (is_result) results_.push_back(OutputOf(i));
    }
    for (const SlicedStretch::PartOp& op : stretch.ops) NoteOlder(op.op);
  }

  // Returns the If, whose outputs are the results.
  Node* Build(Value* may_run, const VisitPart& visit) {
    std::vector<Value*> conditions = Conditions();
    if (may_run != nullptr) conditions.push_back(may_run);
    Value* is_as_probed = All(conditions);
    Node* choice =
        graph().insertNode(graph().create(c10::prim::If, {is_as_probed}, results_.size()));
    AddInParts(choice->addBlock(), is_as_probed, visit);
    AddAsItWas(choice->addBlock());
    for (std::size_t i = 0; i < results_.size(); ++i) {
      choice->output(i)->setType(c10::TensorType::get());
    }
    return choice;
  }

  const std::vector<Value*>& results() const { return results_; }

 private:
  Value* OutputOf(std::size_t place) const { return nodes_[stretch_.ops[place].op]->output(0); }

  // Constants that are inputs have none, and no needs.
  std::string NameOf(const Value* value) const {
    const auto name = names_.find(value);
    return name == names_.end() ? std::string() : name->second;
  }

  // What the node reads that is older than the stretch, as it saw it.
  void NoteOlder(program::OpId op) {
    const std::vector<Value*> read = ReadValues(nodes_[op]);
    for (std::size_t i = 0; i < read.size(); ++i) {
      const std::optional<SeenTensor>& seen = probe_.nodes[op].read[i];
      if (made_by_.contains(read[i]) || !seen) continue;
      if (read[i]->node()->kind() == c10::prim::Constant) continue;
      const auto is_known = [&](const auto& known) { return known.first == read[i]; };
      if (std::ranges::none_of(older_, is_known)) older_.emplace_back(read[i], *seen);
    }
  }

  std::vector<Value*> Conditions() {
    std::vector<Value*> all;
    for (const auto& [value, seen] : older_) {
      all.push_back(Equal(Sizes(value), Constant(seen.shape)));
      all.push_back(Equal(Strides(value), Constant(seen.strides)));
      all.push_back(Equal(Dtype(value), Constant(DtypeNamed(seen.dtype))));
    }
    return all;
  }

  static std::int64_t DtypeNamed(const std::string& name) {
    return static_cast<std::int64_t>(c10::getStringToDtypeMap().at(name));
  }

  // A number that depends on the part.
  Value* OfPart(const IntList& numbers) {
    if (std::ranges::all_of(numbers, [&](std::int64_t n) { return n == numbers[0]; })) {
      return Constant(numbers[0]);
    }
    Value*& number = numbers_[numbers];
    if (number == nullptr) number = Number("aten::__getitem__", {Constant(numbers), counter_});
    return number;
  }

  // The intervals of a value along a dimension.
  Value* Narrowed(Value* value, int dimension, const std::vector<Interval>& intervals) {
    IntList begins, lengths;
    for (const Interval& interval : intervals) {
      begins.push_back(interval.begin);
      lengths.push_back(interval.length());
    }
    Value*& view = views_[{value, dimension, begins, lengths}];
    if (view == nullptr) {
      view = Tensor("aten::narrow", {value, Constant(static_cast<std::int64_t>(dimension)),
                                     OfPart(begins), OfPart(lengths)});
    }
    return view;
  }

  // The copies read the condition, which is true there, and on CPUs they do not look at that
  // argument. So something is read in the If for the last time, and the interpreter drops it behind
  // the If. Were there nothing to drop, it would run the If amid the loads of the one node that
  // reads its result; the values that this node has loaded before would be moved out of their
  // registers by the other block, which is not run, and so stay alive until the module returns.
  void AddInParts(Block* block, Value* is_true, const VisitPart& visit) {
    const WithInsertPoint inside(block);
    std::unordered_map<const Value*, Value*> whole;  // results
    for (Value* result : results_) {
      whole[result] = EmptyResult(result);
      block->registerOutput(whole[result]);
    }
    const auto parts = static_cast<std::int64_t>(stretch_.ops.back().parts.size());
    loop_ =
        graph().insertNode(graph().create(c10::prim::Loop, {Constant(parts), Constant(true)}, 0));
    Block* body = loop_->addBlock();
    counter_ = body->addInput()->setType(c10::IntType::get());
    const WithInsertPoint in_loop(body);
    for (std::size_t place = 0; place < stretch_.ops.size(); ++place) {
      AddPart(place, visit);
      const auto result = whole.find(OutputOf(place));
      if (result == whole.end()) continue;
      const SlicedStretch::PartOp& op = stretch_.ops[place];
      Value* target = Narrowed(result->second, op.dimension, op.parts);
      Tensor("aten::copy_", {target, part_of_.at(OutputOf(place)), is_true});
    }
    body->registerOutput(Constant(true));
    for (Value* rows : kept_rows_) body->registerOutput(rows);
  }

  Value* EmptyResult(const Value* result) {
    const program::OpId op = stretch_.ops[made_by_.at(result)].op;
    const SeenTensor& seen = *probe_.nodes[op].written[0];
    Value *shape = Constant(seen.shape), *dtype = Constant(DtypeNamed(seen.dtype));
    if (seen.HasNewStrides()) return Empty(shape, dtype);
    Value* none = Constant({});
    return Tensor("aten::empty_strided", {shape, Constant(seen.strides), dtype, none, none, none});
  }

  void AddPart(std::size_t place, const VisitPart& visit) {
    const SlicedStretch::PartOp& part_op = stretch_.ops[place];
    const program::Op& op = program_.ops[part_op.op];
    const Slicing& slicing = *op.slicings[part_op.dimension];
    const std::vector<Interval> computed = part_op.Computed();
    Node* node = nodes_[part_op.op];
    std::vector<Value*> inputs;
    std::vector<PaddedPart> padded;  // of the argument that is, if there is one
    Value* changed = nullptr;        // the part that the op changes, if it does
    for (Value* value : node->inputs()) {
      const auto need =
          std::ranges::find(slicing.needs, NameOf(value), &std::pair<std::string, Need>::first);
      if (need == slicing.needs.end()) {
        inputs.push_back(value);
        continue;
      }
      const std::int64_t size = program_.tensors.at(NameOf(value)).shape[need->second.dimension];
      std::vector<Interval> intervals;
      for (const Interval& part : computed) {
        const PaddedPart given = *slicing.ArgumentOf(need->second, part, size);
        intervals.push_back(given.argument);
        if (!slicing.padding.empty()) padded.push_back(given);
      }
      inputs.push_back(Argument(value, need->second.dimension, std::move(intervals)));
      const bool is_changed = slicing.changes_argument || part_op.overwrites == NameOf(value);
      if (is_alone_ && is_changed) {  // others are given it, too
        inputs.back() = Tensor("aten::clone", {inputs.back(), Constant({})});
      }
      if (slicing.changes_argument && NameOf(value) == slicing.needs[0].first) {
        changed = inputs.back();
      }
      if (part_op.is_placed) {
        inputs.back() = Placed(NameOf(value), inputs.back(), need->second.dimension, part_op.parts);
      }
    }
    IntList lengths;
    for (const Interval& part : computed) lengths.push_back(part.length());
    if (!slicing.size.empty()) {
      inputs[*node->schema().argumentIndexWithName(slicing.size)] = OfPart(lengths);
    }
    if (!slicing.sizes.empty()) {
      SetNumber(node, slicing.sizes, slicing.sizes_place, lengths, inputs);
    }
    if (!slicing.padding.empty()) {
      IntList paddings;
      for (const PaddedPart& part : padded) paddings.push_back(part.padding);
      SetNumber(node, slicing.padding, slicing.padding_place, paddings, inputs);
    }
    // A part of a view may have strides that `view` does not take.
    const bool is_view = node->kind() == c10::aten::view;
    Node* made = graph().insertNode(graph().create(is_view ? c10::aten::reshape : node->kind(),
                                                   inputs, node->outputs().size()));
    made->copyMetadata(node);
    made->copyAttributes(*node);
    if (!part_op.overwrites.empty()) made = PutForm(made, FormOf(part_op, node));
    Value* whole = node->output(0);
    const bool is_list = whole->type()->kind() == c10::TypeKind::ListType;
    Value* part = made->output(0)->setType(is_list ? whole->type() : c10::TensorType::get());
    if (!padded.empty()) part = CutToPart(part, part_op.dimension, lengths, padded);
    if (part_op.is_placed) {
      part = Narrowed(part, part_op.dimension, part_op.parts);
      part = changed != nullptr ? Tensor("aten::copy_", {changed, part, Constant(false)})
                                : Tensor("aten::clone", {part, Constant({})});
    }
    if (visit) visit(place, made, part, counter_);
    part_of_[whole] = part_op.keeps_rows && !is_alone_ ? WithKeptRows(part, whole, part_op) : part;
  }

  // The rows behind those that are kept of the part before; keeps what the next one needs.
  Value* WithKeptRows(Value* rows, const Value* whole, const SlicedStretch::PartOp& op) {
    const program::Tensor& tensor = program_.tensors.at(NameOf(whole));
    std::vector<Interval> of_next;  // in what is joined
    for (std::size_t i = 0; i < op.parts.size(); ++i) {
      const Interval& part = op.parts[i];
      const std::int64_t next = i + 1 == op.parts.size() ? part.end : op.parts[i + 1].begin;
      of_next.push_back({std::min(next, part.end) - part.begin, part.length()});
    }
    IntList shape = tensor.shape;
    shape[op.dimension] = 0;
    Value* kept = loop_->blocks()[0]->addInput()->setType(c10::TensorType::get());
    {
      const WithInsertPoint before(loop_);
      loop_->addInput(Empty(Constant(shape), Constant(DtypeNamed(tensor.dtype))));
      loop_->addOutput()->setType(c10::TensorType::get());
    }
    Value* both = Call("prim::ListConstruct", {kept, rows}, c10::ListType::ofTensors());
    Value* joined = Tensor("aten::cat", {both, Constant(static_cast<std::int64_t>(op.dimension))});
    Value* next = Narrowed(joined, op.dimension, of_next);
    kept_rows_.push_back(Tensor("aten::clone", {next, Constant({})}));
    return joined;
  }

  const program::OverwritingForm& FormOf(const SlicedStretch::PartOp& op, const Node* node) const {
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const auto form = forms_.find({op.op, i});
      if (form != forms_.end() && NameOf(node->input(i)) == op.overwrites) return *form->second;
    }
    TORCH_INTERNAL_ASSERT(false, "torch_ext: nothing writes over ", op.overwrites);
  }

  // A value that a node reads, older ones as views, and what the loop makes as far as it is asked.
  Value* Argument(Value* value, int dimension, std::vector<Interval> intervals) {
    const auto maker = made_by_.find(value);
    const bool is_list = value->type()->kind() == c10::TypeKind::ListType;
    if (maker == made_by_.end() || (is_alone_ && !is_list)) {
      return Narrowed(value, dimension, intervals);
    }
    const std::vector<Interval>& made = stretch_.ops[maker->second].parts;
    Value* part = part_of_.at(value);
    if (made == intervals) return part;
    for (std::size_t i = 0; i < intervals.size(); ++i) {
      intervals[i].begin -= made[i].begin;
      intervals[i].end -= made[i].begin;
    }
    return Narrowed(part, dimension, intervals);
  }

  // Zeros like the whole of a value, with the part in its place.
  Value* Placed(const std::string& name, Value* part, int dimension,
                const std::vector<Interval>& intervals) {
    const program::Tensor& whole = program_.tensors.at(name);
    Value* none = Constant({});
    Value* zeros = Tensor("aten::zeros", {Constant(whole.shape), Constant(DtypeNamed(whole.dtype)),
                                          none, none, none});
    Tensor("aten::copy_", {Narrowed(zeros, dimension, intervals), part, Constant(false)});
    return zeros;
  }

  // Rows that padding has spoilt go.
  Value* CutToPart(Value* rows, int dimension, const IntList& lengths,
                   const std::vector<PaddedPart>& padded) {
    std::vector<Interval> intervals;
    for (std::size_t i = 0; i < padded.size(); ++i) {
      intervals.push_back({padded[i].offset, padded[i].offset + lengths[i]});
    }
    return Narrowed(rows, dimension, intervals);
  }

  // One number of a constant list depends on the part.
  void SetNumber(const Node* node, const std::string& list, std::size_t place,
                 const IntList& of_parts, std::vector<Value*>& inputs) {
    const std::size_t argument = *node->schema().argumentIndexWithName(list);
    const IntList numbers = torch::jit::toIValue(node->input(argument))->toIntVector();
    std::vector<Value*> values;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      values.push_back(i == place ? OfPart(of_parts) : Constant(numbers[i]));
    }
    inputs[argument] = Numbers("prim::ListConstruct", values);
  }

  void AddAsItWas(Block* block) {
    const WithInsertPoint inside(block);
    std::unordered_map<Value*, Value*> copies;
    const auto copy_of = [&](Value* value) {
      const auto found = copies.find(value);
      return found == copies.end() ? value : found->second;
    };
    for (const SlicedStretch::PartOp& op : stretch_.ops) {
      Node* node = nodes_[op.op];
      Node* copy = graph().insertNode(graph().createClone(node, copy_of));
      copies[node->output(0)] = copy->output(0);
    }
    for (Value* result : results_) block->registerOutput(copies.at(result));
  }

  const bool is_alone_;
  const program::Program& program_;
  const SlicedStretch& stretch_;
  const std::vector<Node*>& nodes_;
  const Probe& probe_;
  const FormsOfArguments& forms_;
  const ValueNames& names_;
  std::unordered_map<const Value*, std::size_t> made_by_;  // places in the stretch
  std::vector<std::pair<Value*, SeenTensor>> older_;
  std::vector<Value*> results_;
  Node* loop_ = nullptr;
  Value* counter_ = nullptr;
  std::vector<Value*> kept_rows_;  // for the next part
  std::unordered_map<const Value*, Value*> part_of_;
  std::map<IntList, Value*> numbers_;
  std::map<std::tuple<Value*, int, IntList, IntList>, Value*> views_;
};

}  // namespace

ValueNames NamesOf(const std::vector<Node*>& nodes) {
  ValueNames names;
  for (Node* node : nodes) {
    for (const Value* value : ReadValues(node)) names[value] = value->debugName();
    for (const Value* value : node->outputs()) names[value] = value->debugName();
  }
  return names;
}

Node* ApplyStretch(const program::Program& program, const SlicedStretch& stretch,
                   const std::vector<Node*>& nodes, const Probe& probe,
                   const FormsOfArguments& forms, ValueNames& names, Value* may_run, Trial trial,
                   const VisitPart& visit) {
  Node* first = nodes[stretch.ops.front().op];
  Node* last = nodes[stretch.ops.back().op];
  // In a trial all nodes stay: other stretches take in parts what runs ahead of this one.
  if (trial == Trial::kNone) {
    for (const program::OpId v : stretch.ahead) nodes[v]->moveBefore(first);
  }
  Graph& graph = *first->owningGraph();
  const WithInsertPoint behind(last->next());
  StretchBuilder builder(graph, program, stretch, nodes, probe, forms, names, trial);
  Node* choice = builder.Build(may_run, visit);
  if (trial != Trial::kNone) return choice;
  Node* before = choice;
  for (const program::OpId v : stretch.behind) {
    nodes[v]->moveAfter(before);
    before = nodes[v];
  }
  const std::vector<Value*> results = builder.results();
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::vector<torch::jit::Use> uses = results[i]->uses();
    for (const torch::jit::Use& use : uses) {
      const Node* user = use.user;
      while (user->owningBlock() != choice->owningBlock()) user = user->owningBlock()->owningNode();
      if (user->isAfter(choice)) use.user->replaceInput(use.offset, choice->output(i));
    }
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    names[choice->output(i)] = names.at(results[i]);
    choice->output(i)->copyMetadata(results[i]);
  }
  for (auto op = stretch.ops.rbegin(); op != stretch.ops.rend(); ++op) nodes[op->op]->destroy();
  graph.lint();
  return choice;
}

}  // namespace torch_ext::jit
