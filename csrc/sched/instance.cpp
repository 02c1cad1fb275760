#include "sched/instance.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <sstream>
#include <stdexcept>
#include <unordered_map>
#include <vector>

namespace torch_ext::sched {
namespace {

using Tokens = std::vector<std::string>;

Tokens Tokenize(std::string_view line) {
  Tokens tokens;
  std::size_t i = 0;
  while (i < line.size()) {
    if (line[i] == ' ' || line[i] == '\t') {
      ++i;
      continue;
    }
    if (line[i] == '#') break;
    const std::size_t end = std::min(line.find_first_of(" \t", i), line.size());
    tokens.emplace_back(line.substr(i, end - i));
    i = end;
  }
  return tokens;
}

const Quantity& SizeInBytes() {
  static const Quantity kSize{"size", "bytes", kSizeLimitBytes, "2^62"};
  return kSize;
}

// One name after another, as English lists them.
std::string Listed(std::span<const std::string> names, const char* last) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? std::string(" ") + last + " " : ", ";
    text += names[i];
  }
  return text;
}

// What stands behind a word is as much as it asks for.
void CheckPart(const std::string& word, Behind behind, const Tokens& values) {
  if (behind == Behind::kNothing) {
    if (values.empty()) return;
    throw std::invalid_argument("unknown word '" + values[0] + "' after '" + word + "'");
  }
  if (values.empty()) throw std::invalid_argument("nothing follows '" + word + "'");
  if (behind == Behind::kNumber && values.size() > 1) {
    throw std::invalid_argument("unknown word '" + values[1] + "' after the " + word);
  }
}

OpLine ParseOpLine(const Tokens& tokens, int line, const Version& version) {
  if (tokens.size() < 2) throw std::invalid_argument("'op' needs a name");
  OpLine op{tokens[1], {}, line};
  CheckNameIn(version, op.name);
  std::string word;
  for (std::size_t i = 2; i < tokens.size(); ++i) {
    const std::string& token = tokens[i];
    if (version.HasWord(token)) {
      word = token;
      if (!op.parts.emplace(word, Tokens{}).second) {
        throw std::invalid_argument("'" + word + "' stands twice");
      }
    } else if (word.empty()) {
      std::vector<std::string> words;
      for (const auto& [known, behind] : version.op_words) words.push_back(known);
      throw std::invalid_argument("unknown word '" + token + "': expected " + Listed(words, "or"));
    } else {
      CheckName(token);
      op.parts[word].push_back(token);
    }
  }
  for (const auto& [known, values] : op.parts) CheckPart(known, version.After(known), values);
  return op;
}

void ParseBufferLine(const Tokens& tokens, const Version& version, GraphBuilder& builder) {
  if (tokens.size() < 3) throw std::invalid_argument("'buffer' needs a name and a size");
  bool input = false;
  bool kept = false;
  for (std::size_t i = 3; i < tokens.size(); ++i) {
    bool* flag = tokens[i] == "input" ? &input : tokens[i] == "kept" ? &kept : nullptr;
    if (flag == nullptr || *flag) {
      throw std::invalid_argument("unknown word '" + tokens[i] + "': expected input or kept once");
    }
    *flag = true;
  }
  const std::int64_t size_bytes = ParseNumber(tokens[2], SizeInBytes());
  CheckNameIn(version, tokens[1]);
  builder.AddBuffer(tokens[1], size_bytes, input, kept);
}

const Version& VersionOf(const Tokens& header, std::span<const Version> versions) {
  std::vector<std::string> numbers, headers;
  for (const Version& version : versions) {
    numbers.push_back(std::to_string(version.number));
    headers.push_back("'graph " + numbers.back() + "'");
  }
  if (header.empty() || header[0] != "graph") {
    throw std::invalid_argument("the first line must be " + Listed(headers, "or"));
  }
  for (std::size_t i = 0; i < versions.size(); ++i) {
    if (header.size() == 2 && header[1] == numbers[i]) return versions[i];
  }
  throw std::invalid_argument(
      "this reader knows only version" + std::string(versions.size() > 1 ? "s " : " ") +
      Listed(numbers, "and") + " of the format (" + Listed(headers, "and") + ")");
}

