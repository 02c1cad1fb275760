#include "program/levers/repeat.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "program/hazards.h"
#include "program/lower.h"

namespace torch_ext::program {
namespace {

// What another run of the op has to precede as well: all but conflicts about what it makes anew.
Program WithDeadlinesOnly(const Program& program) {
  Program copy;
  copy.ops = program.ops;
  for (const Conflict& conflict : program.conflicts) {
    if (!conflict.is_inside && !conflict.is_left_alone) copy.conflicts.push_back(conflict);
  }
  // Where the memory is known of which an op changes what views of it are, versions tell.
  for (Op& op : copy.ops) {
    if (!op.mutates.empty() && !op.effects.writes_outside) op.effects.changes_metadata = false;
  }
  return copy;
}

std::string NameOfRun(const std::string& name, std::int32_t run) {
  return run == 1 ? name : name + "/" + std::to_string(run);
}

// Adaptors give names of their own; those of a bare graph may be any.
void RequireDifferentNames(const auto& named) {
  std::unordered_set<std::string> seen;
  for (const auto& one : named) {
    if (seen.insert(one.name).second) continue;
    throw std::invalid_argument("'" + one.name +
                                "' is what a further run is called: give it another name");
  }
}

// Do the op's values lie in it?
bool Holds(const Op& op, BufferId b) {
  return std::ranges::count(op.writes, b) > 0 || std::ranges::count(op.aliases, b) > 0;
}

}  // namespace

bool MayRepeat(const Op& op) {
  const Effects& effects = op.effects;
  return effects.undeclared.empty() && !effects.runs_once && !effects.is_stateful &&
         !effects.changes_metadata && !effects.draws_random_numbers && !effects.has_side_effect &&
         !effects.is_collective && (!effects.writes_outside || effects.is_apart_again);
}

Program WithRepeats(const Program& program, std::span<const OpId> runs) {
  Program result;
  result.buffers = program.buffers;  // those of first runs
  result.run_elements = program.run_elements;
  result.threads = program.threads;
  result.most_placed = program.most_placed;
  const std::size_t num_ops = program.ops.size();
  std::vector<std::int32_t> count(num_ops, 0);
  std::vector<OpId> latest(num_ops, sched::kNoOp);
  std::vector<std::vector<OpId>> runs_of(num_ops);
  // Per op: the instance of each buffer that its latest values lie in.
  std::vector<std::map<BufferId, BufferId>> held(num_ops);
  std::unordered_map<std::string, OpId> maker_of;
  std::vector<OpId> producer(program.buffers.size(), sched::kNoOp);
  for (OpId v = 0; v < static_cast<OpId>(num_ops); ++v) {
    for (const std::string& value : program.ops[v].outputs) maker_of.emplace(value, v);
    for (const BufferId b : program.ops[v].writes) producer[b] = v;
  }
  const auto value_now = [&](const std::string& value) {
    const auto maker = maker_of.find(value);
    return maker == maker_of.end() ? value : NameOfRun(value, count[maker->second]);
  };
  const auto instance_now = [&](const Op& op, BufferId b) {
    for (const OpId m : op.makers) {
      if (const auto found = held[m].find(b); found != held[m].end()) return found->second;
    }
    return producer[b] == sched::kNoOp ? b : held[producer[b]].at(b);
  };
  std::vector<std::vector<std::pair<OpId, bool>>> touches(program.buffers.size());
  std::vector<std::map<BufferId, BufferId>> read_by;  // per run
  for (const OpId v : runs) {
    const auto run = static_cast<OpId>(result.ops.size());
    const Op& old = program.ops[v];
    Op op = old;
    const bool is_repeat = ++count[v] > 1;
    std::map<BufferId, BufferId>& read = read_by.emplace_back();
    for (const BufferId b : old.reads) read[b] = instance_now(old, b);
    const auto to_instances = [&](std::vector<BufferId>& buffers) {
      for (BufferId& b : buffers) b = read.at(b);
    };
    to_instances(op.reads);
    to_instances(op.aliases);
    to_instances(op.mutates);
    for (OpId& m : op.makers) m = latest[m];
    for (std::string& value : op.inputs) value = value_now(value);
    for (std::string& value : op.outputs) value = NameOfRun(value, count[v]);
    op.name = NameOfRun(old.name, count[v]);
    std::map<BufferId, BufferId> holds;
    for (BufferId& b : op.writes) {
      BufferId instance = b;
      if (is_repeat) {
        instance = static_cast<BufferId>(result.buffers.size());
        Buffer buffer = program.buffers[b];
        buffer.name = NameOfRun(buffer.name, count[v]);
        buffer.kept = false;
        result.buffers.push_back(std::move(buffer));
        touches.emplace_back();
      }
      holds[b] = instance;
      b = instance;
    }
    for (const BufferId b : old.aliases) holds[b] = read.at(b);
    if (is_repeat) {
      op.effects.writes_outside = false;
      op.effects.is_apart_again = false;
    }
    for (const BufferId b : op.reads) {
      touches[b].emplace_back(run, std::ranges::count(op.mutates, b) > 0);
    }
    for (std::size_t k = 0; k < old.outputs.size(); ++k) {
      const auto tensor = program.tensors.find(old.outputs[k]);
      if (tensor == program.tensors.end()) continue;
      Tensor copy = tensor->second;
      if (const auto found = holds.find(copy.buffer); found != holds.end()) {
        copy.buffer = found->second;
      }
      result.tensors.emplace(op.outputs[k], std::move(copy));
    }
    for (const Copy& copyable : program.copyable) {
      if (copyable.op != v) continue;
      Copy copy = copyable;
      copy.op = run;
      copy.value = value_now(copy.value);
      for (OpId& m : copy.makers) m = latest[m];
      for (BufferId& b : copy.reads) b = read.at(b);
      result.copyable.push_back(std::move(copy));
    }
    result.ops.push_back(std::move(op));
    held[v] = std::move(holds);
    latest[v] = run;
    runs_of[v].push_back(run);
  }
  for (const auto& [name, tensor] : program.tensors) {
    if (!maker_of.contains(name)) result.tensors.emplace(name, tensor);
  }
  for (std::string value : program.results) result.results.push_back(value_now(value));
  // What the caller gets lies in the latest instances.
  for (std::size_t b = 0; b < program.buffers.size(); ++b) {
    if (!program.buffers[b].kept || producer[b] == sched::kNoOp) continue;
    result.buffers[b].kept = false;
    result.buffers[held[producer[b]].at(static_cast<BufferId>(b))].kept = true;
  }
  for (const Overwrite& use : program.overwritable) {
    for (const OpId run : runs_of[use.op]) {
      const auto made = std::ranges::find(program.ops[use.op].writes, use.result) -
                        program.ops[use.op].writes.begin();
      Overwrite copy{run, result.ops[run].writes[made], read_by[run].at(use.argument)};
      for (const OpId other : use.others) {
        copy.others.insert(copy.others.end(), runs_of[other].begin(), runs_of[other].end());
      }
      result.overwritable.push_back(std::move(copy));
    }
  }
  for (const Conflict& conflict : program.conflicts) {
    if (conflict.is_inside) continue;
    for (const OpId earlier : runs_of[conflict.earlier]) {
      const bool is_repeat = earlier != runs_of[conflict.earlier].front();
      if (is_repeat && conflict.is_left_alone) continue;
      for (const OpId later : runs_of[conflict.later]) {
        if (earlier < later) result.conflicts.push_back({earlier, later, conflict.by_statistics});
      }
    }
  }
  for (const auto& touched : touches) {
    OpId writer = sched::kNoOp;
    std::vector<OpId> readers;
    for (const auto& [run, mutates] : touched) {
      if (writer != sched::kNoOp) {
        result.conflicts.push_back({.earlier = writer, .later = run, .is_inside = true});
      }
      if (!mutates) {
        readers.push_back(run);
        continue;
      }
      for (const OpId reader : readers) {
        result.conflicts.push_back({.earlier = reader, .later = run, .is_inside = true});
      }
      readers.clear();
      writer = run;
    }
  }
  RequireDifferentNames(result.ops);
  RequireDifferentNames(result.buffers);
  return result;
}

Runs RunsNamed(const Program& program, const std::vector<std::string>& names) {
  std::unordered_map<std::string, OpId> next;  // by the name of its next run
  for (OpId v = 0; v < static_cast<OpId>(program.ops.size()); ++v) next[program.ops[v].name] = v;
  std::vector<std::int32_t> count(program.ops.size(), 0);
  Runs runs;
  for (const std::string& name : names) {
    const auto found = next.find(name);
    if (found == next.end()) {
      const bool has_run = std::ranges::count(program.ops, name, &Op::name) > 0;
      throw std::invalid_argument(
          has_run ? "op '" + name + "' runs twice; its second run is called '" + name + "/2'"
                  : "there is no op '" + name + "'");
    }
    const OpId v = found->second;
    runs.push_back(v);
    next.erase(found);
    next.emplace(NameOfRun(program.ops[v].name, ++count[v] + 1), v);
  }
  return runs;
}

void RequireValid(const Program& program, std::span<const OpId> runs) {
  if (Rerunner(program, false).Judge(runs, 0).is_valid) return;
  throw std::invalid_argument(
      "the order does not do what the program does: an op runs before what it depends on, reads "
      "what was written to since, runs again though it must not, or does not run");
}

Rerunner::Rerunner(const Program& program, bool overwrite, const RepeatRules& rules)
    : program_(&program),
      rules_(rules),
      steps_(program.ops.size()),
      mutators_(program.buffers.size()),
      input_instance_(program.buffers.size(), -1) {
  const sched::Graph graph = Lower(program);
  std::vector<std::int32_t> version(program.buffers.size(), 0);
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const Op& op = program.ops[v];
    Step& step = steps_[v];
    step.workspace_bytes = op.workspace_bytes;
    step.nanoseconds = op.nanoseconds;
    if (op.nanoseconds < 0 || op.nanoseconds > kMostNanoseconds - nanoseconds_) {
      throw std::invalid_argument(op.name + ": its time is negative, or too long");
    }
    nanoseconds_ += op.nanoseconds;
    step.may_repeat = MayRepeat(op) || !rules.once;
    step.before = graph.op(v).predecessors;
    step.makers = op.makers;
    for (const BufferId b : op.reads) {
      const bool is_mutated = std::ranges::count(op.mutates, b) > 0;
      if (is_mutated) step.mutates.push_back(static_cast<std::int32_t>(step.reads.size()));
      step.reads.push_back({.buffer = b, .version = version[b]});
    }
    for (const BufferId b : op.mutates) {
      ++version[b];
      mutators_[b].push_back(v);
    }
    first_held_.push_back(num_held_);
    for (const BufferId b : op.writes) step.holds.push_back({b, -1});
    for (const BufferId b : op.aliases) {
      const auto read = std::ranges::find(op.reads, b) - op.reads.begin();
      step.holds.push_back({b, static_cast<std::int32_t>(read)});
    }
    num_held_ += step.holds.size();
  }
  for (BufferId b = 0; b < graph.num_buffers(); ++b) {
    if (program.buffers[b].kept) end_.push_back({.buffer = b, .version = version[b]});
  }
  for (const auto& [earlier, later] : OrderEdges(WithDeadlinesOnly(program))) {
    steps_[earlier].deadlines.push_back(later);
  }
  Link();
  if (!overwrite) return;
  for (const Overwrite& use : program.overwritable) {
    const Buffer &argument = program.buffers[use.argument], &result = program.buffers[use.result];
    if (argument.is_input || argument.kept || argument.bytes != result.bytes) continue;
    const Op& op = program.ops[use.op];
    const auto held = std::ranges::find(op.writes, use.result) - op.writes.begin();
    const auto read = std::ranges::find(op.reads, use.argument) - op.reads.begin();
    Over over{static_cast<std::int32_t>(held), static_cast<std::int32_t>(read), use.others};
    std::erase(over.others, use.op);
    steps_[use.op].overwrites.push_back(std::move(over));
  }
}

