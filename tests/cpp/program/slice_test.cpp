#include "program/levers/slice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "program/levers/overwrite.h"
#include "program/lower.h"
#include "sched/simulate.h"
#include "support/program_oracle.h"

namespace torch_ext::program {
namespace {

using test::Cases;
using test::Random;

// --- programs on small matrices of numbers
// --------------------------------------------------------

// A random program whose values are matrices. Each op reads of each argument what its slicings say,
// and nothing else: see Machine.
Program RandomSliceable(std::uint64_t seed) {
  Random random(seed);
  Program program;
  std::vector<std::string> values;
  const auto add_value = [&](const std::string& name, BufferId buffer,
                             std::vector<std::int64_t> shape) {
    program.tensors[name] = {std::move(shape), "", buffer, true};
    values.push_back(name);
  };
  const auto add_buffer = [&](const std::string& name, const std::vector<std::int64_t>& shape,
                              bool is_input) {
    const std::int64_t element_bytes = 8 * random.Between(1, 3);
    program.buffers.push_back({.name = name, .bytes = shape[0] * shape[1] * element_bytes});
    program.buffers.back().is_input = is_input;
    return static_cast<BufferId>(program.buffers.size()) - 1;
  };
  const std::vector<std::int64_t> shape{random.Between(2, 6), random.Between(2, 4)};
  program.run_elements = random.Between(2, 5);
  program.most_placed = random.Chance(50) ? 0 : 100;
  for (int i = 0; i < 2; ++i) {
    const std::string name = "in" + std::to_string(i);
    add_value(name, add_buffer(name, shape, true), shape);
  }
  const auto num_ops = static_cast<OpId>(random.Between(3, 6));
  for (OpId v = 0; v < num_ops; ++v) {
    Op& op = program.ops.emplace_back();
    op.name = "op" + std::to_string(v);
    op.oper = "test::op";
    op.workspace_bytes = random.Between(0, 3) * 8;
    const bool is_in_place = random.Chance(20), is_view = !is_in_place && random.Chance(15);
    const std::string result = "v" + std::to_string(v);
    const std::size_t num_args = is_in_place || is_view ? 1 : random.Between(1, 2);
    while (op.inputs.size() < num_args) {
      // Recent values make longer stretches.
      const std::size_t recent = std::min<std::size_t>(values.size(), random.Between(1, 3));
      const std::string& value =
          values[random.Chance(75) ? values.size() - recent
                                   : random.Between(0, static_cast<int>(values.size()) - 1)];
      if (std::ranges::count(op.inputs, value) == 0) op.inputs.push_back(value);
      if (values.size() == 1) break;
    }
    op.outputs = {result};
    for (const std::string& value : op.inputs) {
      const BufferId b = program.tensors[value].buffer;
      if (std::ranges::count(op.reads, b) == 0) op.reads.push_back(b);
    }
    if (is_in_place || is_view) {
      const BufferId b = program.tensors[op.inputs[0]].buffer;
      if (program.buffers[b].is_input && is_in_place) op.effects.writes_outside = true;
      add_value(result, b, shape);
    } else {
      add_value(result, add_buffer(result, shape, false), shape);
      op.writes = {program.tensors[result].buffer};
    }
    for (int d = 0; d < 2; ++d) {
      Slicing slicing{.changes_argument = is_in_place, .may_be_view = is_view};
      for (const std::string& value : op.inputs) {
        Need need{.dimension = d};
        if (!is_in_place && !is_view && random.Chance(30)) {
          need.before = random.Between(0, 1);
          need.extent = need.before + random.Between(1, 2);
        }
        if (is_in_place || is_view || random.Chance(85)) slicing.needs.push_back({value, need});
      }
      const bool is_sliceable = !slicing.needs.empty() && random.Chance(90);
      op.slicings.push_back(is_sliceable ? std::optional(slicing) : std::nullopt);
    }
    const auto is_same_in = [&](const std::string& value, int d) {
      const auto is_same = [&](const auto& need) {
        return need.first == value && need.second == Need{.dimension = d};
      };
      return op.slicings[d] && std::ranges::any_of(op.slicings[d]->needs, is_same);
    };
    // Element by element a kernel may mind runs.
    const bool is_elementwise = std::ranges::all_of(op.inputs, [&](const std::string& value) {
      return is_same_in(value, 0) && is_same_in(value, 1);
    });
    if (is_elementwise && !is_view && random.Chance(50)) {
      for (std::optional<Slicing>& slicing : op.slicings) slicing->minds_runs = true;
    }
    // And the result may take the place of an argument.
    for (const std::string& value : op.inputs) {
      const BufferId b = program.tensors[value].buffer;
      const auto shares = [&](const std::string& other) {
        return other != value && program.tensors[other].buffer == b;
      };
      if (op.writes.empty() || !is_same_in(value, 0) || !is_same_in(value, 1)) continue;
      if (std::ranges::none_of(op.inputs, shares)) {
        program.overwritable.push_back({v, op.writes[0], b});
      }
    }
    // Writers and readers of one memory keep their order.
    for (OpId u = 0; u < v; ++u) {
      const auto shares = [&](BufferId b) {
        const Op& other = program.ops[u];
        return std::ranges::count(other.reads, b) + std::ranges::count(other.writes, b) > 0;
      };
      const auto changes = [&](const Op& other) {
        return std::ranges::any_of(other.slicings, [](const std::optional<Slicing>& s) {
          return s && s->changes_argument;
        });
      };
      if ((is_in_place || changes(program.ops[u])) && std::ranges::any_of(op.reads, shares)) {
        program.conflicts.push_back({u, v});
      }
    }
  }
  program.results = {values.back()};
  if (random.Chance(40)) program.results.push_back(values[values.size() - 2]);
  for (const std::string& value : program.results) {
    Buffer& buffer = program.buffers[program.tensors[value].buffer];
    buffer.kept = true;
  }
  return program;
}

// A matrix, or a view of an interval of one. Indices are those of the whole.
struct Matrix {
  std::shared_ptr<std::vector<std::int64_t>> numbers;
  std::int64_t stride = 0;
  Interval rows, columns;                        // that may be looked at
  std::int64_t first_row = 0, first_column = 0;  // where the memory begins

