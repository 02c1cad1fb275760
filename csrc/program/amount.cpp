#include "program/amount.h"

#include <array>
#include <cstdio>

namespace torch_ext::program {
namespace {

std::int64_t UnitBytes(const std::string& unit) {
  if (unit == "MiB") return std::int64_t{1} << 20;
  return unit == "KiB" ? std::int64_t{1} << 10 : 1;
}

// Commas between the thousands of a number as printf writes it.
std::string Grouped(std::string number) {
  const std::size_t point = number.find('.');
  const std::size_t first = number.starts_with('-') ? 1 : 0;
  for (std::size_t i = point == std::string::npos ? number.size() : point; i > first + 3;) {
    i -= 3;
    number.insert(i, ",");
  }
  return number;
}

}  // namespace

std::string UnitFor(std::int64_t bytes) {
  for (const char* unit : {"MiB", "KiB"}) {
    if (static_cast<double>(bytes) >= 0.1 * static_cast<double>(UnitBytes(unit))) return unit;
  }
  return "B";
}

std::string InUnit(std::int64_t bytes, const std::string& unit) {
  if (unit == "B") return Grouped(std::to_string(bytes));
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.2f",
                static_cast<double>(bytes) / static_cast<double>(UnitBytes(unit)));
  return Grouped(text.data());
}

std::string Amount(std::int64_t bytes) {
  const std::string unit = UnitFor(bytes);
  return InUnit(bytes, unit) + " " + unit;
}

}  // namespace torch_ext::program