// By whose values each read comes, and whose values lie where.
void Rerunner::Link() {
  std::vector<OpId> producer(program_->buffers.size(), sched::kNoOp);
  std::vector<std::vector<OpId>> holders(program_->buffers.size());
  for (OpId v = 0; v < static_cast<OpId>(steps_.size()); ++v) {
    for (const BufferId b : program_->ops[v].writes) producer[b] = v;
    for (const Held& held : steps_[v].holds) holders[held.buffer].push_back(v);
  }
  const auto source = [&](OpId maker, BufferId b) -> Source {
    const std::vector<Held>& holds = steps_[maker].holds;
    const auto slot = std::ranges::find(holds, b, &Held::buffer) - holds.begin();
    return {maker, static_cast<std::int32_t>(slot)};
  };
  for (OpId v = 0; v < static_cast<OpId>(steps_.size()); ++v) {
    Step& step = steps_[v];
    for (Read& read : step.reads) {
      for (const OpId m : step.makers) {
        if (Holds(program_->ops[m], read.buffer)) read.sources.push_back(source(m, read.buffer));
      }
      const OpId maker = producer[read.buffer];
      if (!read.sources.empty() || maker == sched::kNoOp) continue;
      read.sources.push_back(source(maker, read.buffer));
      step.makers.push_back(maker);
    }
    std::ranges::sort(step.makers);
    step.makers.erase(std::ranges::unique(step.makers).begin(), step.makers.end());
    for (const BufferId b : program_->ops[v].writes) {
      for (const OpId u : holders[b]) {
        if (u != v) step.aliasers.push_back(u);
      }
    }
  }
  for (Read& read : end_) {
    for (const OpId m : holders[read.buffer]) read.sources.push_back(source(m, read.buffer));
  }
}

