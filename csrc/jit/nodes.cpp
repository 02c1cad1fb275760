#include "jit/nodes.h"

#include <algorithm>
#include <regex>
#include <sstream>
#include <unordered_set>

namespace torch_ext::jit {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

std::vector<Node*> OpNodes(Block* block) {
  std::vector<Node*> nodes;
  for (Node* node : block->nodes()) {
    if (node->kind() != c10::prim::Constant) nodes.push_back(node);
  }
  return nodes;
}

namespace {

// Is `value` made outside of `node`'s inner blocks?
bool IsOutside(const Value* value, const Node* node) {
  const Block* block = value->node()->owningBlock();
  while (block != node->owningBlock()) {
    const Node* owner = block->owningNode();
    if (owner == nullptr) return true;
    if (owner == node) return false;
    block = owner->owningBlock();
  }
  return true;
}

}  // namespace

std::vector<Value*> ReadValues(Node* node) {
  std::vector<Value*> values(node->inputs().begin(), node->inputs().end());
  const auto add_captured = [&](Node* inner) {
    for (Value* input : inner->inputs()) {
      if (IsOutside(input, node)) values.push_back(input);
    }
  };
  ForEachInnerNode(node, [&](Node* inner) {
    if (inner != node) add_captured(inner);
    for (Block* block : inner->blocks()) add_captured(block->return_node());
  });
  std::vector<Value*> unique;
  for (Value* value : values) {
    if (std::find(unique.begin(), unique.end(), value) == unique.end()) unique.push_back(value);
  }
  return unique;
}

std::string OpName(const Node* node, std::size_t index) {
  return std::string(node->kind().toUnqualString()) + "." + std::to_string(index);
}

namespace {

bool IsInsideTorch(const std::string& file) {
  return file.find("-packages/torch/") != std::string::npos;
}

// torch.jit.trace itself: who calls it is no part of the program.
bool IsTracer(const std::string& file) {
  return file.ends_with("/torch/jit/_trace.py");
}

// The places a source range tells of, innermost first.
std::vector<std::pair<std::string, std::string>> Frames(torch::jit::SourceRange range) {
  std::vector<std::pair<std::string, std::string>> frames;  // file, line
  if (const auto generated = range.findSourceRangeThatGenerated()) range = *generated;
  if (!range.source()) return frames;
  // Traced: the text is the Python stack, "FILE(LINE): FUNCTION", innermost frame first.
  static const std::regex kFrame(R"(([^\n]+)\((\d+)\): [^\n]*)");
  const std::string text = range.source()->text_str().str();
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, kFrame)) break;
    frames.emplace_back(match[1].str(), match[2].str());
  }
  if (!frames.empty()) return frames;
  if (const auto where = range.file_line_col(); where && !std::get<0>(*where).empty()) {
    frames.emplace_back(std::get<0>(*where), std::to_string(std::get<1>(*where)));
  }
  return frames;
}

}  // namespace

std::string SourceOf(const Node* node) {
  auto frames = Frames(node->sourceRange());
  if (node->callstack()) {  // inlined: the calls that led here, outermost first
    const auto calls = (*node->callstack())->vec();
    for (auto call = calls.rbegin(); call != calls.rend(); ++call) {
      const auto outer = Frames(std::get<torch::jit::SourceRange>(*call));
      frames.insert(frames.end(), outer.begin(), outer.end());
    }
  }
  for (const auto& [file, line] : frames) {
    if (IsTracer(file)) return {};
    if (!IsInsideTorch(file)) return file + ":" + line;
  }
  return {};
}

ModulePaths PathsByType(const torch::jit::Module& module) {
  ModulePaths paths;
  std::unordered_set<const c10::ClassType*> seen;
  for (const auto& [path, part] : module.named_modules()) {
    const c10::ClassType* type = part.type().get();
    if (seen.insert(type).second) {
      paths.emplace(type, path);
    } else {
      paths.erase(type);
    }
  }
  return paths;
}

std::string ModulePathOf(const Node* node, const ModulePaths& paths) {
  // Traced: "__module.layer1/__module.layer1.0/...", the last part is the full path.
  static const std::string kRoot = "__module.";
  const std::string scope = node->scopeName();
  const std::string last =
      scope.substr(scope.rfind('/') == std::string::npos ? 0 : scope.rfind('/') + 1);
  if (last.starts_with(kRoot)) return last.substr(kRoot.size());
  if (!node->callstack()) return {};
  std::string path;
  for (const auto& frame : (*node->callstack())->vec()) {
    const auto& module = std::get<torch::jit::kModuleInstanceInfo>(frame);
    if (!module) continue;
    if (const auto found = paths.find(module->class_type().get()); found != paths.end()) {
      path = found->second;
      continue;
    }
    const std::string name = module->instance_name();
    if (name.empty() || name == "SELF" || name == "UNKNOWN_INSTANCE") continue;
    path += (path.empty() ? "" : ".") + name;
  }
  return path;
}

namespace {

c10::Symbol MarkAttribute() {
  return c10::Symbol::attr("torch_ext_mark");
}

}  // namespace

void Mark(Node* node, std::int64_t mark) {
  node->i_(MarkAttribute(), mark);
}

std::vector<std::int64_t> TakeMarks(const std::vector<Node*>& nodes) {
  std::vector<std::int64_t> marks;
  for (Node* node : nodes) {
    const bool is_marked = node->hasAttribute(MarkAttribute());
    marks.push_back(is_marked ? node->i(MarkAttribute()) : kUnmarked);
    ForEachInnerNode(node, [](Node* inner) {
      if (inner->hasAttribute(MarkAttribute())) inner->removeAttribute(MarkAttribute());
    });
  }
  return marks;
}

}  // namespace torch_ext::jit
