// Operators that can write their result over an argument: the one table for all adaptors.
//
// Not every form that looks like one is one: `relu.out` and other generated variants compute into
// new memory and copy. Each entry is tested (test_operators_overwriting.py): it takes no memory for
// the result, and gives the bits of the original form, on special values too, wherever it claims
// to. What all entries claim:
//   dtypes    floating point: the result has the dtype of the argument then
//   layout    argument and `shaped` have the strides of a new tensor of that size, and so does the
//             result, in both forms; where `keeps_layout`: any, if the original form gives the
//             result the strides of the argument, which is without gaps (not with three operands,
//             for the same reason as below)
//   sizes     those of the argument, after broadcasting with `shaped`, which only operators of two
//             operands do: kernels without vectors keep other payloads of NaNs in place
//   overlap   a `shaped` argument may be the very same tensor; all others are apart
//   device    the CPU
#pragma once

#include <string>
#include <vector>

namespace torch_ext::program {

struct OverwritingForm {
  std::string oper, overload;       // what a program calls; its first result is meant
  std::string argument;             // the argument whose memory can hold the result, by name
  std::string form, form_overload;  // what is called instead; arguments of equal names are equal
  std::string target;               // the argument of the form that is written to
  std::vector<std::string> shaped;  // other tensors that are broadcast with the argument
  std::vector<std::string> typed;   // those of `shaped` that have a say in the dtype
  std::string dtype;                // an argument that has to be None, or the dtype that there is
  std::string no;                   // an argument that has to be False
  std::string adds_no;              // an argument that only the form has: False
  std::string rest_like;      // more results of the form are empty, with the dtype of this argument
  bool broadcasts = false;    // `shaped` may have other sizes than the argument
  bool keeps_layout = false;  // works element by element, in whatever layout
};

const std::vector<OverwritingForm>& OverwritingForms();

}  // namespace torch_ext::program
