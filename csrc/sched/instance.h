// The text format of a graph: parse and print version 1, and what further versions share with it
// (program/instance.h has version 2).
//
//   graph 1                               # first line that is not a comment
//   buffer x   602112 input               # alive from the start, freed after its last reader
//   buffer a   3211264
//   buffer y   4000 kept                  # never freed: a result
//   op conv  reads x writes a workspace 1048576
//   op head  reads a writes y after conv  # `after`: precedence that no buffer tells
//
// `#` starts a comment at the start of a line or after white space. Names are tokens without white
// space or `#`, other than the words reads writes workspace after input kept. Sizes are decimal
// integers in bytes, below 2^62 in sum. The lines of `op` in file order are the original order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sched/graph.h"

namespace torch_ext::sched {

// `file` is only for messages. Throws std::invalid_argument `FILE: line N: what is wrong`.
Graph ParseInstance(std::string_view text, const std::string& file = "<text>");

// ParseInstance(PrintInstance(g)) equals g.
std::string PrintInstance(const Graph& graph);

// --- what all versions share ---------------------------------------------------------------------

// What stands behind a word in a line of an op.
enum class Behind { kNames, kNumber, kNothing };

// All that versions differ in. The words of one are no names in it.
struct Version {
  int number = 1;
  std::vector<std::pair<std::string, Behind>> op_words;

  bool HasWord(const std::string& token) const;
  Behind After(const std::string& word) const;  // a word of it
};
const Version& VersionOne();

// CheckName of graph.h, and that it is no word of the version.
void CheckNameIn(const Version& version, const std::string& name);

// A line of an op, as its version reads it.
struct OpLine {
  std::string name;
  std::map<std::string, std::vector<std::string>> parts;  // what stands behind each word
  int line = 0;

  bool Has(const std::string& word) const { return parts.contains(word); }
  const std::vector<std::string>& Part(const std::string& word) const;
};

// What a text says, valid as far as version 1 can say it.
struct Instance {
  GraphBuilder builder;
  std::vector<OpLine> ops;  // line by line, as in the graph
};
// Of the version that its header names. Throws as ParseInstance.
Instance ReadInstance(std::string_view text, const std::string& file,
                      std::span<const Version> versions);

// The graph in another version, where `more` is what that one adds to the line of an op.
std::string PrintInstance(const Graph& graph, const Version& version,
                          const std::function<std::string(OpId)>& more);

// What a number is of, and what it must not exceed.
struct Quantity {
  std::string name, unit;
  std::int64_t limit = 0;
  std::string limit_text;
};
std::int64_t ParseNumber(const std::string& token, const Quantity& quantity);

// `FILE: line N: what is wrong`.
std::string AtLine(const std::string& file, int line, const std::string& what);

}  // namespace torch_ext::sched
