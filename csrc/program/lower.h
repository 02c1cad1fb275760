// From a program to the integers of the core.
#pragma once

#include "program/hazards.h"
#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::program {

// Op i is program.ops[i], buffer i is program.buffers[i]. An op comes after the makers of what it
// reads, and after what the hazards say.
// Throws std::invalid_argument naming the op, as sched::Graph does.
sched::Graph Lower(const Program& program, const HazardRules& rules = {});

}  // namespace torch_ext::program
