#include "program/levers/slice.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "program/levers/overwrite.h"
#include "program/lower.h"
#include "sched/simulate.h"

namespace torch_ext::program {
namespace {

// What running an op once more costs beside its bytes, in bytes written in that time.
constexpr std::int64_t kCallBytes = std::int64_t{1} << 14;
// How many numbers a core multiplies while it writes a byte.
constexpr std::int64_t kMultiplicationsPerByte = 4;
constexpr std::int64_t kCallsToPlace = 3;  // zeros, there, and back
constexpr std::int64_t kCallsToKeep = 2;   // to join, and to copy
constexpr std::int64_t kMostParts = 64;
constexpr std::size_t kLongestStretch = 512;  // in ops
// Ops that make something and not in parts; with more of them nearly any run would be a stretch.
constexpr int kMostAside = 16;

std::int64_t SizeOf(const Program& program, OpId op, int dimension) {
  return program.tensors.at(program.ops[op].outputs[0]).shape[dimension];
}

bool IsPure(const Effects& effects) {
  return effects.undeclared.empty() && !effects.is_stateful && !effects.changes_metadata &&
         !effects.draws_random_numbers && !effects.has_side_effect && !effects.is_collective &&
         !effects.writes_outside;
}

std::vector<std::int64_t> StridesOf(const Tensor& tensor) {
  if (!tensor.strides.empty()) return tensor.strides;
  std::vector<std::int64_t> strides(tensor.shape.size(), 1);
  for (std::size_t d = strides.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * std::max<std::int64_t>(tensor.shape[d], 1);
  }
  return strides;
}

// Grows the parts so that elements at the ends of runs are the same as in the whole; false if they
// cannot be. Tensors without gaps are one run, in the order of their memory; a view of a part is a
// run for each index of the dimensions that are outside of its own there. Where runs begin at some
// dimension, that is so in new tensors; in others no more is known than that samples are apart.
bool AlignRuns(const Program& program, const Op& op, const Slicing& slicing, int dimension,
               std::vector<Interval>& parts) {
  if (!slicing.minds_runs) return true;
  const Tensor& result = program.tensors.at(op.outputs[0]);
  bool fill_theirs = result.fills_buffer, are_new = result.strides.empty(), are_alike = true;
  for (const auto& [value, need] : slicing.needs) {
    const Tensor& tensor = program.tensors.at(value);
    fill_theirs &= tensor.fills_buffer;
    are_new &= tensor.strides.empty();
    are_alike &= tensor.shape == result.shape && tensor.strides == result.strides;
  }
  if (slicing.runs_from > 0 && !are_new) return dimension == 0;
  if (dimension < slicing.runs_from) return true;
  if (!fill_theirs || !are_alike) return false;
  const std::vector<std::int64_t> strides = StridesOf(result);
  std::int64_t inner = 1, outer = 1;
  for (int d = slicing.runs_from; d < static_cast<int>(strides.size()); ++d) {
    if (d != dimension) (strides[d] < strides[dimension] ? inner : outer) *= result.shape[d];
  }
  const bool is_short = result.dtype == "float16" || result.dtype == "bfloat16";
  const std::int64_t run = program.run_elements * (is_short ? 2 : 1);
  const std::int64_t size = result.shape[dimension], step = run / std::gcd(run, inner);
  // The last part ends where the whole does, unless runs end elsewhere, too.
  if ((outer > 1 || program.threads > 1) && size % step != 0) return false;
  for (Interval& part : parts) {
    part.begin -= part.begin % step;
    part.end = std::min(size, (part.end + step - 1) / step * step);
  }
  return true;
}

// May the op run placed in parts of that dimension? Each element that a part needs has to have a
// place in the whole of its argument.
bool MayRunPlaced(const Program& program, const Op& op, const Slicing& slicing, int dimension) {
  const auto is_small = [&](const Tensor& tensor) {
    return NumElements(tensor.shape) <= program.most_placed;
  };
  const Tensor& result = program.tensors.at(op.outputs[0]);
  const bool depends_on_part =
      !slicing.padding.empty() || !slicing.sizes.empty() || !slicing.size.empty();
  if (slicing.may_be_view || depends_on_part) return false;
  return is_small(result) && std::ranges::all_of(slicing.needs, [&](const auto& of_value) {
           const auto& [value, need] = of_value;
           const Tensor& tensor = program.tensors.at(value);
           return is_small(tensor) && tensor.strides.empty() && !tensor.is_list &&
                  need == Need{.dimension = need.dimension} &&
                  tensor.shape[need.dimension] == result.shape[dimension];
         });
}

}  // namespace

// A program in an order of its ops, or of some of them.
class Index {
 public:
  Index(const Program& program, const sched::Order& order) : program_(program), order_(order) {
    readers_.resize(program.buffers.size());
    std::vector<std::int32_t> place(program.ops.size(), static_cast<std::int32_t>(order.size()));
    for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<std::int32_t>(i);
    for (std::size_t v = 0; v < program.ops.size(); ++v) {
      for (const std::string& value : program.ops[v].inputs) {
        last_read_[value] = std::max(last_read_[value], place[v]);
      }
      for (const BufferId b : program.ops[v].reads) readers_[b].push_back(place[v]);
      for (const std::string& value : program.ops[v].outputs) {
        made_at_[value] = place[v];
        made_by_[value] = static_cast<OpId>(v);
      }
      AddList(program.ops[v]);
    }
    for (const std::string& value : program.results) {
      last_read_[value] = std::numeric_limits<std::int32_t>::max();
    }
    for (std::vector<std::int32_t>& places : readers_) std::ranges::sort(places);
    for (const Overwrite& overwrite : program.overwritable) AddOverwrite(overwrite);
    conflicts_.resize(order.size() + 1);
    for (const Conflict& conflict : program.conflicts) {
      conflicts_[place[conflict.earlier]].push_back(place[conflict.later]);
    }
    for (const auto& [value, tensor] : program.tensors) {
      if (tensor.buffer >= 0) values_[tensor.buffer].push_back(value);
    }
  }

