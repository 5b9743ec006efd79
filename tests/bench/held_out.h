// Tokens of the demo model's held-out text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lckv {

// BOS and the first ids of <folder>/eval.txt, `count` together; empty where the files are not as
// expected.
std::vector<int32_t> held_out_tokens(const std::string& folder, size_t count);

}  // namespace lckv
