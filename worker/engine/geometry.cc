#include "worker/engine/geometry.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/kv/block_size.h"

namespace lckv {
namespace {

int64_t slot_bytes(const PassPlan& passes, int32_t unit, DType dtype) {
  const LayerSpec& spec = passes.layers.layers[passes.units[unit].layer];
  return 2 * static_cast<int64_t>(dtype_bytes(dtype)) * spec.kv_heads * spec.head_dim;
}

int64_t staging_row_bytes(const PassPlan& passes, const GeometryOptions& options) {
  int64_t bytes = 0;
  for (const CyclicGroup& group : passes.groups) {
    bytes += 2 * static_cast<int64_t>(sizeof(float)) * options.hidden_size;
    for (const UnitId unit : group.units) {
      bytes += slot_bytes(passes, raw(unit), options.kv_dtype);
    }
    for (const UnitId unit : group.units_read_upward) {
      bytes += slot_bytes(passes, raw(unit), options.kv_dtype);
    }
  }
  return bytes;
}

absl::Status check_options(const PassPlan& passes, const GeometryOptions& options) {
  if (!is_block_size(options.block_size)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--block-size: ", options.block_size, " is not a power of two from 1 to ", kMaxBlockSize));
  }
  if (passes.num_groups() > 0 && options.staging_rows != 0 &&
      options.staging_rows < options.window_rows) {
    return absl::InvalidArgumentError(absl::StrCat("--staging-rows: ", options.staging_rows,
                                                   " is below the ", options.window_rows,
                                                   " rows that one walk of a prompt takes"));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t MemoryGeometry::blocks_of(int64_t num_tokens) const {
  int64_t blocks = 0;
  for (const int32_t slots : slots_per_block) blocks += (num_tokens + slots - 1) / slots;
  return blocks;
}

int64_t bytes_per_token(const PassPlan& passes, DType kv_dtype) {
  int64_t bytes = 0;
  for (int32_t u = 0; u < passes.num_units(); ++u) bytes += slot_bytes(passes, u, kv_dtype);
  return bytes;
}

absl::StatusOr<MemoryGeometry> plan_memory(const PassPlan& passes, const GeometryOptions& options) {
  LCKV_CHECK(passes.num_units() > 0 && options.hidden_size > 0 && options.max_context > 0);
  if (absl::Status status = check_options(passes, options); !status.ok()) return status;
  MemoryGeometry geometry{.bytes_per_token = bytes_per_token(passes, options.kv_dtype)};
  for (int32_t u = 0; u < passes.num_units(); ++u) {
    const int64_t bytes = slot_bytes(passes, u, options.kv_dtype);
    geometry.block_bytes = std::max(geometry.block_bytes, options.block_size * bytes);
  }
  int32_t slots_max = 0;
  for (int32_t u = 0; u < passes.num_units(); ++u) {
    const int64_t slots = geometry.block_bytes / slot_bytes(passes, u, options.kv_dtype);
    geometry.slots_per_block.push_back(
        static_cast<int32_t>(std::bit_floor(static_cast<uint64_t>(slots))));
    slots_max = std::max(slots_max, geometry.slots_per_block.back());
  }

  const auto num_blocks = [&geometry](uint64_t bytes) {
    return bytes / static_cast<uint64_t>(geometry.block_bytes);
  };
  constexpr uint64_t kMaxBlocks = std::numeric_limits<int32_t>::max();
  if (num_blocks(options.kv_cache_bytes) < static_cast<uint64_t>(passes.num_units())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--kv-cache-memory: ", options.kv_cache_bytes, " bytes are too few: each of the ",
        passes.num_units(), " cached layers takes a block of ", geometry.block_bytes, " bytes"));
  }
  if (num_blocks(options.kv_cache_bytes) > kMaxBlocks) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-cache-memory: more than ", kMaxBlocks,
                                                   " blocks; a larger --block-size makes fewer"));
  }
  geometry.num_blocks = static_cast<int32_t>(num_blocks(options.kv_cache_bytes));
  // As many tokens as fill every unit's block of the most slots take this many blocks.
  const int64_t blocks_of_most = geometry.blocks_of(slots_max);
  geometry.capacity_tokens = geometry.num_blocks * int64_t{slots_max} / blocks_of_most;
  if (passes.num_groups() == 0) return geometry;

  geometry.num_host_blocks =
      static_cast<int32_t>(std::min(num_blocks(options.swap_bytes), kMaxBlocks));
  geometry.staging_rows = options.staging_rows;
  if (geometry.staging_rows == 0) {
    geometry.staging_rows =
        std::max(options.max_context, options.window_rows) + options.max_num_seqs;
  }
  geometry.staging_bytes = geometry.staging_rows * staging_row_bytes(passes, options);
  return geometry;
}

}  // namespace lckv
