// Rotary tables, on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace lckv {

// cos [max_positions, head_dim / 2], then sin likewise. Scalings as Hugging Face transformers'
// `default`, `linear` and `llama3` rope types define them.
std::vector<float> rope_cos_sin(const RopeOptions& options, int64_t max_positions);

}  // namespace lckv
