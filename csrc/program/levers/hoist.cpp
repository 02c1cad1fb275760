#include "program/levers/hoist.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

namespace torch_ext::program {
namespace {

// The op without its own copies of these arguments.
Op WithoutCopies(const Program& program, OpId v, const std::vector<char>& is_hoisted) {
  Op op = program.ops[v];
  std::vector<BufferId> left, gone;
  for (std::size_t i = 0; i < program.copyable.size(); ++i) {
    const Copy& copy = program.copyable[i];
    if (copy.op != v) continue;
    if (is_hoisted[i]) op.workspace_bytes -= copy.bytes;
    std::vector<BufferId>& read = is_hoisted[i] && !copy.is_read_beside ? gone : left;
    read.insert(read.end(), copy.reads.begin(), copy.reads.end());
  }
  std::erase_if(op.reads, [&](BufferId b) {
    return std::ranges::count(gone, b) > 0 && std::ranges::count(left, b) == 0;
  });
  return op;
}

}  // namespace

std::string NameOfCopy(const Program& program, std::size_t copy) {
  const OpId v = program.copyable[copy].op;
  const auto before = std::ranges::count_if(
      program.copyable.begin(), program.copyable.begin() + static_cast<std::ptrdiff_t>(copy),
      [&](const Copy& other) { return other.op == v; });
  return program.ops[v].name + "/copy" + std::to_string(before);
}

Edited WithHoists(const Program& program, std::span<const std::size_t> hoists) {
  std::vector<char> is_hoisted(program.copyable.size(), 0);
  for (const std::size_t i : hoists) is_hoisted[i] = 1;
  std::vector<std::vector<std::size_t>> hoists_of(program.ops.size());
  for (std::size_t i = 0; i < is_hoisted.size(); ++i) {
    if (is_hoisted[i]) hoists_of[program.copyable[i].op].push_back(i);
  }
  Edited result;
  Program& hoisted = result.program;
  hoisted.buffers = program.buffers;
  std::vector<OpId> place;                                       // of each old op
  std::vector<std::vector<OpId>> copies_of(program.ops.size());  // of each old op
  const auto in_new_places = [&](std::vector<OpId> ops) {
    for (OpId& v : ops) v = place[v];
    return ops;
  };
  for (OpId v = 0; v < static_cast<OpId>(program.ops.size()); ++v) {
    Op op = hoists_of[v].empty() ? program.ops[v] : WithoutCopies(program, v, is_hoisted);
    for (const std::size_t i : hoists_of[v]) {
      const Copy& copy = program.copyable[i];
      const std::string name = NameOfCopy(program, i);
      const auto made = static_cast<BufferId>(hoisted.buffers.size());
      hoisted.buffers.push_back({.name = name, .bytes = copy.bytes, .dtype = copy.dtype});
      copies_of[v].push_back(static_cast<OpId>(hoisted.ops.size()));
      hoisted.ops.push_back({.name = name,
                             .oper = "copy",
                             .label = op.label,
                             .inputs = {copy.value},
                             .outputs = {name},
                             .makers = in_new_places(copy.makers),
                             .reads = copy.reads,
                             .writes = {made}});
      result.old_ops.push_back(OldOpOfCopy(program, i));
      op.reads.push_back(made);
      std::ranges::replace(op.inputs, copy.value, name);
    }
    op.makers = in_new_places(std::move(op.makers));
    place.push_back(static_cast<OpId>(hoisted.ops.size()));
    result.old_ops.push_back(v);
    hoisted.ops.push_back(std::move(op));
  }
  // A copy reads what its op reads, so it must keep the same distance to whoever writes there.
  for (const Conflict& conflict : program.conflicts) {
    const OpId earlier = place[conflict.earlier], later = place[conflict.later];
    hoisted.conflicts.push_back({earlier, later, conflict.by_statistics});
    for (const OpId copy : copies_of[conflict.earlier]) {
      hoisted.conflicts.push_back({copy, later, conflict.by_statistics});
    }
    for (const OpId copy : copies_of[conflict.later]) {
      hoisted.conflicts.push_back({earlier, copy, conflict.by_statistics});
    }
  }
  hoisted.overwritable = program.overwritable;
  for (Overwrite& overwrite : hoisted.overwritable) {
    overwrite.op = place[overwrite.op];
    overwrite.others = in_new_places(std::move(overwrite.others));
  }
  result.new_buffers.resize(program.buffers.size());
  std::iota(result.new_buffers.begin(), result.new_buffers.end(), 0);
  result.old_overwritable.resize(program.overwritable.size());
  std::iota(result.old_overwritable.begin(), result.old_overwritable.end(), 0);
  return result;
}

}  // namespace torch_ext::program