std::int32_t Rerunner::Resolve(const Read& read) const {
  std::int32_t instance = -1;
  for (const Source& source : read.sources) {
    if (latest_[source.maker] < 0) return -1;
    const std::int32_t held = held_[first_held_[source.maker] + source.slot];
    if (rules_.instance && instance >= 0 && held != instance) return -1;
    instance = held;
  }
  if (read.sources.empty()) instance = input_instance_[read.buffer];
  if (instance < 0) return -1;
  if (rules_.version && instances_[instance].version != read.version) return -1;
  return instance;
}

Rerunner::Judged Rerunner::Judge(std::span<const OpId> runs, std::int64_t budget_bytes) {
  const auto end = static_cast<std::int32_t>(runs.size());
  Judged judged;
  latest_.assign(steps_.size(), -1);
  held_.assign(num_held_, -1);
  last_use_.assign(runs.size(), -1);
  instances_.clear();
  chances_.clear();
  reads_.clear();
  first_read_.assign(1, 0);
  for (BufferId b = 0; b < static_cast<BufferId>(input_instance_.size()); ++b) {
    if (!program_->buffers[b].is_input) continue;
    input_instance_[b] = static_cast<std::int32_t>(instances_.size());
    instances_.push_back({.buffer = b});
  }
  std::size_t first_runs = 0;
  for (std::int32_t i = 0; i < end; ++i) {
    const OpId v = runs[i];
    const Step& step = steps_[v];
    if (latest_[v] < 0) {
      ++first_runs;
      for (const OpId u : step.before) {
        if (latest_[u] < 0) return judged;
      }
    } else {
      if (!step.may_repeat) return judged;
      for (const OpId u : step.deadlines) {
        if (rules_.deadline && latest_[u] >= 0) return judged;
      }
    }
    judged.nanoseconds += step.nanoseconds;
    for (const Read& read : step.reads) {
      const std::int32_t instance = Resolve(read);
      if (instance < 0) return judged;
      instances_[instance].last = i;
      reads_.push_back(instance);
    }
    first_read_.push_back(reads_.size());
    const std::int32_t* const read_of = reads_.data() + first_read_[i];
    for (const OpId m : step.makers) last_use_[latest_[m]] = i;
    last_use_[i] = i;
    latest_[v] = i;
    for (std::size_t slot = 0; slot < step.holds.size(); ++slot) {
      const Held& held = step.holds[slot];
      std::int32_t& instance = held_[first_held_[v] + slot];
      if (held.read >= 0) {
        instance = read_of[held.read];
        continue;
      }
      instance = static_cast<std::int32_t>(instances_.size());
      instances_.push_back({.buffer = held.buffer, .birth = i, .last = i});
    }
    for (const std::int32_t read : step.mutates) ++instances_[read_of[read]].version;
    for (const Over& over : step.overwrites) {
      chances_.push_back({i, &over, held_[first_held_[v] + over.held], read_of[over.read]});
    }
  }
  if (first_runs < steps_.size()) return judged;
  for (const Read& read : end_) {
    const std::int32_t instance = Resolve(read);
    if (instance < 0) return judged;
    instances_[instance].last = end;
    reads_.push_back(instance);
    for (const Source& source : read.sources) last_use_[latest_[source.maker]] = end;
  }
  first_read_.push_back(reads_.size());
  judged.is_valid = true;

  std::vector<std::int64_t> change_bytes(runs.size() + 2, 0);
  for (const Instance& instance : instances_) {
    if (instance.last < 0) continue;  // an input that nobody reads
    change_bytes[std::max(instance.birth, 0)] += size_bytes(instance.buffer);
    change_bytes[instance.last + 1] -= size_bytes(instance.buffer);
  }
  hill_bytes_.resize(runs.size());
  std::int64_t live_bytes = 0;
  for (std::int32_t i = 0; i < end; ++i) {
    live_bytes += change_bytes[i];
    hill_bytes_[i] = live_bytes + steps_[runs[i]].workspace_bytes;
  }
  for (const Chance& chance : chances_) {
    Instance &result = instances_[chance.result], &argument = instances_[chance.argument];
    if (argument.last != chance.position || argument.is_written_over || result.is_over) continue;
    const bool is_free = std::ranges::all_of(chance.over->others,
                                             [&](OpId u) { return latest_[u] < chance.position; });
    if (!is_free) continue;
    argument.is_written_over = result.is_over = true;
    hill_bytes_[chance.position] -= size_bytes(result.buffer);
  }
  judged.peak_bytes = end == 0 ? change_bytes[0] : std::ranges::max(hill_bytes_);
  for (const std::int64_t bytes : hill_bytes_) {
    judged.excess_bytes += std::max<std::int64_t>(bytes - budget_bytes, 0);
  }
  return judged;
}