  const Program& program() const { return program_; }
  OpId OpAt(std::size_t place) const { return order_[place]; }

  bool IsReadFrom(std::size_t place, const std::string& value) const {
    const auto found = last_read_.find(value);
    return found != last_read_.end() && found->second >= static_cast<std::int32_t>(place);
  }

  // The last op before `end` that reads the buffer; `place` if none behind it does.
  std::size_t LastReader(BufferId b, std::size_t place, std::size_t end) const {
    const auto after = std::ranges::lower_bound(readers_[b], static_cast<std::int32_t>(end));
    if (after == readers_[b].begin()) return place;
    return std::max(place, static_cast<std::size_t>(*std::prev(after)));
  }

  // Places of later ops that may touch memory that the op touches, too, one of them writing.
  const std::vector<std::int32_t>& ConflictsOf(std::size_t place) const {
    return conflicts_[place];
  }

  // The argument that the op at `place` may write its result over, if no op from there to `end`
  // reads its memory; empty if there is none.
  std::string OverwritableAt(std::size_t place, std::size_t end) const {
    const auto found = overwritable_.find(order_[place]);
    if (found == overwritable_.end()) return {};
    const BufferId b = program_.tensors.at(found->second).buffer;
    return LastReader(b, place, end) == place ? found->second : std::string();
  }

  // Does nobody read an older value of the memory that the op changes, later than it?
  bool ChangesForAll(std::size_t place, BufferId buffer) const {
    const std::string& result = program_.ops[order_[place]].outputs[0];
    return std::ranges::none_of(values_.at(buffer), [&](const std::string& value) {
      return value != result && IsOlder(value, place) && IsReadFrom(place + 1, value);
    });
  }

 private:
  // Is the value, of memory that the op changes, made before the op is?
  bool IsOlder(const std::string& value, std::size_t place) const {
    const auto made = made_at_.find(value);
    if (made == made_at_.end() || made->second <= static_cast<std::int32_t>(place)) return true;
    if (made->second < static_cast<std::int32_t>(order_.size())) return false;
    // By an op that is not in the order; behind it are those that it is in conflict with.
    return std::ranges::none_of(program_.conflicts, [&](const Conflict& conflict) {
      return conflict.earlier == order_[place] && conflict.later == made_by_.at(value);
    });
  }

  void AddOverwrite(const Overwrite& overwrite) {
    const Op& op = program_.ops[overwrite.op];
    const auto bytes_of = [&](BufferId b) { return program_.buffers[b].bytes; };
    if (bytes_of(overwrite.argument) != bytes_of(overwrite.result)) return;
    const auto touches = [&](OpId other) {
      const Op& it = program_.ops[other];
      return std::ranges::count(it.reads, overwrite.argument) > 0 ||
             std::ranges::count(it.writes, overwrite.argument) > 0;
    };
    if (!std::ranges::all_of(overwrite.others, touches)) return;
    const auto is_argument = [&](const std::string& value) {
      const auto tensor = program_.tensors.find(value);
      return tensor != program_.tensors.end() && tensor->second.buffer == overwrite.argument;
    };
    const auto argument = std::ranges::find_if(op.inputs, is_argument);
    if (argument != op.inputs.end()) overwritable_.emplace(overwrite.op, *argument);
  }

  // A list holds the memory of its tensors.
  void AddList(const Op& op) {
    if (op.outputs.size() != 1) return;
    const auto list = program_.tensors.find(op.outputs[0]);
    if (list == program_.tensors.end() || !list->second.is_list) return;
    for (const std::string& value : op.inputs) {
      values_[program_.tensors.at(value).buffer].push_back(op.outputs[0]);
    }
  }

