// Log-probabilities and the draw of a token, on host memory: shared by the host backends. Pure and
// single-threaded, so a row's result depends on that row alone.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace lckv {

// See Ops::logprobs and Ops::sample.
void row_logprobs(const float* logits, int32_t vocabulary, std::span<const int32_t> ids, float* own,
                  int32_t num_top, TopEntry* top);
int32_t draw_token(const SampleArgs& args);

}  // namespace lckv
