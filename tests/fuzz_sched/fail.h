// How a fuzzer says what is wrong: libFuzzer keeps the input of a run that aborts.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace torch_ext::sched::test {

[[noreturn]] inline void Fail(const std::string& what, const std::string& details) {
  std::fprintf(stderr, "FAILED: %s\n%s\n", what.c_str(), details.c_str());
  std::abort();
}

}  // namespace torch_ext::sched::test