  const Program& program_;
  const sched::Order& order_;
  std::unordered_map<std::string, std::int32_t> made_at_, last_read_;  // places
  std::unordered_map<std::string, OpId> made_by_;
  std::vector<std::vector<std::int32_t>> readers_;    // of buffers: places
  std::vector<std::vector<std::int32_t>> conflicts_;  // of each place with later ones
  std::unordered_map<BufferId, std::vector<std::string>> values_;
  std::unordered_map<OpId, std::string> overwritable_;
};

namespace {

std::vector<Interval> Cut(std::int64_t size, std::int64_t part_size) {
  std::vector<Interval> parts;
  for (std::int64_t begin = 0; begin < size; begin += part_size) {
    parts.push_back({begin, std::min(begin + part_size, size)});
  }
  return parts;
}

// A stretch that grows towards the start of the order, one op at a time.
class Growing {
 public:
  // The stretch ends before `end`, with the op there is; how it runs is taken from `like`.
  Growing(const Index& index, const SliceFacts& facts, std::size_t end, const Stretch& like)
      : index_(index),
        facts_(facts),
        end_(end),
        part_size_(like.part_size),
        keeps_rows_(like.keeps_rows) {
    const int dimension = like.dimension;
    const Op& last = index.program().ops[index.OpAt(end - 1)];
    if (last.outputs.size() != 1) return;
    const auto tensor = index.program().tensors.find(last.outputs[0]);
    if (tensor == index.program().tensors.end()) return;
    if (dimension >= static_cast<int>(tensor->second.shape.size())) return;
    if (!index.IsReadFrom(end, last.outputs[0])) return;
    size_ = tensor->second.shape[dimension];
    needed_[last.outputs[0]] = {dimension, Cut(size_, part_size_)};
  }

  // Takes the op in front of the others. False: no stretch holds it and all behind it.
  bool Add(std::size_t place) {
    const OpId v = index_.OpAt(place);
    const Op& op = index_.program().ops[v];
    if (!IsPure(op.effects)) return false;
    begins_in_vain_ = false;
    if (op.outputs.size() == 1) {
      const auto needed = needed_.find(op.outputs[0]);
      if (needed != needed_.end() && !whole_.contains(op.outputs[0]) &&
          AddInParts(place, needed->second)) {
        return true;
      }
      if (needed == needed_.end()) {
        const std::optional<NeededParts> parts = PartsAlongside(op);
        if (parts && AddInParts(place, *parts)) return true;
      }
    }
    begins_in_vain_ = op.writes.empty();
    const bool is_heavy = !op.writes.empty() || op.workspace_bytes > 0;
    if (is_heavy && ++heavy_aside_ > kMostAside) return false;
    return AddBehind(place) || AddAhead(place);
  }

  // Does any part need rows that the one before it has?
  bool has_rows_of_two_parts() const { return has_rows_of_two_parts_; }

  // Is the stretch as good without the op that was taken last?
  bool BeginsInVain() const { return begins_in_vain_; }

  bool IsStretch() const {
    if (!to_make_.empty() || !memory_to_make_.empty() || ops_.empty()) return false;
    const bool may_ask = keeps_rows_ ? facts_.may_ask_of_kept_rows() : facts_.may_ask();
    return may_ask || IsKnown();
  }

  // Of what runs ahead and behind all is counted that it makes, and the most that an op takes.
  std::int64_t TakenBytes() const {
    const std::int64_t after_bytes = result_bytes_ + std::max(PartBytes(), behind_.bytes());
    return ahead_.made_bytes + std::max(ahead_.workspace_bytes, after_bytes);
  }
  std::int64_t LeastBytes() const { return result_bytes_ + part_bytes_; }  // of longer ones, too
  std::int64_t ExtraBytes() const { return extra_bytes_; }

  SlicedStretch Build() {
    const std::int64_t part_bytes = PartBytes();
    const bool is_known = IsKnown();
    for (std::size_t i = 0; i < ops_.size(); ++i) ops_[i].reads_older = ReadsOlder(i);
    for (Aside* aside : {&ahead_, &behind_}) std::ranges::reverse(aside->ops);
    std::ranges::reverse(ops_);
    std::ranges::reverse(results_);
    return {.ahead = ahead_.ops,
            .behind = behind_.ops,
            .ops = ops_,
            .results = results_,
            .result_bytes = result_bytes_,
            .part_bytes = part_bytes,
            .taken_bytes = TakenBytes(),
            .extra_bytes = extra_bytes_,
            .is_known = is_known};
  }

 private:
  struct NeededParts {
    int dimension = 0;
    std::vector<Interval> parts;
  };

  bool ReadsOlder(std::size_t i) const { return unmade_inputs_[i] > 0; }

  SliceFacts::Part PartOf(std::size_t i, bool reads_older) const {
    SliceFacts::Part part = ops_[i].Longest();
    part.reads_older = reads_older;
    return part;
  }

  bool IsKnown() const {
    for (std::size_t i = 0; i < ops_.size(); ++i) {
      if (!facts_.Knows(PartOf(i, ReadsOlder(i)))) return false;
    }
    return true;
  }

