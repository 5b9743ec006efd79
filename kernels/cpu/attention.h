// Attention over committed slots and staged rows; see Ops::attention.
#pragma once

#include "kernels/ops.h"

namespace lckv {

// Largest number of query heads that share one KV head, and largest head.
inline constexpr int32_t kMaxGroupHeads = 64;
inline constexpr int32_t kMaxHeadDim = 256;

// Spreads (row, KV head) pairs over the OpenMP pool, each wholly on one thread.
void cpu_attention(const AttentionArgs& args);

}  // namespace lckv