  std::int64_t& At(std::int64_t row, std::int64_t column) const {
    if (row < rows.begin || row >= rows.end || column < columns.begin || column >= columns.end) {
      throw std::out_of_range("an index that is not in the part");
    }
    return (*numbers)[(row - first_row) * stride + column - first_column];
  }
  Matrix Narrow(int dimension, Interval interval) const {
    Matrix view = *this;
    (dimension == 0 ? view.rows : view.columns) = interval;
    return view;
  }
};

Matrix NewMatrix(Interval rows, Interval columns) {
  auto numbers = std::make_shared<std::vector<std::int64_t>>(rows.length() * columns.length(), -1);
  return {numbers, columns.length(), rows, columns, rows.begin, columns.begin};
}

// Runs programs with numbers.
class Machine {
 public:
  explicit Machine(const Program& program) : program_(program) {
    std::int64_t number = 1;
    for (const auto& [name, tensor] : program.tensors) {
      if (!program.buffers[tensor.buffer].is_input || !name.starts_with("in")) continue;
      Matrix matrix = NewMatrix({0, tensor.shape[0]}, {0, tensor.shape[1]});
      for (std::int64_t& n : *matrix.numbers) n = number++;
      values_[name] = matrix;
    }
  }

  void Run(OpId v) {
    const Op& op = program_.ops[v];
    const std::vector<std::int64_t>& shape = program_.tensors.at(op.outputs[0]).shape;
    std::vector<Matrix> arguments;
    for (const std::string& value : op.inputs) arguments.push_back(values_.at(value));
    values_[op.outputs[0]] = Made(v, {0, shape[0]}, {0, shape[1]}, arguments);
  }

  void Run(const SlicedStretch& stretch) {
    for (const OpId v : stretch.ahead) Run(v);
    std::map<std::string, Matrix> results;
    for (const std::string& value : stretch.results) {
      const std::vector<std::int64_t>& shape = program_.tensors.at(value).shape;
      results[value] = NewMatrix({0, shape[0]}, {0, shape[1]});
    }
    std::map<std::string, Matrix> before;  // parts that were kept, as they were then
    for (std::size_t k = 0; k < stretch.ops.back().parts.size(); ++k) {
      std::map<std::string, Matrix> parts, kept;
      for (const SlicedStretch::PartOp& part_op : stretch.ops) {
        const Op& op = program_.ops[part_op.op];
        const Slicing& slicing = *op.slicings[part_op.dimension];
        const Interval part = part_op.Computed()[k];
        std::vector<Matrix> arguments;
        for (const std::string& value : op.inputs) {
          const auto need =
              std::ranges::find(slicing.needs, value, &std::pair<std::string, Need>::first);
          if (need == slicing.needs.end()) {
            arguments.push_back(values_.at(value));  // older: parts have no whole
            continue;
          }
          const std::int64_t size = program_.tensors.at(value).shape[need->second.dimension];
          const Matrix& matrix = parts.contains(value) ? parts.at(value) : values_.at(value);
          arguments.push_back(matrix.Narrow(need->second.dimension, *need->second.Of(part, size)));
        }
        const std::vector<std::int64_t>& shape = program_.tensors.at(op.outputs[0]).shape;
        const std::vector<Matrix> parts_of_arguments = arguments;
        if (part_op.is_placed) PlaceAll(op, slicing, arguments);
        const bool in_rows = part_op.dimension == 0;
        const Interval rows = in_rows ? part : Interval{0, shape[0]};
        const Interval columns = in_rows ? Interval{0, shape[1]} : part;
        if (part_op.is_placed) {
          const Matrix whole = Made(part_op.op, {0, shape[0]}, {0, shape[1]}, arguments);
          const Matrix part =
              slicing.changes_argument ? parts_of_arguments[0] : NewMatrix(rows, columns);
          Copy(whole.Narrow(0, rows).Narrow(1, columns), part);
          parts[op.outputs[0]] = part;
        } else if (part_op.overwrites.empty()) {
          parts[op.outputs[0]] = Made(part_op.op, rows, columns, arguments);
        } else {
          const Matrix& over = parts.at(part_op.overwrites);
          Make(part_op.op, arguments, over);
          parts[op.outputs[0]] = over;
        }
        if (part_op.keeps_rows) {
          Matrix& value = parts.at(op.outputs[0]);
          value = Joined(before[op.outputs[0]], value, part_op.dimension, part_op.parts[k]);
          kept[op.outputs[0]] = Joined({}, value, part_op.dimension, part_op.parts[k]);
        }
        const Matrix& made = parts.at(op.outputs[0]);
        const auto result = results.find(op.outputs[0]);
        if (result != results.end()) Copy(made, result->second);
      }
      before = std::move(kept);
    }
    for (const SlicedStretch::PartOp& op : stretch.ops) {
      values_.erase(program_.ops[op.op].outputs[0]);
    }
    for (auto& [value, matrix] : results) values_[value] = matrix;
    for (const OpId v : stretch.behind) Run(v);
  }

  std::vector<std::int64_t> Results() const {
    std::vector<std::int64_t> all;
    for (const std::string& value : program_.results) {
      const Matrix& matrix = values_.at(value);
      all.insert(all.end(), matrix.numbers->begin(), matrix.numbers->end());
    }
    return all;
  }

 private:
  static void Copy(const Matrix& from, const Matrix& to) {
    for (std::int64_t i = from.rows.begin; i < from.rows.end; ++i) {
      for (std::int64_t j = from.columns.begin; j < from.columns.end; ++j) {
        to.At(i, j) = from.At(i, j);
      }
    }
  }

  // New memory with those rows: the last from `rows`, and others from `before`.
  static Matrix Joined(const Matrix& before, const Matrix& rows, int dimension, Interval all) {
    const Interval have = dimension == 0 ? rows.rows : rows.columns;
    const Matrix joined = dimension == 0 ? NewMatrix(all, rows.columns) : NewMatrix(rows.rows, all);
    if (all.begin < have.begin) {
      Copy(before.Narrow(dimension, {all.begin, have.begin}), joined);
    }
    Copy(rows, joined);
    return joined;
  }

  // Each part that is needed in its place, in zeros.
  void PlaceAll(const Op& op, const Slicing& slicing, std::vector<Matrix>& arguments) const {
    for (std::size_t a = 0; a < arguments.size(); ++a) {
      const auto is_it = [&](const auto& need) { return need.first == op.inputs[a]; };
      if (std::ranges::none_of(slicing.needs, is_it)) continue;
      const std::vector<std::int64_t>& shape = program_.tensors.at(op.inputs[a]).shape;
      const Matrix placed = NewMatrix({0, shape[0]}, {0, shape[1]});
      std::ranges::fill(*placed.numbers, 0);
      Copy(arguments[a], placed);
      arguments[a] = placed;
    }
  }