  // Views of older tensors may cost scratch memory, and are not written over: that is known only
  // where the stretch begins.
  std::int64_t PartBytes() const {
    std::int64_t bytes = part_bytes_;
    for (const std::size_t i : readers_of_older_) {
      bytes = std::max(bytes, hill_bytes_[hill_of_[i]] + older_bytes_[i] + spared_bytes_[i]);
    }
    return bytes + kept_bytes_;
  }

  // The op writes over what is made here, if its parts are the same.
  void DecideOverwrite(const std::string& argument, const std::vector<Interval>& parts,
                       bool is_made_new) {
    const auto found = writers_over_.find(argument);
    if (found == writers_over_.end()) return;
    const std::size_t i = found->second;
    if (is_made_new && parts == ops_[i].Computed()) {
      ops_[i].overwrites = argument;
    } else {
      hill_bytes_[hill_of_[i]] += spared_bytes_[i];
      part_bytes_ = std::max(part_bytes_, hill_bytes_[hill_of_[i]]);
    }
    spared_bytes_[i] = 0;
  }

  // Counts what an op of the stretch reads that is not made yet.
  void AddReader(std::size_t i, const Slicing& slicing) {
    unmade_inputs_.push_back(0);
    for (const auto& [value, need] : slicing.needs) {
      readers_of_[value].push_back(i);
      ++unmade_inputs_[i];
    }
    if (ReadsOlder(i)) readers_of_older_.push_back(i);
    const auto workspace_bytes = [&](bool reads_older) {
      return facts_.WorkspaceBytes(index_.program(), PartOf(i, reads_older));
    };
    older_bytes_.push_back(workspace_bytes(true) - workspace_bytes(false));
  }

  void SetMade(const std::string& value) {
    const auto readers = readers_of_.find(value);
    if (readers == readers_of_.end()) return;
    for (const std::size_t i : readers->second) {
      if (--unmade_inputs_[i] == 0) std::erase(readers_of_older_, i);
    }
  }

  // No part needs the op, but it makes less of what parts make anyway, along the same dimension.
  std::optional<NeededParts> PartsAlongside(const Op& op) const {
    const Program& program = index_.program();
    const std::string& result = op.outputs[0];
    const bool leaves = index_.IsReadFrom(end_, result) || read_behind_.contains(result);
    if (!leaves || whole_.contains(result)) return std::nullopt;
    const auto bytes_of = [&](const std::string& value) -> std::int64_t {
      const auto tensor = program.tensors.find(value);
      if (tensor == program.tensors.end() || tensor->second.buffer < 0) return 0;
      return program.buffers[tensor->second.buffer].bytes;
    };
    for (std::size_t d = 0; d < op.slicings.size(); ++d) {
      const std::vector<std::int64_t>& shape = program.tensors.at(result).shape;
      if (!op.slicings[d] || shape[d] != size_) continue;
      for (const auto& [value, need] : op.slicings[d]->needs) {
        const auto needed = needed_.find(value);
        if (needed == needed_.end() || needed->second.dimension != need.dimension) continue;
        if (whole_.contains(value) || bytes_of(result) >= bytes_of(value)) continue;
        return NeededParts{static_cast<int>(d), Cut(size_, part_size_)};
      }
    }
    return std::nullopt;
  }

  // Ops of the run that are not made in parts.
  struct Aside {
    std::vector<OpId> ops;
    std::set<std::int32_t> places;
    std::int64_t made_bytes = 0, workspace_bytes = 0;

    std::int64_t bytes() const { return made_bytes + workspace_bytes; }
  };

  void Add(std::size_t place, Aside& aside) {
    const Program& program = index_.program();
    const OpId v = index_.OpAt(place);
    aside.ops.push_back(v);
    aside.places.insert(static_cast<std::int32_t>(place));
    for (const BufferId b : program.ops[v].writes) aside.made_bytes += program.buffers[b].bytes;
    aside.workspace_bytes = std::max(aside.workspace_bytes, program.ops[v].workspace_bytes);
  }

  bool AddBehind(std::size_t place) {
    const Op& op = index_.program().ops[index_.OpAt(place)];
    const auto is_read = [&](const std::string& value) {
      return needed_.contains(value) || whole_.contains(value) || to_make_.contains(value);
    };
    if (std::ranges::any_of(op.outputs, is_read)) return false;
    const auto would_pass = [&](std::int32_t later) {
      return later < static_cast<std::int32_t>(end_) && !behind_.places.contains(later);
    };
    if (std::ranges::any_of(index_.ConflictsOf(place), would_pass)) return false;
    read_behind_.insert(op.inputs.begin(), op.inputs.end());
    Add(place, behind_);
    return true;
  }

  bool AddAhead(std::size_t place) {
    const Op& op = index_.program().ops[index_.OpAt(place)];
    const auto is_to_make = [&](const std::string& value) { return to_make_.contains(value); };
    if (std::ranges::any_of(op.outputs, is_to_make)) return false;
    whole_.insert(op.inputs.begin(), op.inputs.end());
    Add(place, ahead_);
    return true;
  }

