// What has to hold where an op overwrites. Switched off only to show that a test finds what a rule
// prevents.
#pragma once

#include <array>
#include <utility>

namespace torch_ext::jit {

struct OverwriteRules {
  bool ours = true;    // nothing that is held from outside, or is a constant or a result
  bool others = true;  // what may touch the memory in another run comes before
  bool whole = true;   // nothing that may be a part of larger memory, which would live on
  bool apart = true;   // no other argument in the same memory, but for the very same tensor
  bool bases = true;   // a result that leaves is not written over a view, or it would be one
  bool sizes = true;   // asked in every call, as those below
  bool dtypes = true;
  bool strides = true;
  bool gradients = true;  // the original where gradients are recorded
  bool autocast = true;   // and under autocast
};

inline constexpr std::array<std::pair<const char*, bool OverwriteRules::*>, 10>
    kOverwriteRuleNames = {{
        {"ours", &OverwriteRules::ours},
        {"others", &OverwriteRules::others},
        {"whole", &OverwriteRules::whole},
        {"apart", &OverwriteRules::apart},
        {"bases", &OverwriteRules::bases},
        {"sizes", &OverwriteRules::sizes},
        {"dtypes", &OverwriteRules::dtypes},
        {"strides", &OverwriteRules::strides},
        {"gradients", &OverwriteRules::gradients},
        {"autocast", &OverwriteRules::autocast},
    }};

}  // namespace torch_ext::jit
