#include "jit/copyable.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "jit/builder.h"
#include "program/operators/slicing.h"

namespace torch_ext::jit {
namespace {

using torch::jit::Node;
using torch::jit::Value;

constexpr std::size_t kDimensions = 4;  // two of the batch, two of the matrices

// Does matmul copy it? The same question is asked in every call: IsCopied below. Tensors of which
// elements share memory are left alone, for they could not be put back.
bool IsCopied(const SeenTensor& tensor) {
  const std::vector<std::int64_t>& shape = tensor.shape;
  const std::vector<std::int64_t>& strides = tensor.strides;
  return shape.size() == kDimensions && shape[0] != 1 && shape[1] != 1 &&
         program::NumElements(tensor.shape) > 0 && strides[0] != shape[1] * strides[1] &&
         std::ranges::count(strides, 0) == 0;
}

// What the node copies in this run, for its two inputs.
std::array<std::optional<program::Copy>, 2> Seen(Node* node, program::OpId op, const Probe& probe) {
  const NodeProbe& seen = probe.nodes[op];
  std::array<std::optional<program::Copy>, 2> copies;
  if (seen.writes.size() != 1 || !seen.written[0]) return copies;
  const std::int64_t made_bytes = probe.allocations[seen.writes[0]].bytes;
  const std::int64_t element_bytes =
      made_bytes / std::max<std::int64_t>(1, program::NumElements(seen.written[0]->shape));
  std::array<const SeenTensor*, 2> inputs{};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::optional<SeenTensor>& input = SeenBy(node, seen, node->input(i));
    if (!input || input->shape.size() != kDimensions) return copies;
    inputs[i] = &*input;
  }
  std::int64_t copied_bytes = 0;
  for (std::size_t i = 0; i < 2; ++i) {
    const SeenTensor& input = *inputs[i];
    const SeenTensor& other = *inputs[1 - i];
    program::Copy& copy = copies[i].emplace();
    copy.op = op;
    copy.value = node->input(i)->debugName();
    copy.dtype = input.dtype;
    if (IsCopied(input)) copy.bytes = program::NumElements(input.shape) * element_bytes;
    copied_bytes += copy.bytes;
    if (input.allocation >= 0) copy.reads = {input.allocation};
    const bool is_other_copied = IsCopied(other);
    copy.is_read_beside =
        copy.bytes == 0 || (!is_other_copied && other.allocation == input.allocation);
  }
  if (copied_bytes > seen.hill_bytes - made_bytes) return {};  // it does something else
  return copies;
}

}  // namespace

Copyable FindCopyable(const std::vector<Node*>& nodes, const std::vector<Probe>& probes) {
  Copyable found;
  found.copies.resize(probes.size());
  std::unordered_map<const Node*, program::OpId> id_of;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    Node* node = nodes[i];
    id_of.emplace(node, static_cast<program::OpId>(i));
    if (!node->matches("aten::matmul(Tensor self, Tensor other) -> Tensor")) continue;
    std::vector<std::array<std::optional<program::Copy>, 2>> seen;
    for (const Probe& probe : probes) {
      seen.push_back(Seen(node, static_cast<program::OpId>(i), probe));
    }
    for (std::size_t input = 0; input < 2; ++input) {
      std::vector<program::Copy> copies;
      for (auto& by_probe : seen) {
        if (by_probe[input]) copies.push_back(std::move(*by_probe[input]));
      }
      const auto has_bytes = [](const program::Copy& copy) { return copy.bytes > 0; };
      if (copies.size() < probes.size() || std::ranges::none_of(copies, has_bytes)) continue;
      const auto maker = id_of.find(node->input(input)->node());
      for (std::size_t p = 0; p < probes.size(); ++p) {
        if (maker != id_of.end()) copies[p].makers = {maker->second};
        found.copies[p].push_back(std::move(copies[p]));
      }
      found.forms.push_back({node, input});
    }
  }
  return found;
}

HoistedCopies::HoistedCopies(const std::vector<CopyForm>& forms,
                             const std::vector<std::size_t>& hoists)
    : forms_(forms), nodes_(forms.size(), nullptr) {
  for (const std::size_t i : hoists) {
    Node* node = forms[i].node;
    const torch::jit::WithInsertPoint before(node);
    Builder build(node);
    Value* contiguous = build.Constant(static_cast<std::int64_t>(c10::MemoryFormat::Contiguous));
    Value* copy = build.Tensor("aten::contiguous", {node->input(forms[i].input), contiguous});
    node->replaceInput(forms[i].input, copy);
    nodes_[i] = copy->node();
  }
}