  bool AddInParts(std::size_t place, NeededParts needed) {
    const Program& program = index_.program();
    const OpId v = index_.OpAt(place);
    const Op& op = program.ops[v];
    const std::string& result = op.outputs[0];
    const int dimension = needed.dimension;
    if (dimension >= static_cast<int>(op.slicings.size()) || !op.slicings[dimension]) return false;
    const Slicing& slicing = *op.slicings[dimension];
    const std::int64_t size = SizeOf(program, v, dimension);
    const bool leaves = index_.IsReadFrom(end_, result) || read_behind_.contains(result);
    if (leaves) Cover(needed.parts, size);
    const bool keeps_rows = keeps_rows_ && GrowToKeepRows(v, dimension, needed.parts);
    std::vector<Interval> computed = keeps_rows ? NewRows(needed.parts) : needed.parts;
    const std::optional<bool> is_placed =
        keeps_rows ? std::optional(false) : IsPlaced(v, dimension, computed);
    if (!is_placed) return false;
    if (!keeps_rows) needed.parts = computed;
    const auto would_pass = [&](std::int32_t later) { return ahead_.places.contains(later); };
    if (std::ranges::any_of(index_.ConflictsOf(place), would_pass)) return false;
    const std::optional<Needs> needs = NeedsOf(slicing, computed);
    if (!needs) return false;
    const Tensor& tensor = program.tensors.at(result);
    const bool is_new = !slicing.may_be_view && (slicing.changes_argument || IsOf(op, tensor));
    if (to_make_.contains(result) && !is_new && !tensor.is_list) return false;
    if (slicing.changes_argument &&
        (tensor.buffer < 0 || !index_.ChangesForAll(place, tensor.buffer))) {
      return false;
    }
    if (leaves &&
        (tensor.buffer < 0 || !tensor.fills_buffer || !leaving_.insert(tensor.buffer).second)) {
      return false;
    }
    // From here on the op is taken.
    to_make_.erase(result);
    if (slicing.changes_argument) to_make_.insert(slicing.needs[0].first);
    if (leaves) {
      memory_to_make_.insert(tensor.buffer);
      results_.push_back(result);
      result_bytes_ += program.buffers[tensor.buffer].bytes;
      extra_bytes_ += program.buffers[tensor.buffer].bytes;
    }
    for (const BufferId b : op.writes) memory_to_make_.erase(b);
    for (const auto& [value, parts] : *needs) AddNeed(value, parts);
    for (const std::string& value : op.inputs) {
      if (std::ranges::find(*needs, value, &Needs::value_type::first) == needs->end()) {
        whole_.insert(value);
      }
    }
    SetMade(result);
    DecideOverwrite(result, needed.parts, keeps_rows || (is_new && !slicing.changes_argument));
    const std::string argument = *is_placed ? "" : index_.OverwritableAt(place, end_);
    if (!argument.empty()) writers_over_.emplace(argument, ops_.size());
    hill_of_.push_back(end_ - 1 - place);
    ops_.push_back({v, dimension, std::move(needed.parts)});
    ops_.back().is_placed = *is_placed;
    ops_.back().keeps_rows = keeps_rows;
    has_rows_of_two_parts_ |= HasRowsOfTwoParts(ops_.back().parts);
    spared_bytes_.push_back(Account(place, ops_.back(), size, !argument.empty()));
    AddReader(ops_.size() - 1, slicing);
    return true;
  }

  static bool HasRowsOfTwoParts(const std::vector<Interval>& parts) {
    const auto meet = [](const Interval& a, const Interval& b) { return b.begin < a.end; };
    return std::ranges::adjacent_find(parts, meet) != parts.end();
  }

  // Can the op compute the new rows of its parts alone? The parts may grow, as far as runs ask.
  bool GrowToKeepRows(OpId v, int dimension, std::vector<Interval>& parts) const {
    const Program& program = index_.program();
    const Op& op = program.ops[v];
    const Tensor& tensor = program.tensors.at(op.outputs[0]);
    if (tensor.buffer < 0 || !tensor.fills_buffer || !tensor.strides.empty()) return false;
    std::vector<Interval> grown = parts;
    if (!AlignRuns(program, op, *op.slicings[dimension], dimension, grown)) return false;
    const auto falls_back = [](const Interval& a, const Interval& b) {
      return b.begin < a.begin || b.end <= a.end;
    };
    if (!HasRowsOfTwoParts(grown)) return false;
    if (std::ranges::adjacent_find(grown, falls_back) != grown.end()) return false;
    std::vector<Interval> computed = NewRows(grown);
    if (IsPlaced(v, dimension, computed) != false || computed != NewRows(grown)) return false;
    parts = std::move(grown);
    return true;
  }

