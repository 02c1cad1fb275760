// plan_graph GRAPH.txt: prints the best order found, one op a line, and both peaks.
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>

#include "sched/instance.h"
#include "sched/plan.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: plan_graph GRAPH.txt\n";
    return 2;
  }
  std::ifstream file(argv[1]);
  if (!file) {
    std::cerr << argv[1] << ": cannot be read\n";
    return 1;
  }
  std::stringstream text;
  text << file.rdbuf();
  try {
    const torch_ext::sched::Graph graph = torch_ext::sched::ParseInstance(text.str(), argv[1]);
    const torch_ext::sched::Plan plan = torch_ext::sched::MakePlan(graph);
    for (const torch_ext::sched::OpId op : plan.order) std::cout << graph.op(op).name << '\n';
    std::cout << "original peak bytes: " << plan.original_peak_bytes << '\n'
              << "peak bytes: " << plan.peak_bytes << (plan.is_optimal() ? " (optimal)" : "")
              << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