  // What an element depends on, along one dimension of the argument.
  Interval Region(const Op& op, const std::string& value, int dimension, std::int64_t index) const {
    const std::int64_t size = program_.tensors.at(value).shape[dimension];
    if (!op.slicings[dimension]) return {0, size};
    for (const auto& [name, need] : op.slicings[dimension]->needs) {
      if (name == value) return need.Of({index, index + 1}, size).value_or(Interval{0, 0});
    }
    return {0, size};
  }

  Matrix Made(OpId v, Interval rows, Interval columns, const std::vector<Matrix>& arguments) const {
    const Op& op = program_.ops[v];
    const bool changes = op.writes.empty() && std::ranges::any_of(op.slicings, [](const auto& s) {
                           return s && s->changes_argument;
                         });
    if (op.writes.empty() && !changes) {
      return arguments[0].Narrow(0, rows).Narrow(1, columns);  // a view
    }
    const Matrix made =
        changes ? arguments[0].Narrow(0, rows).Narrow(1, columns) : NewMatrix(rows, columns);
    Make(v, arguments, made);
    return made;
  }

  void Make(OpId v, const std::vector<Matrix>& arguments, const Matrix& made) const {
    const Op& op = program_.ops[v];
    const bool minds_runs = op.slicings[0] && op.slicings[0]->minds_runs;
    const bool is_one_run = IsOneRun(made) && std::ranges::all_of(arguments, [](const Matrix& m) {
                              return IsOneRun(m);
                            });
    for (std::int64_t i = made.rows.begin; i < made.rows.end; ++i) {
      for (std::int64_t j = made.columns.begin; j < made.columns.end; ++j) {
        std::int64_t number = v + 1;
        if (minds_runs && IsAtTheEnd(made, i, j, is_one_run)) number += 500;
        for (std::size_t a = 0; a < arguments.size(); ++a) {
          const Interval along = Region(op, op.inputs[a], 0, i);
          const Interval across = Region(op, op.inputs[a], 1, j);
          for (std::int64_t r = along.begin; r < along.end; ++r) {
            for (std::int64_t c = across.begin; c < across.end; ++c) {
              number = (number * 31 + arguments[a].At(r, c) + (r - i) * 7 + (c - j)) % 1000003;
            }
          }
        }
        made.At(i, j) = number;
      }
    }
  }

  static bool IsOneRun(const Matrix& matrix) {
    return matrix.columns.length() == matrix.stride || matrix.rows.length() == 1;
  }

  // Of a run, which is all of the matrix or one row.
  bool IsAtTheEnd(const Matrix& made, std::int64_t i, std::int64_t j, bool is_one_run) const {
    const std::int64_t width = made.columns.length();
    const std::int64_t size = is_one_run ? made.rows.length() * width : width;
    const std::int64_t before = is_one_run ? (i - made.rows.begin) * width : 0;
    return before + j - made.columns.begin >= size / program_.run_elements * program_.run_elements;
  }