  // Whether the op runs placed; if not, its parts may grow. Nothing if it does not run in parts.
  std::optional<bool> IsPlaced(OpId v, int dimension, std::vector<Interval>& parts) const {
    const Program& program = index_.program();
    const Op& op = program.ops[v];
    const Slicing& slicing = *op.slicings[dimension];
    const auto may_keep_bits = [&](const std::vector<Interval>& of, bool is_placed) {
      return facts_.MayKeepBits({v, dimension, LongestOf(of), false, is_placed});
    };
    std::vector<Interval> grown = parts;
    const bool may_grow = AlignRuns(program, op, slicing, dimension, grown) &&
                          may_keep_bits(grown, /*is_placed=*/false);
    if (may_grow && grown == parts) return false;
    if (MayRunPlaced(program, op, slicing, dimension) && may_keep_bits(parts, /*is_placed=*/true)) {
      return true;
    }
    parts = std::move(grown);
    return may_grow ? std::optional(false) : std::nullopt;
  }

  using Needs = std::vector<std::pair<std::string, NeededParts>>;

  std::optional<Needs> NeedsOf(const Slicing& slicing, const std::vector<Interval>& parts) const {
    Needs needs;
    for (const auto& [value, need] : slicing.needs) {
      const std::int64_t size = index_.program().tensors.at(value).shape[need.dimension];
      NeededParts needed{need.dimension, {}};
      for (const Interval& part : parts) {
        const std::optional<PaddedPart> given = slicing.ArgumentOf(need, part, size);
        if (!given) return std::nullopt;
        needed.parts.push_back(given->argument);
      }
      needs.emplace_back(value, std::move(needed));
    }
    return needs;
  }

  // Makes the parts meet, from end to end.
  static void Cover(std::vector<Interval>& parts, std::int64_t size) {
    parts.front().begin = 0;
    parts.back().end = size;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      parts[i - 1].end = std::max(parts[i - 1].end, parts[i].begin);
    }
  }

  static bool IsOf(const Op& op, const Tensor& tensor) {
    return std::ranges::find(op.writes, tensor.buffer) != op.writes.end();
  }

  void AddNeed(const std::string& value, const NeededParts& parts) {
    const auto [found, is_new] = needed_.emplace(value, parts);
    const bool is_list = index_.program().tensors.at(value).is_list;
    if (is_list) to_make_.insert(value);  // no view of it is a part of it
    if (is_new) return;
    if (found->second.dimension != parts.dimension ||
        (is_list && found->second.parts != parts.parts)) {
      whole_.insert(value);
      return;
    }
    for (std::size_t i = 0; i < parts.parts.size(); ++i) {
      Interval& hull = found->second.parts[i];
      hull = {std::min(hull.begin, parts.parts[i].begin), std::max(hull.end, parts.parts[i].end)};
    }
  }

  // Returns the bytes that the op is not counted with because it may write over its argument.
  std::int64_t Account(std::size_t place, const SlicedStretch::PartOp& op, std::int64_t size,
                       bool may_overwrite) {
    const Program& program = index_.program();
    const OpId v = op.op;
    const std::vector<Interval> parts = op.Computed();
    const std::int64_t longest = LongestOf(parts);
    std::int64_t made_bytes = 0, all = 0;
    for (const Interval& part : parts) all += part.length();
    hill_bytes_.resize(end_ - place, 0);  // by distance from the end
    const auto hold = [&](BufferId b, std::int64_t bytes) {
      const auto joined = joined_at_.find(b);
      const std::size_t last =
          joined != joined_at_.end() ? joined->second : index_.LastReader(b, place, end_);
      for (std::size_t at = place + 1; at <= last; ++at) {
        std::int64_t& hill_bytes = hill_bytes_[end_ - 1 - at];
        hill_bytes += bytes;
        part_bytes_ = std::max(part_bytes_, hill_bytes);
      }
    };
    for (const BufferId b : program.ops[v].writes) {
      const std::int64_t bytes = Scaled(program.buffers[b].bytes, longest, size);
      made_bytes += bytes;
      if (!op.keeps_rows) hold(b, bytes);
      extra_bytes_ += Scaled(program.buffers[b].bytes, all - size, size);
    }
    std::int64_t& hill_bytes = hill_bytes_.back();
    const std::int64_t spared_bytes = may_overwrite ? made_bytes : 0;
    std::int64_t workspace_bytes = facts_.WorkspaceBytes(program, op.Longest());
    std::int64_t each_bytes = kCallBytes;  // of a part
    const std::int64_t work_bytes = program.ops[v].multiplications / kMultiplicationsPerByte;
    extra_bytes_ += Scaled(work_bytes, all - size, size);
    if (op.is_placed) {
      each_bytes += kCallBytes * kCallsToPlace + workspace_bytes + work_bytes;
    }
    if (op.keeps_rows) {
      const BufferId b = program.tensors.at(program.ops[v].outputs[0]).buffer;
      const std::int64_t joined_bytes = Scaled(program.buffers[b].bytes, LongestOf(op.parts), size);
      hold(b, joined_bytes);
      if (program.ops[v].slicings[op.dimension]->changes_argument) joined_at_[b] = place;
      workspace_bytes = std::max(workspace_bytes, joined_bytes);
      std::int64_t kept = 0;
      for (std::size_t i = 1; i < op.parts.size(); ++i) {
        kept = std::max(kept, op.parts[i - 1].end - op.parts[i].begin);
      }
      kept_bytes_ += Scaled(program.buffers[b].bytes, kept, size);
      each_bytes += kCallBytes * kCallsToKeep + joined_bytes;
    }
    hill_bytes = made_bytes - spared_bytes + workspace_bytes;
    part_bytes_ = std::max(part_bytes_, hill_bytes);
    extra_bytes_ += each_bytes * static_cast<std::int64_t>(parts.size());
    return spared_bytes;
  }

