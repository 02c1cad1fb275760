// The text format of a graph, version 1: parse and print.
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

#include <string>
#include <string_view>

#include "sched/graph.h"

namespace torch_ext::sched {

// `file` is only for messages. Throws std::invalid_argument `FILE: line N: what is wrong`.
Graph ParseInstance(std::string_view text, const std::string& file = "<text>");

// ParseInstance(PrintInstance(g)) equals g.
std::string PrintInstance(const Graph& graph);

}  // namespace torch_ext::sched