// Who writes what in the whole file, to explain an op that reads what no earlier op wrote: either
// the ops form a cycle or only their order is wrong.
class LateWrites {
 public:
  explicit LateWrites(const std::vector<OpLine>& ops) : ops_(ops) {
    for (std::size_t i = 0; i < ops.size(); ++i) {
      op_index_.emplace(ops[i].name, i);
      for (const std::string& b : ops[i].Part("writes")) written_by_.emplace(b, i);
    }
  }

  bool IsWritten(const std::string& b) const { return written_by_.contains(b); }

  // The sentence for op `i` reading buffer `b`; empty if no later op writes `b`.
  std::string Complaint(std::size_t i, const std::string& b) const {
    const auto writer = written_by_.find(b);
    if (writer == written_by_.end() || writer->second <= i) return {};
    const std::string start = "op '" + ops_[i].name + "' reads '" + b + "', which op '" +
                              ops_[writer->second].name + "' writes only later: ";
    return start + (DependsOn(writer->second, i) ? "a cycle" : "the original order is not valid");
  }

 private:
  bool DependsOn(std::size_t from, std::size_t target) const {
    std::vector<char> seen(ops_.size(), 0);
    std::vector<std::size_t> stack{from};
    while (!stack.empty()) {
      const std::size_t i = stack.back();
      stack.pop_back();
      if (i == target) return true;
      if (seen[i]) continue;
      seen[i] = 1;
      for (const std::string& b : ops_[i].Part("reads")) {
        if (const auto w = written_by_.find(b); w != written_by_.end()) stack.push_back(w->second);
      }
      for (const std::string& a : ops_[i].Part("after")) {
        if (const auto o = op_index_.find(a); o != op_index_.end()) stack.push_back(o->second);
      }
    }
    return false;
  }

  const std::vector<OpLine>& ops_;
  std::unordered_map<std::string, std::size_t> op_index_;
  std::unordered_map<std::string, std::size_t> written_by_;
};

}  // namespace

bool Version::HasWord(const std::string& token) const {
  return std::ranges::count(op_words, token, &std::pair<std::string, Behind>::first) > 0;
}

Behind Version::After(const std::string& word) const {
  return std::ranges::find(op_words, word, &std::pair<std::string, Behind>::first)->second;
}

void CheckNameIn(const Version& version, const std::string& name) {
  CheckName(name);
  if (version.HasWord(name)) throw std::invalid_argument("'" + name + "' is not a name");
}

const Version& VersionOne() {
  static const Version kOne{1,
                            {{"reads", Behind::kNames},
                             {"writes", Behind::kNames},
                             {"workspace", Behind::kNumber},
                             {"after", Behind::kNames}}};
  return kOne;
}

const std::vector<std::string>& OpLine::Part(const std::string& word) const {
  static const Tokens kNone;
  const auto found = parts.find(word);
  return found == parts.end() ? kNone : found->second;
}

std::int64_t ParseNumber(const std::string& token, const Quantity& quantity) {
  std::int64_t value = 0;
  const char* end = token.data() + token.size();
  const auto [stop, error] = std::from_chars(token.data(), end, value);
  if (error == std::errc::result_out_of_range || (error == std::errc() && value > quantity.limit)) {
    throw std::invalid_argument("the " + quantity.name + " " + token + " is above " +
                                quantity.limit_text);
  }
  if (error != std::errc() || stop != end) {
    throw std::invalid_argument("'" + token + "' is not a " + quantity.name + " in " +
                                quantity.unit);
  }
  if (value < 0) {
    throw std::invalid_argument("the " + quantity.name + " " + token + " is negative");
  }
  return value;
}

std::string AtLine(const std::string& file, int line, const std::string& what) {
  return file + ": line " + std::to_string(line) + ": " + what;
}