  const Index& index_;
  const SliceFacts& facts_;
  std::size_t end_;
  std::int64_t part_size_, size_ = 0;  // of the last result
  bool keeps_rows_, has_rows_of_two_parts_ = false;
  std::unordered_map<std::string, NeededParts> needed_;
  std::set<std::string> whole_;    // values that must be older
  std::set<std::string> to_make_;  // by the stretch: what is changed in place, and lists
  std::set<BufferId> memory_to_make_, leaving_;
  Aside ahead_, behind_;
  int heavy_aside_ = 0;
  bool begins_in_vain_ = false;
  std::set<std::string> read_behind_;  // values
  std::vector<SlicedStretch::PartOp> ops_;
  std::vector<std::string> results_;
  // Of ops_: their place in `hill_bytes_`, how many values that they read in parts are not made,
  // and what they take more if one of them is older.
  std::vector<std::size_t> hill_of_;
  std::vector<int> unmade_inputs_;
  std::vector<std::int64_t> older_bytes_;
  std::vector<std::int64_t> spared_bytes_;  // of those that may still overwrite
  std::unordered_map<std::string, std::size_t> writers_over_;
  std::vector<std::size_t> readers_of_older_;
  std::unordered_map<std::string, std::vector<std::size_t>> readers_of_;
  std::vector<std::int64_t> hill_bytes_;
  // Where memory that was changed in place is joined with kept rows: from there on in a new one.
  std::unordered_map<BufferId, std::size_t> joined_at_;
  std::int64_t result_bytes_ = 0, part_bytes_ = 0, kept_bytes_ = 0, extra_bytes_ = 0;
};

}  // namespace

std::optional<SlicedStretch> Sliced(const Program& program, const Stretch& stretch,
                                    const SliceFacts& facts) {
  if (stretch.ops.empty()) return std::nullopt;
  const Index index(program, stretch.ops);
  const std::size_t end = stretch.ops.size();
  Growing growing(index, facts, end, stretch);
  for (std::size_t place = end; place-- > 0;) {
    if (!growing.Add(place)) return std::nullopt;
  }
  return growing.IsStretch() ? std::optional(growing.Build()) : std::nullopt;
}

std::int64_t LongestOf(const std::vector<Interval>& parts) {
  std::int64_t longest = 0;
  for (const Interval& part : parts) longest = std::max(longest, part.length());
  return longest;
}

std::vector<Interval> NewRows(const std::vector<Interval>& parts) {
  std::vector<Interval> rows = parts;
  for (std::size_t i = 1; i < rows.size(); ++i) {
    rows[i].begin = std::max(rows[i].begin, parts[i - 1].end);
  }
  return rows;
}

std::vector<std::int64_t> PartSizes(std::int64_t size) {
  std::set<std::int64_t, std::greater<>> sizes;
  const std::int64_t most = std::min(size, kMostParts);
  for (std::int64_t parts = 2; parts <= most;) {
    std::int64_t length = (size + parts - 1) / parts;
    // Ends of runs may have to be multiples, and equal parts are better, which views may need.
    const std::int64_t eights = (length + 7) / 8 * 8;
    if (eights < size) sizes.insert(eights);
    for (std::int64_t even = length; even < length + (length + 2) / 3; ++even) {
      if (size % even != 0 || even == size) continue;
      length = even;
      break;
    }
    sizes.insert(length);
    if (parts == most) break;
    parts = std::min(most, parts + std::max<std::int64_t>(1, parts / 2));
  }
  return {sizes.begin(), sizes.end()};
}

SliceFloor FloorOf(const Program& program) {
  SliceFloor floor;
  for (const Buffer& buffer : program.buffers) floor.bytes += buffer.kept ? buffer.bytes : 0;
  for (std::size_t v = 0; v < program.ops.size(); ++v) {
    const Op& op = program.ops[v];
    const bool is_whole = std::ranges::none_of(
        op.slicings, [](const std::optional<Slicing>& slicing) { return slicing.has_value(); });
    if (!is_whole && IsPure(op.effects)) continue;
    std::set<BufferId> held(op.reads.begin(), op.reads.end());
    held.insert(op.writes.begin(), op.writes.end());
    std::int64_t bytes = op.workspace_bytes;
    for (const Overwrite& overwrite : program.overwritable) {
      if (overwrite.op == static_cast<OpId>(v)) held.erase(overwrite.argument);
    }
    for (const Copy& copy : program.copyable) {
      if (copy.op != static_cast<OpId>(v)) continue;
      bytes -= copy.bytes;
      for (const BufferId b : copy.reads) held.erase(b);
    }
    for (const BufferId b : held) bytes += program.buffers[b].bytes;
    if (bytes > floor.bytes) floor = {bytes, false};
  }
  return floor;
}

