#include "program/levers/slice_facts.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>

namespace torch_ext::program {
namespace {

// Two ops with equal texts are called alike.
std::string CallText(const Program& program, const Op& op) {
  std::string text = op.oper + ' ' + std::to_string(op.workspace_bytes);
  const auto add_tensors = [&](const std::vector<std::string>& values) {
    for (const std::string& value : values) {
      const auto tensor = program.tensors.find(value);
      if (tensor == program.tensors.end()) continue;
      text += ' ' + tensor->second.dtype + (tensor->second.fills_buffer ? "[" : "(");
      for (const std::int64_t size : tensor->second.shape) text += std::to_string(size) + ',';
      if (!tensor->second.strides.empty()) text += "by ";
      for (const std::int64_t stride : tensor->second.strides) text += std::to_string(stride) + ',';
    }
    text += ';';
  };
  add_tensors(op.inputs);
  add_tensors(op.outputs);
  for (const auto& [name, constant] : op.constants) {
    text += name + '=' +
            std::visit([](const auto& value) { return std::to_string(value); }, constant) + ' ';
  }
  for (const std::optional<Slicing>& slicing : op.slicings) {
    text += '/';
    if (!slicing) continue;
    for (const auto& [value, need] : slicing->needs) {
      for (const std::int64_t number :
           {std::int64_t{need.dimension}, need.step, need.per, need.before, need.extent}) {
        text += std::to_string(number) + ',';
      }
    }
  }
  return text;
}

// An element takes 8 bytes at most.
std::int64_t MostBytes(const Tensor& tensor) {
  return 8 * NumElements(tensor.shape);
}

// Of the values in which parts are placed, and of what the op makes of them.
std::int64_t PlacedBytes(const Program& program, OpId v, int dimension) {
  const Op& op = program.ops[v];
  std::int64_t bytes = MostBytes(program.tensors.at(op.outputs[0]));
  for (const auto& [value, need] : op.slicings[dimension]->needs) {
    bytes += MostBytes(program.tensors.at(value));
  }
  return bytes;
}

}  // namespace

std::int64_t Scaled(std::int64_t bytes, std::int64_t length, std::int64_t size) {
  return static_cast<std::int64_t>(static_cast<double>(bytes) * static_cast<double>(length) /
                                   static_cast<double>(size));
}

SliceFacts::SliceFacts(const Program& program) {
  std::unordered_map<std::string, OpId> first;
  for (std::size_t v = 0; v < program.ops.size(); ++v) {
    const auto op = static_cast<OpId>(v);
    twin_of_.push_back(first.emplace(CallText(program, program.ops[v]), op).first->second);
  }
}

void SliceFacts::Learn(const Part& part, Fact fact) {
  Part key = Twin(part);
  key.length = 0;
  ByLength& known = facts_[key];
  const auto [found, is_new] = known.emplace(part.length, fact);
  if (is_new) return;
  found->second.keeps_bits &= fact.keeps_bits;
  found->second.workspace_bytes = std::max(found->second.workspace_bytes, fact.workspace_bytes);
}

const SliceFacts::ByLength* SliceFacts::Find(const Part& part) const {
  Part key = Twin(part);
  key.length = 0;
  const auto found = facts_.find(key);
  return found == facts_.end() ? nullptr : &found->second;
}

bool SliceFacts::Knows(const Part& part) const {
  const ByLength* known = Find(part);
  return known != nullptr && known->contains(part.length);
}

SliceFacts::Part SliceFacts::Twin(Part part) const {
  part.op = twin_of_[part.op];
  return part;
}

bool SliceFacts::MayKeepBits(Part part) const {
  for (const bool reads_older : {false, true}) {
    part.reads_older = reads_older;
    const ByLength* known = Find(part);
    if (known == nullptr) continue;
    const auto fact = known->find(part.length);
    if (fact != known->end() && !fact->second.keeps_bits) return false;
  }
  return true;
}

std::vector<OpId> SliceFacts::OpsOfOtherBits() const {
  std::vector<OpId> ops;
  for (const auto& [key, known] : facts_) {
    const auto differs = [](const auto& fact) { return !fact.second.keeps_bits; };
    if (std::ranges::any_of(known, differs)) ops.push_back(key.op);
  }
  return ops;
}

std::vector<SliceFacts::Fact> SliceFacts::Known(OpId op) const {
  std::vector<Fact> all;
  for (const auto& [key, known] : facts_) {
    if (key.op != twin_of_[op]) continue;
    for (const auto& [length, fact] : known) all.push_back(fact);
  }
  return all;
}

std::int64_t SliceFacts::WorkspaceBytes(const Program& program, const Part& part) const {
  const std::int64_t whole_bytes = program.ops[part.op].workspace_bytes;
  if (part.is_placed) return whole_bytes + PlacedBytes(program, part.op, part.dimension);
  const std::int64_t length = part.length;
  const std::int64_t size =
      program.tensors.at(program.ops[part.op].outputs[0]).shape[part.dimension];
  const ByLength* found = Find(part);
  Part other = part;
  other.reads_older = !part.reads_older;
  if (found == nullptr) found = Find(other);
  if (found == nullptr) return Scaled(whole_bytes, length, size);
  const ByLength& known = *found;
  const auto above = known.lower_bound(length);
  if (above != known.end() && above->first == length) return above->second.workspace_bytes;
  const std::pair<std::int64_t, std::int64_t> high =
      above == known.end() ? std::pair(size, whole_bytes)
                           : std::pair(above->first, above->second.workspace_bytes);
  if (above == known.begin()) {
    return above == known.end() ? Scaled(high.second, length, high.first) : high.second;
  }
  const auto low = std::prev(above);
  return low->second.workspace_bytes + Scaled(high.second - low->second.workspace_bytes,
                                              length - low->first,
                                              std::max<std::int64_t>(1, high.first - low->first));
}

}  // namespace torch_ext::program
