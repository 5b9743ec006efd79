// What a token depends on besides weights, prompt and sampling: replicas of equal numerics and
// weights give equal tokens in reproducible mode.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/ops.h"

namespace lckv {

struct NumericsOptions {
  bool reproducible = false;
  int32_t prefill_lookahead = 0;  // of reproducible mode
  float prefill_tolerance = 0.0F;
  bool official_decode = false;
  int32_t tensor_parallel_size = 1;  // over how many ranks sums are cut
};

// One line: kernels, number format and modes.
std::string describe_numerics(const Ops& ops, const NumericsOptions& options);

}  // namespace lckv