Graph ParseInstance(std::string_view text, const std::string& file) {
  return ReadInstance(text, file, std::span(&VersionOne(), 1)).builder.Build();
}

Instance ReadInstance(std::string_view text, const std::string& file,
                      std::span<const Version> versions) {
  Instance instance;
  GraphBuilder& builder = instance.builder;
  std::vector<OpLine>& ops = instance.ops;
  std::unordered_map<std::string, int> buffer_line;
  std::vector<std::string> needs_producer;
  int line_number = 0;
  try {
    const Version* version = nullptr;
    while (!text.empty()) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      ++line_number;
      const Tokens tokens = Tokenize(line);
      if (tokens.empty()) continue;
      if (version == nullptr) {
        version = &VersionOf(tokens, versions);
      } else if (tokens[0] == "buffer") {
        ParseBufferLine(tokens, *version, builder);
        buffer_line.emplace(tokens[1], line_number);
        if (std::find(tokens.begin() + 3, tokens.end(), "input") == tokens.end()) {
          needs_producer.push_back(tokens[1]);
        }
      } else if (tokens[0] == "op") {
        OpLine op = ParseOpLine(tokens, line_number, *version);
        for (const char* word : {"reads", "writes"}) {
          for (const std::string& b : op.Part(word)) {
            if (!buffer_line.contains(b)) {
              throw std::invalid_argument("op '" + op.name + "' names the unknown buffer '" + b +
                                          "' (buffers come before the first op that names them)");
            }
          }
        }
        ops.push_back(std::move(op));
      } else {
        throw std::invalid_argument("unknown word '" + tokens[0] + "': expected buffer or op");
      }
    }
    if (version == nullptr) {
      throw std::invalid_argument("the header 'graph " + std::to_string(versions.front().number) +
                                  "' is missing");
    }

    const LateWrites late_writes(ops);
    for (const std::string& b : needs_producer) {
      if (late_writes.IsWritten(b)) continue;
      line_number = buffer_line.at(b);
      throw std::invalid_argument("buffer '" + b + "' has no producer and is no input");
    }
    for (std::size_t i = 0; i < ops.size(); ++i) {
      const OpLine& op = ops[i];
      line_number = op.line;
      for (const std::string& b : op.Part("reads")) {
        if (std::string why = late_writes.Complaint(i, b); !why.empty()) {
          throw std::invalid_argument(why);
        }
      }
      const Tokens& workspace = op.Part("workspace");
      builder.AddOp(op.name, op.Part("reads"), op.Part("writes"),
                    workspace.empty() ? 0 : ParseNumber(workspace[0], SizeInBytes()),
                    op.Part("after"));
    }
    builder.Build();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(AtLine(file, line_number, error.what()));
  }
  return instance;
}

std::string PrintInstance(const Graph& graph) {
  return PrintInstance(graph, VersionOne(), [](OpId) { return std::string(); });
}

std::string PrintInstance(const Graph& graph, const Version& version,
                          const std::function<std::string(OpId)>& more) {
  std::ostringstream out;
  out << "graph " << version.number << '\n';
  for (const Buffer& b : graph.buffers()) {
    out << "buffer " << b.name << ' ' << b.size_bytes << (b.is_input() ? " input" : "")
        << (b.kept ? " kept" : "") << '\n';
  }
  for (OpId v = 0; v < graph.num_ops(); ++v) {
    const Op& op = graph.op(v);
    out << "op " << op.name;
    const auto print_buffers = [&](const char* word, const std::vector<BufferId>& ids) {
      if (ids.empty()) return;
      out << ' ' << word;
      for (BufferId b : ids) out << ' ' << graph.buffer(b).name;
    };
    print_buffers("reads", op.reads);
    print_buffers("writes", op.writes);
    if (op.workspace_bytes > 0) out << " workspace " << op.workspace_bytes;
    if (!op.after.empty()) {
      out << " after";
      for (OpId p : op.after) out << ' ' << graph.op(p).name;
    }
    out << more(v) << '\n';
  }
  return out.str();
}

}  // namespace torch_ext::sched
