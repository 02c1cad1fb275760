// From the call of an op to what slices ask of it: once for all adaptors.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "program/operators/slicing.h"
#include "program/program.h"

namespace torch_ext::program {

// An argument of a call: the value it is, or those in the list that it is.
struct Argument {
  std::string name;
  std::vector<std::string> values;
};

// Fills `slicings` of the op and counts its work. It is called with these tensors and constants,
// and with nothing else that may differ from run to run. What is known of all values is in
// `tensors` already.
//
// An op has none if its result may be of another size or dtype for equal tensors (the default dtype
// decides where integers become floats), and in dimensions where a value is several arguments of
// which other parts are needed.
void AddSlicings(Program& program, OpId op, const std::vector<Argument>& arguments,
                 std::map<std::string, CallConstant> constants);

// Parts and threads (Program::run_elements): twice the longest vector of floats, for each share of
// a run that up to as many threads may get.
void SetThreads(Program& program, int threads);

}  // namespace torch_ext::program