  const Program& program_;
  std::map<std::string, Matrix> values_;
};

sched::Order OriginalOrder(const Program& program) {
  sched::Order order(program.ops.size());
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<std::int64_t> Numbers(const Program& program, const std::vector<Stretch>& stretches) {
  Machine machine(program);
  const SliceFacts nothing(program);
  std::size_t next = 0;
  for (std::size_t at = 0; at < program.ops.size();) {
    if (next < stretches.size() && stretches[next].ops[0] == static_cast<OpId>(at)) {
      machine.Run(*Sliced(program, stretches[next], nothing));
      at += stretches[next++].ops.size();
    } else {
      machine.Run(static_cast<OpId>(at++));
    }
  }
  return machine.Results();
}

std::string Shown(const Program& program, std::uint64_t seed) {
  std::string text = test::Shown(program, seed);
  for (const Op& op : program.ops) {
    text += op.outputs[0] + " =";
    for (const std::string& value : op.inputs) text += " " + value;
    for (int d = 0; d < 2; ++d) {
      text += op.slicings[d] ? " |" : " | whole";
      if (!op.slicings[d]) continue;
      if (op.slicings[d]->changes_argument) text += " in place";
      if (op.slicings[d]->minds_runs) text += " minds runs";
      for (const auto& [value, need] : op.slicings[d]->needs) {
        text += " " + value + "-" + std::to_string(need.before) + "+" + std::to_string(need.extent);
      }
    }
    text += "\n";
  }
  return text;
}

// Does some op of it make what no other needs, beside the last?
bool IsAnyAlongside(const Program& program, const SlicedStretch& stretch) {
  for (std::size_t i = 0; i + 1 < stretch.ops.size(); ++i) {
    const std::string& result = program.ops[stretch.ops[i].op].outputs[0];
    const auto reads = [&](const SlicedStretch::PartOp& op) {
      return std::ranges::count(program.ops[op.op].inputs, result) > 0;
    };
    if (std::none_of(stretch.ops.begin() + i + 1, stretch.ops.end(), reads)) return true;
  }
  return false;
}

bool KeepsAny(const SlicedStretch& stretch) {
  return std::ranges::any_of(stretch.ops, &SlicedStretch::PartOp::keeps_rows);
}

// What is claimed of the peak of a program with one stretch.
std::int64_t HillOf(const sched::Profile& profile, std::size_t begin, const SlicedStretch& sliced) {
  const std::int64_t before_bytes =
      begin == 0 ? profile.start_bytes : profile.valley_bytes[begin - 1];
  return before_bytes + sliced.taken_bytes;
}

std::int64_t HillWith(const Program& program, const Stretch& stretch, const SlicedStretch& sliced) {
  const sched::Profile profile = sched::Simulate(Lower(program), OriginalOrder(program));
  const std::size_t begin = stretch.ops[0], end = begin + stretch.ops.size();
  std::int64_t hill_bytes = HillOf(profile, begin, sliced);
  for (std::size_t place = 0; place < program.ops.size(); ++place) {
    if (place < begin || place >= end) hill_bytes = std::max(hill_bytes, profile.hill_bytes[place]);
  }
  return hill_bytes;
}

// What a part takes at most, op by op: who reads a piece of memory last lets it go.
std::int64_t PeakOfParts(const Program& program, const SlicedStretch& stretch) {
  const SliceFacts nothing(program);
  std::int64_t peak_bytes = 0, kept_bytes = 0;
  for (const SlicedStretch::PartOp& op : stretch.ops) {
    std::int64_t most = 0;
    for (std::size_t k = 1; op.keeps_rows && k < op.parts.size(); ++k) {
      most = std::max(most, op.parts[k - 1].end - op.parts[k].begin);
    }
    const Tensor& tensor = program.tensors.at(program.ops[op.op].outputs[0]);
    kept_bytes += program.buffers[tensor.buffer].bytes * most / tensor.shape[op.dimension];
  }
  for (std::size_t k = 0; k < stretch.ops[0].parts.size(); ++k) {
    std::map<BufferId, std::int64_t> live, joined;  // `joined`: of views, beside what they show
    for (std::size_t i = 0; i < stretch.ops.size(); ++i) {
      const SlicedStretch::PartOp& part_op = stretch.ops[i];
      const auto& [v, dimension, shown, reads_older, overwrites, is_placed, keeps_rows] = part_op;
      const std::vector<Interval> parts = part_op.Computed();
      const Op& op = program.ops[v];
      const std::int64_t size = program.tensors.at(op.outputs[0]).shape[dimension];
      if (!overwrites.empty()) {
        auto memory = live.extract(program.tensors.at(overwrites).buffer);
        memory.key() = op.writes[0];
        live.insert(std::move(memory));
      }
      for (const BufferId b : op.writes) {
        live.emplace(b, program.buffers[b].bytes * parts[k].length() / size);
      }
      std::int64_t bytes =
          nothing.WorkspaceBytes(program, {v, dimension, parts[k].length(), false, is_placed});
      for (const auto& [b, held] : live) bytes += held;
      for (const auto& [b, held] : joined) bytes += held;
      bytes += kept_bytes;
      peak_bytes = std::max(peak_bytes, bytes);
      if (keeps_rows) {  // beside the new ones, whose memory may be that of another value
        const BufferId b = program.tensors.at(op.outputs[0]).buffer;
        const std::int64_t each_bytes = program.buffers[b].bytes / size;
        bytes += each_bytes * shown[k].length();
        bytes -= nothing.WorkspaceBytes(program, {v, dimension, parts[k].length()});
        peak_bytes = std::max(peak_bytes, bytes);
        const bool is_view = op.writes.empty() && !op.slicings[dimension]->changes_argument;
        if (is_view) joined[b] += each_bytes * shown[k].length();
        if (!is_view) live[b] = each_bytes * shown[k].length();
      }
      const auto is_dead = [&](const auto& held) {
        for (std::size_t later = i + 1; later < stretch.ops.size(); ++later) {
          const Op& other = program.ops[stretch.ops[later].op];
          if (std::ranges::count(other.reads, held.first) > 0) return false;
        }
        return true;
      };
      std::erase_if(live, is_dead);
      std::erase_if(joined, is_dead);
    }
  }
  return peak_bytes;
}

// The peak of the program with one stretch, by what is read last where; `begin`: place of the
// stretch in the original order, which has `length` ops.
std::int64_t PeakWith(const Program& program, const SlicedStretch& stretch, OpId begin,
                      OpId length) {
  struct Step {
    std::set<BufferId> reads, writes;
    std::int64_t bytes = 0;  // beside them
  };
  std::vector<Step> steps;
  const auto add = [&](OpId v) {
    const Op& op = program.ops[v];
    steps.push_back({{op.reads.begin(), op.reads.end()},
                     {op.writes.begin(), op.writes.end()},
                     op.workspace_bytes});
  };
  for (OpId v = 0; v < begin; ++v) add(v);
  for (const OpId v : stretch.ahead) add(v);
  Step in_parts{.bytes = stretch.part_bytes};
  std::set<BufferId> made;
  for (const SlicedStretch::PartOp& op : stretch.ops) {
    const std::vector<BufferId>& writes = program.ops[op.op].writes;
    made.insert(writes.begin(), writes.end());
  }
  for (const SlicedStretch::PartOp& op : stretch.ops) {
    for (const BufferId b : program.ops[op.op].reads) {
      if (!made.contains(b)) in_parts.reads.insert(b);
    }
  }
  for (const std::string& value : stretch.results) {
    in_parts.writes.insert(program.tensors.at(value).buffer);
  }
  steps.push_back(in_parts);
  for (const OpId v : stretch.behind) add(v);
  for (auto v = begin + length; v < static_cast<OpId>(program.ops.size()); ++v) add(v);

  std::int64_t peak_bytes = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    std::int64_t bytes = steps[i].bytes;
    for (BufferId b = 0; b < static_cast<BufferId>(program.buffers.size()); ++b) {
      const auto touches = [&](const Step& step) {
        return step.reads.contains(b) || step.writes.contains(b);
      };
      const bool has_begun =
          program.buffers[b].is_input || std::any_of(steps.begin(), steps.begin() + i + 1, touches);
      const bool goes_on =
          program.buffers[b].kept || std::any_of(steps.begin() + i, steps.end(), touches);
      if (has_begun && goes_on) bytes += program.buffers[b].bytes;
    }
    peak_bytes = std::max(peak_bytes, bytes);
  }
  return peak_bytes;
}

// --- attacks ------------------------------------------------------------------------------------

TEST(Slice, EveryStretchComputesTheSame) {
  std::uint64_t stretches = 0, with_changes = 0, with_halo = 0, several_results = 0;
  std::uint64_t alongside = 0, with_ops_ahead = 0, with_ops_behind = 0, with_overwrites = 0;
  std::uint64_t with_runs = 0, placed = 0, placed_in_place = 0, keeping = 0, kept_in_place = 0;
  for (std::uint64_t seed = 0; seed < Cases(1500); ++seed) {
    const Program program = RandomSliceable(seed);
    SCOPED_TRACE(Shown(program, seed));
    const SliceFacts nothing(program);
    const std::vector<std::int64_t> expected = Numbers(program, {});
    const sched::Order order = OriginalOrder(program);
    for (std::size_t begin = 0; begin < order.size(); ++begin) {
      for (std::size_t end = begin + 1; end <= order.size(); ++end) {
        for (int dimension = 0; dimension < 2; ++dimension) {
          const std::int64_t size =
              program.tensors.at(program.ops[end - 1].outputs[0]).shape[dimension];
          for (std::int64_t way = 2; way < 2 * size; ++way) {
            const std::int64_t part_size = way / 2;
            const bool keeps_rows = way % 2 == 1;
            const Stretch stretch{
                {order.begin() + begin, order.begin() + end}, dimension, part_size, keeps_rows};
            const std::optional<SlicedStretch> sliced = Sliced(program, stretch, nothing);
            if (!sliced) continue;
            ASSERT_EQ(Numbers(program, {stretch}), expected)
                << begin << " to " << end << " along " << dimension << " by " << part_size
                << (keeps_rows ? " keeping rows" : "");
            ASSERT_GE(sliced->part_bytes, PeakOfParts(program, *sliced));
            ASSERT_LE(PeakWith(program, *sliced, stretch.ops[0], stretch.ops.size()),
                      HillWith(program, stretch, *sliced));
            ++stretches;
            alongside += IsAnyAlongside(program, *sliced);
            with_ops_behind += !sliced->behind.empty();
            with_ops_ahead += std::ranges::any_of(
                sliced->ahead, [&](OpId v) { return !program.ops[v].writes.empty(); });
            several_results += sliced->results.size() > 1;
            for (const SlicedStretch::PartOp& op : sliced->ops) {
              with_overwrites += !op.overwrites.empty();
              const Slicing& slicing = *program.ops[op.op].slicings[op.dimension];
              with_changes += slicing.changes_argument;
              with_runs += slicing.minds_runs && !op.is_placed;
              placed += op.is_placed;
              placed_in_place += op.is_placed && slicing.changes_argument;
              const std::vector<Interval> computed = op.Computed();
              with_halo += computed.size() > 1 && computed[0].end > computed[1].begin;
              keeping += op.keeps_rows;
              kept_in_place += op.keeps_rows && slicing.changes_argument;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(stretches, Cases(1500));
  EXPECT_GT(with_changes, Cases(20));
  EXPECT_GT(with_halo, Cases(100));
  EXPECT_GT(several_results, Cases(20));
  EXPECT_GT(alongside, Cases(100));
  EXPECT_GT(with_ops_behind, Cases(100));
  EXPECT_GT(with_ops_ahead, Cases(100));
  EXPECT_GT(with_overwrites, Cases(100));
  EXPECT_GT(with_runs, Cases(100));
  EXPECT_GT(placed, Cases(100));
  EXPECT_GT(placed_in_place, Cases(10));
  EXPECT_GT(keeping, Cases(100));
  EXPECT_GT(kept_in_place, Cases(10));
}

// All sets of stretches that do not overlap, one after the other.
class BruteForce {
 public:
  explicit BruteForce(const Program& program)
      : program_(program), order_(OriginalOrder(program)), facts_(program) {
    const auto edited = WithOverwrites(program, ForcedOverwrites(program));
    profile_ = sched::Simulate(Lower(edited->program), order_);
  }

  std::int64_t LowestPeak() { return Lowest(0, 0); }

  // The least work with that peak at most.
  std::int64_t LeastWork(std::int64_t peak_bytes, std::size_t begin = 0) {
    if (begin == order_.size()) return 0;
    std::int64_t best = std::numeric_limits<std::int64_t>::max() / 2;
    if (profile_.hill_bytes[begin] <= peak_bytes) best = LeastWork(peak_bytes, begin + 1);
    ForEach(begin, [&](std::size_t end, const SlicedStretch& sliced) {
      if (HillOf(profile_, begin, sliced) > peak_bytes) return;
      best = std::min(best, sliced.extra_bytes + LeastWork(peak_bytes, end));
    });
    return best;
  }

 private:
  std::int64_t Lowest(std::size_t begin, std::int64_t peak_bytes) {
    if (begin == order_.size()) return peak_bytes;
    std::int64_t best = Lowest(begin + 1, std::max(peak_bytes, profile_.hill_bytes[begin]));
    ForEach(begin, [&](std::size_t end, const SlicedStretch& sliced) {
      best = std::min(best, Lowest(end, std::max(peak_bytes, HillOf(profile_, begin, sliced))));
    });
    return best;
  }

  template <typename Visit>
  void ForEach(std::size_t begin, const Visit& visit) {
    for (std::size_t end = begin + 1; end <= order_.size(); ++end) {
      for (int dimension = 0; dimension < 2; ++dimension) {
        const std::int64_t size =
            program_.tensors.at(program_.ops[end - 1].outputs[0]).shape[dimension];
        for (const std::int64_t part_size : PartSizes(size)) {
          for (const bool keeps_rows : {false, true}) {
            const Stretch stretch{{order_.begin() + static_cast<std::ptrdiff_t>(begin),
                                   order_.begin() + static_cast<std::ptrdiff_t>(end)},
                                  dimension,
                                  part_size,
                                  keeps_rows};
            const auto sliced = Sliced(program_, stretch, facts_);
            const bool is_new = !keeps_rows || (sliced && KeepsAny(*sliced));
            if (sliced && is_new) visit(end, *sliced);
          }
        }
      }
    }
  }

  const Program& program_;
  sched::Order order_;
  SliceFacts facts_;
  sched::Profile profile_;
};

TEST(Slice, TheChoiceIsTheBestOfAll) {
  std::uint64_t gains = 0;
  for (std::uint64_t seed = 0; seed < Cases(150); ++seed) {
    const Program program = RandomSliceable(seed);
    SCOPED_TRACE(Shown(program, seed));
    const sched::Order order = OriginalOrder(program);
    const std::int64_t original_bytes = sched::PeakBytes(Lower(program), order);
    const SliceFacts nothing(program);
    const Stretches stretches(program, order, nothing);
    BruteForce all(program);
    const Stretches::Choice lowest = stretches.Lowest();
    ASSERT_EQ(lowest.peak_bytes, all.LowestPeak());
    ASSERT_LE(FloorOf(program).bytes, lowest.peak_bytes);
    gains += lowest.peak_bytes < original_bytes;
    for (const std::int64_t peak_bytes :
         {lowest.peak_bytes, (lowest.peak_bytes + original_bytes) / 2, original_bytes}) {
      const Stretches::Choice choice = stretches.Within(peak_bytes);
      ASSERT_LE(choice.peak_bytes, peak_bytes);
      std::int64_t work = 0;
      for (const Stretch& stretch : choice.stretches) {
        work += Sliced(program, stretch, nothing)->extra_bytes;
      }
      ASSERT_EQ(work, all.LeastWork(peak_bytes));
    }
    ASSERT_EQ(Numbers(program, lowest.stretches), Numbers(program, {}));
  }
  EXPECT_GT(gains, Cases(8));
}

// --- rules --------------------------------------------------------------------------------------

// x -> a -> b, in rows of 4; b is the result.
Program Chain() {
  Program program;
  program.buffers = {{.name = "x", .bytes = 32, .is_input = true},
                     {.name = "a", .bytes = 32},
                     {.name = "b", .bytes = 32, .kept = true}};
  program.tensors = {
      {"x", {{4, 1}, "", 0, true}}, {"a", {{4, 1}, "", 1, true}}, {"b", {{4, 1}, "", 2, true}}};
  for (const auto& [from, to, reads, writes] :
       {std::tuple("x", "a", 0, 1), std::tuple("a", "b", 1, 2)}) {
    Slicing slicing{.needs = {{from, {.dimension = 0}}}};
    Op& op = program.ops.emplace_back();
    op.name = std::string("make_") + to;
    op.oper = "test::op";
    op.inputs = {from};
    op.outputs = {to};
    op.reads = {reads};
    op.writes = {writes};
    op.slicings = {slicing, std::nullopt};
  }
  program.results = {"b"};
  return program;
}

const Stretch kWholeChain{{0, 1}, 0, 1};

// Do all ops of the stretch run in parts?
bool IsStretch(const Program& program, const Stretch& stretch, const SliceFacts& facts) {
  const std::optional<SlicedStretch> sliced = Sliced(program, stretch, facts);
  return sliced && sliced->ops.size() == stretch.ops.size();
}

bool IsStretch(const Program& program) {
  return IsStretch(program, kWholeChain, SliceFacts(program));
}

TEST(Slice, AChainRunsRowByRow) {
  const Program program = Chain();
  const SlicedStretch sliced = *Sliced(program, kWholeChain, SliceFacts(program));
  EXPECT_EQ(sliced.results, std::vector<std::string>{"b"});
  EXPECT_EQ(sliced.result_bytes, 32);
  EXPECT_EQ(sliced.part_bytes, 16);  // a row of each
  EXPECT_EQ(sliced.ops[0].parts.size(), 4);
}

TEST(Slice, EachRuleForbids) {
  EXPECT_TRUE(IsStretch(Chain()));
  Program reached = Chain();
  reached.ops[1].inputs = {"x"};
  reached.ops[1].slicings[0]->needs = {{"x", {.dimension = 0}}};
  EXPECT_FALSE(IsStretch(reached));
  Program whole = Chain();
  whole.ops[1].slicings[0]->needs.clear();
  EXPECT_FALSE(IsStretch(whole));
  Program pure = Chain();
  pure.ops[0].effects.draws_random_numbers = true;
  EXPECT_FALSE(IsStretch(pure));
  Program strides = Chain();
  strides.tensors["b"].fills_buffer = false;
  EXPECT_FALSE(IsStretch(strides));
  Program list = Chain();
  list.tensors["x"].is_list = true;
  EXPECT_FALSE(IsStretch(list));
}

TEST(Slice, PartsAreWrittenOverWhereTheyDie) {
  Program program = Chain();
  program.overwritable = {{1, 2, 1}};
  const auto sliced = [&] { return *Sliced(program, kWholeChain, SliceFacts(program)); };
  EXPECT_EQ(sliced().ops[1].overwrites, "a");
  EXPECT_EQ(sliced().part_bytes, 8);  // a row of one
  program.overwritable[0].others = {0};
  EXPECT_EQ(sliced().ops[1].overwrites, "a");  // it makes the argument
  Op other;
  other.inputs = {"b"};
  other.outputs = {"other"};
  other.reads = {2};
  program.ops.push_back(other);
  program.overwritable[0].others = {2};
  EXPECT_EQ(sliced().ops[1].overwrites, "");
  EXPECT_EQ(sliced().part_bytes, 16);
  program.overwritable[0].others.clear();
  program.buffers[1].bytes *= 2;  // of another dtype
  EXPECT_EQ(sliced().ops[1].overwrites, "");
}

TEST(Slice, WhatIsNotMadeInPartsRunsBehindOrAhead) {
  Program program = Chain();
  program.ops[1].inputs = {"x"};
  program.ops[1].slicings[0]->needs = {{"x", {.dimension = 0}}};
  const auto sliced = [&] { return *Sliced(program, kWholeChain, SliceFacts(program)); };
  EXPECT_EQ(sliced().behind, std::vector<OpId>{0});
  program.conflicts = {{0, 1}};
  EXPECT_EQ(sliced().ahead, std::vector<OpId>{0});
  program = Chain();
  program.ops[1].inputs = {"x", "a"};  // and needs the whole of a
  program.ops[1].slicings[0]->needs = {{"x", {.dimension = 0}}};
  EXPECT_EQ(sliced().ahead, std::vector<OpId>{0});
  EXPECT_EQ(sliced().taken_bytes, 32 + 32 + 8);  // a, b, and a row of b
}

TEST(Slice, WhatIsChangedInPlaceIsTheStretchsOwn) {
  Program program = Chain();  // b is a, changed
  program.buffers.pop_back();
  program.buffers[1].kept = true;
  program.tensors["b"].buffer = 1;
  program.ops[1].writes.clear();
  program.ops[1].slicings[0]->changes_argument = true;
  EXPECT_TRUE(IsStretch(program));
  Program alone = program;
  EXPECT_FALSE(Sliced(alone, {{1}, 0, 1}, SliceFacts(alone)).has_value());
  Program view = program;
  view.ops[0].slicings[0]->may_be_view = true;
  EXPECT_FALSE(IsStretch(view));
  Program read_later = program;
  read_later.results = {"b", "a"};
  EXPECT_FALSE(IsStretch(read_later));
}

TEST(Slice, AListHoldsWhatIsChangedInPlace) {
  // a is changed, and read as it was through a list that is older.
  Program program = Chain();
  program.buffers.push_back({.name = "c", .bytes = 32, .kept = true});
  program.tensors["list"] = {.shape = {4, 1}, .is_list = true};
  program.tensors["a_"] = {{4, 1}, "", 1, true};
  program.tensors["c"] = {{4, 1}, "", 3, true};
  Slicing of_a{.needs = {{"a", {.dimension = 0}}}}, of_list{.needs = {{"list", {.dimension = 0}}}};
  Slicing change = of_a;
  change.changes_argument = true;
  Slicing sum{.needs = {{"b", {.dimension = 0}}, {"a_", {.dimension = 0}}}};
  const Op make_a = program.ops[0];
  program.ops = {make_a,
                 {"list", "prim::ListConstruct", {}, {"a"}, {"list"}},
                 {"change", "test::op_", {}, {"a"}, {"a_"}},
                 {"join", "test::op", {}, {"list"}, {"b"}},
                 {"add", "test::op", {}, {"b", "a_"}, {"c"}}};
  program.ops[1].slicings = {of_a, std::nullopt};
  program.ops[1].reads = program.ops[2].reads = program.ops[3].reads = {1};
  program.ops[2].slicings = {change, std::nullopt};
  program.ops[3].slicings = {of_list, std::nullopt};
  program.ops[3].writes = {2};
  program.ops[4].slicings = {sum, std::nullopt};
  program.ops[4].reads = {2, 1};
  program.ops[4].writes = {3};
  program.buffers[2].kept = false;
  program.results = {"c"};
  EXPECT_FALSE(IsStretch(program, {{0, 1, 2, 3, 4}, 0, 1}, SliceFacts(program)));
  program.ops[2].slicings[0]->changes_argument = false;
  program.ops[2].writes = {1};
  EXPECT_TRUE(Sliced(program, {{0, 1, 2, 3, 4}, 0, 1}, SliceFacts(program)).has_value());
}

TEST(Slice, EndsOfRunsStayWhereTheyAre) {
  Program program = Chain();
  for (auto& [name, tensor] : program.tensors) tensor.shape = {2, 160, 1};
  for (Op& op : program.ops) {
    op.slicings[0]->minds_runs = true;
    op.slicings.push_back(op.slicings[0]);
    op.slicings[1] = op.slicings[0];
    op.slicings[1]->needs[0].second.dimension = 1;
  }
  program.run_elements = 32;
  program.most_placed = 0;
  const auto parts_of = [&](int dimension, std::int64_t part_size) {
    const auto sliced = Sliced(program, {{0, 1}, dimension, part_size}, SliceFacts(program));
    return sliced ? sliced->ops[0].parts : std::vector<Interval>();
  };
  EXPECT_EQ(parts_of(0, 1), (std::vector<Interval>{{0, 1}, {1, 2}}));  // 160 elements each
  EXPECT_EQ(parts_of(1, 64), (std::vector<Interval>{{0, 64}, {64, 128}, {128, 160}}));
  EXPECT_EQ(parts_of(1, 80), (std::vector<Interval>{{0, 96}, {64, 160}}));  // grown
  program.run_elements = 64;
  EXPECT_EQ(parts_of(0, 1)[1], (Interval{0, 2}));
  EXPECT_TRUE(parts_of(1, 64).empty());  // the last ends in the middle of the whole
  for (Op& op : program.ops) op.slicings[1]->runs_from = 1;
  EXPECT_EQ(parts_of(1, 64).size(), 3);
  program.threads = 2;
  EXPECT_TRUE(parts_of(1, 64).empty());
  program.threads = 1;
  program.run_elements = 32;
  program.tensors["a"].dtype = program.tensors["b"].dtype = "bfloat16";
  EXPECT_EQ(parts_of(1, 80), (std::vector<Interval>{{0, 128}, {64, 160}}));
  program.tensors["a"].fills_buffer = false;
  EXPECT_TRUE(parts_of(1, 64).empty());
}

TEST(Slice, SmallOpsWhoseRunsWouldEndElsewhereRunPlaced) {
  Program program = Chain();
  program.ops[1].slicings[0]->minds_runs = true;
  program.run_elements = 3;  // of four rows
  const auto sliced = [&](const SliceFacts& facts) { return *Sliced(program, kWholeChain, facts); };
  const SliceFacts nothing(program);
  EXPECT_FALSE(sliced(nothing).ops[0].is_placed);
  EXPECT_TRUE(sliced(nothing).ops[1].is_placed);
  EXPECT_EQ(sliced(nothing).ops[1].parts.size(), 4);
  EXPECT_EQ(sliced(nothing).part_bytes, 16 + 2 * 4 * 8);  // a row of each, and both whole
  program.overwritable = {{1, 2, 1}};
  EXPECT_EQ(sliced(nothing).ops[1].overwrites, "");
  program.most_placed = 3;
  EXPECT_EQ(sliced(nothing).ops[1].parts[0], (Interval{0, 3}));  // grown
  program.most_placed = 4;
  program.tensors["a"].strides = {2, 1};
  EXPECT_FALSE(IsStretch(program));  // neither grown nor placed
  program.tensors["a"].strides.clear();
  // Whatever else has other bits in parts, too.
  program.ops[1].slicings[0]->minds_runs = false;
  SliceFacts facts(program);
  EXPECT_FALSE(sliced(facts).ops[1].is_placed);
  facts.Learn({1, 0, 1}, {false, 0});
  EXPECT_TRUE(sliced(facts).ops[1].is_placed);
  EXPECT_FALSE(sliced(facts).is_known);
  Program window = program;
  window.ops[1].slicings[0]->needs[0].second.extent = 2;
  EXPECT_FALSE(IsStretch(window, kWholeChain, facts));
  facts.Learn(sliced(facts).ops[1].Longest(), {false, 0});
  EXPECT_FALSE(IsStretch(program, kWholeChain, facts));
}

TEST(Slice, RowsOfThePartBeforeAreKept) {
  Program program = Chain();
  program.ops[1].slicings[0]->needs[0].second = {.dimension = 0, .before = 1, .extent = 3};
  Stretch stretch = kWholeChain;
  const auto first = [&] { return Sliced(program, stretch, SliceFacts(program))->ops[0]; };
  const std::vector<Interval> parts{{0, 2}, {0, 3}, {1, 4}, {2, 4}};
  EXPECT_EQ(first().Computed(), parts);
  stretch.keeps_rows = true;
  EXPECT_EQ(first().parts.size(), 4);
  EXPECT_FALSE(first().keeps_rows);  // the last part has no new row
  stretch.part_size = 2;
  EXPECT_EQ(first().parts, (std::vector<Interval>{{0, 3}, {1, 4}}));
  EXPECT_EQ(first().Computed(), (std::vector<Interval>{{0, 3}, {3, 4}}));
  // Two rows are kept while three are computed, and again joined.
  EXPECT_EQ(Sliced(program, stretch, SliceFacts(program))->part_bytes, 2 * 8 + 3 * 8 + 3 * 8);
  program.tensors["a"].strides = {2, 1};
  EXPECT_FALSE(first().keeps_rows);
  program.tensors["a"].strides.clear();
  program.tensors["a"].fills_buffer = false;
  EXPECT_FALSE(first().keeps_rows);
  program.tensors["a"].fills_buffer = true;
  program.tensors["a"].buffer = -1;  // a view of what is older than the program
  EXPECT_FALSE(first().keeps_rows);
}

TEST(Slice, RunsFollowMemory) {
  Program program = Chain();
  // Memory has the dimension of 6 inside of that of 16.
  for (auto& [name, tensor] : program.tensors) {
    tensor.shape = {2, 6, 16};
    tensor.strides = {96, 1, 6};
  }
  for (Op& op : program.ops) {
    op.slicings.assign(3, op.slicings[0]);
    for (int d = 0; d < 3; ++d) {
      op.slicings[d]->needs[0].second.dimension = d;
      op.slicings[d]->minds_runs = true;
    }
  }
  program.run_elements = 12;
  program.most_placed = 0;
  const auto parts_of = [&](int dimension, std::int64_t part_size) {
    const auto sliced = Sliced(program, {{0, 1}, dimension, part_size}, SliceFacts(program));
    return sliced ? sliced->ops[0].parts : std::vector<Interval>();
  };
  EXPECT_EQ(parts_of(2, 3)[1], (Interval{2, 6}));  // grown to two lines of six
  EXPECT_TRUE(parts_of(1, 3).empty());             // ends within each of sixteen runs
  EXPECT_EQ(parts_of(0, 1).size(), 2);             // 96 elements each
  for (Op& op : program.ops) {
    for (std::optional<Slicing>& slicing : op.slicings) slicing->runs_from = 2;
  }
  EXPECT_EQ(parts_of(0, 1).size(), 2);
  EXPECT_TRUE(parts_of(1, 3).empty());  // planes are not apart in such memory
  program.tensors["a"].strides.clear();
  for (Op& op : program.ops) {
    for (std::optional<Slicing>& slicing : op.slicings) slicing->runs_from = 0;
  }
  EXPECT_TRUE(parts_of(0, 1).empty());  // one run there, another here
}

TEST(Slice, FactsForbidAndTellScratchMemory) {
  Program program = Chain();
  program.ops[0].workspace_bytes = 40;
  program.most_placed = 0;
  SliceFacts facts(program);
  const auto workspace_bytes = [&](std::int64_t length) {
    return facts.WorkspaceBytes(program, {0, 0, length});
  };
  EXPECT_EQ(workspace_bytes(2), 20);
  facts.Learn({0, 0, 1, false}, {true, 20});
  EXPECT_EQ(workspace_bytes(1), 20);
  EXPECT_EQ(workspace_bytes(4), 40);
  EXPECT_EQ(workspace_bytes(2), 26);  // between
  EXPECT_TRUE(IsStretch(program, kWholeChain, facts));
  facts.Learn({0, 0, 1, true}, {false, 20});
  EXPECT_FALSE(IsStretch(program, kWholeChain, facts));
  EXPECT_TRUE(IsStretch(program, {{0, 1}, 0, 2}, facts));
  facts.SetAsking(SliceFacts::Asking::kOfNone);
  EXPECT_TRUE(Stretches(program, {0, 1}, facts).Lowest().stretches.empty());
}

TEST(Slice, OpsThatAreCalledAlikeShareFacts) {
  Program program = Chain();
  SliceFacts facts(program);
  facts.Learn({0, 0, 1, false}, {true, 3});
  EXPECT_TRUE(facts.Knows({1, 0, 1, false}));
  program.ops[1].oper = "test::other";
  SliceFacts others(program);
  others.Learn({0, 0, 1, false}, {true, 3});
  EXPECT_FALSE(others.Knows({1, 0, 1, false}));
}

TEST(Slice, TheFloorIsWhatCannotBeCut) {
  Program program = Chain();
  EXPECT_EQ(FloorOf(program).bytes, 32);
  EXPECT_TRUE(FloorOf(program).is_of_results);
  program.ops[0].slicings[0].reset();
  program.ops[0].workspace_bytes = 5;
  EXPECT_EQ(FloorOf(program).bytes, 69);
  EXPECT_FALSE(FloorOf(program).is_of_results);
  program.overwritable = {{0, 1, 0}};
  EXPECT_EQ(FloorOf(program).bytes, 37);
}

TEST(Slice, PartsMayBePadded) {
  // A window of 3 with padding 1 over 8 rows, in parts of 3, 3 and 2 rows.
  const Need need{.dimension = 0, .before = 1, .extent = 3};
  const PaddedPart first = Padded(need, {0, 3}, 8), middle = Padded(need, {3, 6}, 8),
                   last = Padded(need, {6, 8}, 8);
  EXPECT_EQ(first.argument, (Interval{0, 4}));
  EXPECT_EQ(first.padding, 1);
  EXPECT_EQ(first.offset, 0);
  EXPECT_EQ(middle.argument, (Interval{2, 7}));
  EXPECT_EQ(middle.padding, 0);
  EXPECT_EQ(last.argument, (Interval{5, 8}));
  EXPECT_EQ(last.offset, 1);  // the first row that it makes is spoilt
}

TEST(Slice, SizesOfPartsAreEvenWhereTheyCan) {
  EXPECT_EQ(PartSizes(8), (std::vector<std::int64_t>{4, 3, 2, 1}));
  EXPECT_EQ(PartSizes(7), (std::vector<std::int64_t>{4, 3, 2, 1}));
  EXPECT_EQ(PartSizes(12), (std::vector<std::int64_t>{8, 6, 4, 3, 2, 1}));
  EXPECT_TRUE(PartSizes(1).empty());
}

}  // namespace
}  // namespace torch_ext::program