Runs Rerunner::WithoutDead(std::span<const OpId> runs) const {
  const auto count = static_cast<std::int32_t>(runs.size());
  // Of each run those that it needs, as lists in one array.
  std::vector<std::int32_t> first_need(runs.size(), -1), next_need, need;
  const auto add_need = [&](std::int32_t of, std::int32_t position) {
    next_need.push_back(std::exchange(first_need[of], static_cast<std::int32_t>(need.size())));
    need.push_back(position);
  };
  std::vector<std::int32_t> latest(steps_.size(), -1), made_at(num_held_, -1), left;
  for (std::int32_t i = 0; i < count; ++i) {
    const OpId v = runs[i];
    const Step& step = steps_[v];
    for (const OpId m : step.makers) {
      if (latest[m] >= 0) add_need(i, latest[m]);
    }
    const auto birth_of = [&](std::int32_t read) {
      const std::vector<Source>& sources = step.reads[read].sources;
      return sources.empty() ? -1 : made_at[first_held_[sources[0].maker] + sources[0].slot];
    };
    for (const std::int32_t read : step.mutates) {
      if (const std::int32_t birth = birth_of(read); birth >= 0) add_need(birth, i);
    }
    for (std::size_t slot = 0; slot < step.holds.size(); ++slot) {
      const std::int32_t read = step.holds[slot].read;
      made_at[first_held_[v] + slot] = read < 0 ? i : birth_of(read);
    }
    if (latest[v] < 0) left.push_back(i);
    latest[v] = i;
  }
  for (const Read& read : end_) {
    for (const Source& source : read.sources) left.push_back(latest[source.maker]);
  }
  std::vector<char> is_live(runs.size(), 0);
  while (!left.empty()) {
    const std::int32_t i = left.back();
    left.pop_back();
    if (i < 0 || is_live[i]) continue;
    is_live[i] = 1;
    for (std::int32_t e = first_need[i]; e >= 0; e = next_need[e]) left.push_back(need[e]);
  }
  Runs live;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (is_live[i]) live.push_back(runs[i]);
  }
  return live;
}

}  // namespace torch_ext::program
