// Which stretches of a module's graph run part by part, and the graph with them.
//
// The rules of operators say what can be run in parts, and the program what a part would take.
// Whether an op keeps its bits in parts, and what scratch memory it takes then, is tried: the graph
// runs on the example, whole, and behind each stretch that was chosen once more in parts, with
// every part of every value compared bit for bit. What is learned goes into the next choice, until
// all that is chosen is known.
//
// So a sliced module is vouched for on machines whose kernels choose as those of this one do.
#pragma once

#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "jit/interference.h"
#include "jit/overwritable.h"
#include "jit/probe.h"
#include "program/levers/slice.h"
#include "program/levers/slice_search.h"
#include "program/program.h"
#include "sched/graph.h"

namespace torch_ext::jit {

class Slicer {
 public:
  // `graph` is prepared and stays as it is; `order` is of its OpNodes, which are called `names`, or
  // as always if there are none. The probe is of these inputs. Where ops may not be edited
  // (WhyNotEdited) there are no stretches.
  Slicer(std::shared_ptr<torch::jit::Graph> graph, sched::Order order, Probe probe,
         Interference interference, std::function<Stack()> make_inputs,
         std::vector<std::string> names = {});

  // Gives buffers the names that they have there, where ops of the same names make them.
  void NameBuffersLike(const program::Program& named);

  // The program with what slices need to know.
  const program::Program& program() const { return program_; }

  // As the functions of levers/slice_search.h; runs the graph to learn.
  std::vector<program::Stretches::Choice> Choose(const program::SliceTargets& targets);
  std::vector<program::Stretch> Random(std::uint64_t seed);
  // Of what was chosen last.
  std::string Obstacles() const;

  // The ops of a stretch that run in parts.
  std::vector<program::OpId> OpsInParts(const program::Stretch& stretch) const;

  // Puts an equal graph in this order, with the stretches, and marks its nodes (TakeMarks).
  void Apply(const std::shared_ptr<torch::jit::Graph>& graph,
             const std::vector<program::Stretch>& stretches) const;

  // No slices, order, overwrite or hoist of the module takes less.
  program::SliceFloor Floor() const;

  // Gives ops and buffers of a sliced program the names they have in this one. Its nodes are those
  // that the marks were taken from.
  void NameAlike(program::Program& sliced, const std::vector<std::int64_t>& marks,
                 const std::vector<program::Stretch>& stretches) const;

 private:
  void Learn(const std::vector<program::Stretch>& stretches);
  program::Program ProgramOf(const std::vector<torch::jit::Node*>& nodes) const;

  std::shared_ptr<torch::jit::Graph> graph_;
  sched::Order order_;
  Probe probe_;
  Interference interference_;
  std::function<Stack()> make_inputs_;
  std::vector<std::string> names_;
  Overwritable overwritable_;
  FormsOfArguments forms_;
  program::Program program_;
  program::SliceFacts facts_;
  std::vector<program::Stretches::Choice> choices_;
};

// Nodes of a sliced graph that are in the original are marked with their op, those that are a
// stretch with kFirstStretch and its number.
inline constexpr std::int64_t kFirstStretch = std::int64_t{1} << 32;

// What the op of a stretch is called.
std::string NameOfStretch(std::size_t number);

}  // namespace torch_ext::jit