namespace {

Value* HasDimensions(Builder& build, Value* tensor) {
  Value* dimensions = build.Number("aten::dim", {tensor});
  return build.Equal(dimensions, build.Constant(static_cast<std::int64_t>(kDimensions)));
}

// Does matmul copy it? See above.
Value* IsCopied(Builder& build, Value* tensor, Value* strides, const OverwriteRules& rules) {
  const auto is_copied = [&] {
    Value* shape = build.Sizes(tensor);
    Value* one = build.Constant(1);
    Value* zero = build.Constant(0);
    const auto at = [&](Value* list, std::int64_t place) {
      return build.Number("aten::__getitem__", {list, build.Constant(place)});
    };
    Value* inner = at(shape, 1);
    Value* distance = build.Number("aten::mul", {inner, at(strides, 1)});
    std::vector<Value*> conditions = {build.Ask("aten::ne", {at(shape, 0), one}),
                                      build.Ask("aten::ne", {inner, one}),
                                      build.Ask("aten::ne", {at(strides, 0), distance})};
    if (!rules.strides) conditions.clear();
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(kDimensions); ++i) {
      conditions.push_back(build.Ask("aten::ne", {at(strides, i), zero}));
    }
    return build.All(conditions);
  };
  return build.If(HasDimensions(build, tensor), c10::BoolType::get(), is_copied,
                  [&] { return build.Constant(false); });
}

struct Hoisted {
  Value* value = nullptr;      // the copy, or what was not copied
  Value* is_copied = nullptr;  // null: it never is
  Value* strides = nullptr;    // before
};

Hoisted FinishCopy(Node* copy, const OverwriteRules& rules) {
  Value* original = copy->input(0);
  const torch::jit::WithInsertPoint before(copy);
  Builder build(copy);
  Hoisted hoisted;
  hoisted.strides = build.Strides(original);
  hoisted.is_copied = IsCopied(build, original, hoisted.strides, rules);
  Value* contiguous = copy->input(1);
  hoisted.value = build.If(
      hoisted.is_copied, c10::TensorType::get(),
      [&] { return build.Tensor("aten::contiguous", {original, contiguous}); },
      [&] { return original; });
  Replace(copy, hoisted.value);
  return hoisted;
}

Value* PutBack(Builder& build, const Hoisted& hoisted) {
  if (hoisted.is_copied == nullptr) return hoisted.value;
  const auto put_back = [&] {
    Value* none = build.Constant({});
    Value* as_it_lay =
        build.Tensor("aten::empty_strided", {build.Sizes(hoisted.value), hoisted.strides,
                                             build.Dtype(hoisted.value), none, none, none});
    return build.Tensor("aten::copy_", {as_it_lay, hoisted.value, build.Constant(false)});
  };
  return build.If(hoisted.is_copied, c10::TensorType::get(), put_back,
                  [&] { return hoisted.value; });
}

void FinishMatmul(Node* node, const std::array<Hoisted, 2>& inputs) {
  const torch::jit::WithInsertPoint before(node);
  Builder build(node);
  const auto multiply = [&](Value* left, Value* right) {
    return build.Tensor("aten::matmul", {left, right});
  };
  Value* are_batches =
      build.All({HasDimensions(build, inputs[0].value), HasDimensions(build, inputs[1].value)});
  Value* product = build.If(
      are_batches, c10::TensorType::get(),
      [&] { return multiply(inputs[0].value, inputs[1].value); },
      [&] {
        Value* left = PutBack(build, inputs[0]);
        Value* right = PutBack(build, inputs[1]);
        return multiply(left, right);
      });
  Replace(node, product);
}

}  // namespace

void HoistedCopies::Finish(const OverwriteRules& rules) {
  std::map<std::size_t, std::array<Hoisted, 2>> by_first_form;  // of each matmul
  for (std::size_t i = 0; i < forms_.size(); ++i) {
    if (nodes_[i] == nullptr) continue;
    std::size_t first = i;
    while (first > 0 && forms_[first - 1].node == forms_[i].node) --first;
    by_first_form[first][forms_[i].input] = FinishCopy(nodes_[i], rules);
  }
  for (auto& [first, inputs] : by_first_form) {
    Node* node = forms_[first].node;
    for (std::size_t i = 0; i < inputs.size(); ++i) inputs[i].value = node->input(i);
    if (rules.sizes) FinishMatmul(node, inputs);
  }
  nodes_.clear();
}

}  // namespace torch_ext::jit
