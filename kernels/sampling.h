// Log-probabilities and the draw of a token, on host memory: shared by the host backends. Pure and
// single-threaded, so a row's result depends on that row alone.
#pragma once

#include <cstdint>

#include "kernels/ops.h"
#include "kernels/philox.h"

namespace lckv {

// 53 random bits, from the seed, the choice and the position alone: every backend's draw.
constexpr uint64_t draw_bits(uint64_t seed, uint32_t choice, uint32_t position) {
  const auto words = philox_4x32_10(
      {position, choice, 0, 0}, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{words[0]} << 32 | words[1]) >> 11;
}

// See Ops::logprobs and Ops::sample; of what a row asks for, the former has the most likely first.
void row_logprobs(const LogprobArgs& row, int32_t vocabulary);
int32_t draw_token(const SampleArgs& args);

}  // namespace lckv
