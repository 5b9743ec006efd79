// MemoryGeometry: how KV memory is cut, from a model's ranges and the memory it may take. Pure
// functions.
//
// A block has as many bytes as `block_size` slots of the largest unit; it holds a power of two of
// every other unit's slots.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/kv/pass_plan.h"

namespace lckv {

struct GeometryOptions {
  uint64_t kv_cache_bytes = 0;
  uint64_t swap_bytes = 0;  // of the host tier; only maps with cyclic groups use one
  int32_t block_size = 16;  // tokens per block of the largest slot
  DType kv_dtype = DType::kFloat32;
  int32_t hidden_size = 0;
  int32_t max_context = 0;
  int32_t max_num_seqs = 0;
  int32_t staging_rows = 0;  // per cyclic group; 0: the context and one row per seat
  // Rows that a walk needs staged together: reproducible mode's look-ahead.
  int32_t window_rows = 1;
};

struct MemoryGeometry {
  int64_t block_bytes = 0;
  std::vector<int32_t> slots_per_block;  // per unit
  int32_t num_blocks = 0;
  int32_t num_host_blocks = 0;
  int32_t staging_rows = 0;     // per cyclic group; 0 where there is none
  int64_t staging_bytes = 0;    // of all groups, besides the blocks
  int64_t bytes_per_token = 0;  // of committed KV, over all units
  int64_t capacity_tokens = 0;  // that the blocks hold when all are full

  // Blocks that a sequence of that many tokens holds, where no window lets any go.
  int64_t blocks_of(int64_t num_tokens) const;
};

// Of committed KV, over all units of `passes`: one rank's, or the whole model's.
int64_t bytes_per_token(const PassPlan& passes, DType kv_dtype);

// `passes` are those of one rank, which has all the memory to itself. Errors: InvalidArgument, one
// line that names the flag.
absl::StatusOr<MemoryGeometry> plan_memory(const PassPlan& passes, const GeometryOptions& options);

}  // namespace lckv
