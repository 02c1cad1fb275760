// Amounts of memory for people: in MiB (2^20 bytes) or, where small, in KiB or bytes.
#pragma once

#include <cstdint>
#include <string>

namespace torch_ext::program {

std::string UnitFor(std::int64_t bytes);  // in which two decimals tell something of an amount
std::string InUnit(std::int64_t bytes, const std::string& unit);  // "1,024.00", without the unit
std::string Amount(std::int64_t bytes);                           // "1,024.00 MiB"

}  // namespace torch_ext::program