Stretches::Stretches(const Program& program, const sched::Order& order, const SliceFacts& facts,
                     bool may_keep_rows)
    : order_(order), candidates_(order.size() + 1) {
  // Overwriting changes hills and no valleys.
  const std::optional<Edited> edited = WithOverwrites(program, ForcedOverwrites(program));
  const sched::Profile profile = sched::Simulate(Lower(edited->program), order);
  hill_bytes_ = profile.hill_bytes;
  const Index index(program, order_);
  for (std::size_t end = 1; end <= order_.size(); ++end) {
    const OpId last = order_[end - 1];
    const std::vector<std::optional<Slicing>>& slicings = program.ops[last].slicings;
    for (std::size_t d = 0; d < slicings.size(); ++d) {
      if (!slicings[d]) continue;
      const int dimension = static_cast<int>(d);
      for (const std::int64_t part_size : PartSizes(SizeOf(program, last, dimension))) {
        const bool have_rows_of_two_parts = AddCandidates(
            index, facts, profile, end, {{}, dimension, part_size, /*keeps_rows=*/false});
        if (!have_rows_of_two_parts || !may_keep_rows) continue;
        AddCandidates(index, facts, profile, end, {{}, dimension, part_size, /*keeps_rows=*/true});
      }
    }
  }
}

bool Stretches::AddCandidates(const Index& index, const SliceFacts& facts,
                              const sched::Profile& profile, std::size_t end, const Stretch& like) {
  const std::size_t first = end > kLongestStretch ? end - kLongestStretch : 0;
  const std::int64_t highest_bytes = profile.PeakBytes();
  Growing growing(index, facts, end, like);
  std::int64_t whole_bytes = 0;
  for (std::size_t place = end; place-- > first && growing.Add(place);) {
    whole_bytes = std::max(whole_bytes, hill_bytes_[place]);
    if (growing.LeastBytes() >= highest_bytes) break;
    if (growing.BeginsInVain() || !growing.IsStretch()) continue;
    const std::int64_t before_bytes =
        place == 0 ? profile.start_bytes : profile.valley_bytes[place - 1];
    const std::int64_t hill_bytes = before_bytes + growing.TakenBytes();
    if (hill_bytes >= whole_bytes) continue;
    candidates_[end].push_back({place, end, like.dimension, like.part_size, like.keeps_rows,
                                hill_bytes, growing.ExtraBytes()});
  }
  return growing.has_rows_of_two_parts();
}

Stretches::Choice Stretches::Lowest() const {
  std::vector<std::int64_t> peak_bytes(order_.size() + 1, 0);
  for (std::size_t end = 1; end <= order_.size(); ++end) {
    peak_bytes[end] = std::max(peak_bytes[end - 1], hill_bytes_[end - 1]);
    for (const Candidate& candidate : candidates_[end]) {
      peak_bytes[end] =
          std::min(peak_bytes[end], std::max(peak_bytes[candidate.begin], candidate.hill_bytes));
    }
  }
  return Within(peak_bytes.back());
}

Stretches::Choice Stretches::Within(std::int64_t peak_bytes) const {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max() / 2;
  std::vector<std::int64_t> extra_bytes(order_.size() + 1, kNever);
  std::vector<const Candidate*> last(order_.size() + 1, nullptr);
  extra_bytes[0] = 0;
  for (std::size_t end = 1; end <= order_.size(); ++end) {
    if (hill_bytes_[end - 1] <= peak_bytes) extra_bytes[end] = extra_bytes[end - 1];
    for (const Candidate& candidate : candidates_[end]) {
      const std::int64_t with = extra_bytes[candidate.begin] + candidate.extra_bytes;
      if (candidate.hill_bytes > peak_bytes || with >= extra_bytes[end]) continue;
      extra_bytes[end] = with;
      last[end] = &candidate;
    }
  }
  if (extra_bytes.back() >= kNever) return Lowest();
  Choice choice;
  const auto add_hill = [&](std::int64_t bytes, OpId op) {
    if (choice.highest == sched::kNoOp || bytes > choice.peak_bytes) choice.highest = op;
    choice.peak_bytes = std::max(choice.peak_bytes, bytes);
  };
  for (std::size_t end = order_.size(); end > 0;) {
    const Candidate* candidate = last[end];
    if (candidate == nullptr) {
      --end;
      add_hill(hill_bytes_[end], order_[end]);
      continue;
    }
    add_hill(candidate->hill_bytes, order_[end - 1]);
    choice.stretches.push_back({{order_.begin() + static_cast<std::ptrdiff_t>(candidate->begin),
                                 order_.begin() + static_cast<std::ptrdiff_t>(candidate->end)},
                                candidate->dimension,
                                candidate->part_size,
                                candidate->keeps_rows});
    end = candidate->begin;
  }
  std::ranges::reverse(choice.stretches);
  return choice;
}

}  // namespace torch_ext::program
