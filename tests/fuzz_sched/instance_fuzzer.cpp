// Any bytes as a text of a graph: they parse, or std::invalid_argument says why not. What parses is
// printed, and what is printed parses and prints the same again.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fail.h"
#include "program/instance.h"

namespace torch_ext::program {
namespace {

using sched::test::Fail;

void TestOneInput(std::string_view text) {
  std::optional<GraphBuilder> graph;
  try {
    graph = ParseInstance(text);
  } catch (const std::invalid_argument&) {
    return;
  }  // anything else ends the program
  graph->Build();
  const std::string printed = PrintInstance(*graph);
  try {
    const std::string again = PrintInstance(ParseInstance(printed));
    if (again != printed) Fail("printing is not stable", printed + "---\n" + again);
  } catch (const std::invalid_argument& error) {
    Fail(std::string("what was printed does not parse: ") + error.what(), printed);
  }
}

}  // namespace
}  // namespace torch_ext::program

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  torch_ext::program::TestOneInput({reinterpret_cast<const char*>(data), size});
  return 0;
}
