// KvMemory: everything that sequences hold, counted in blocks and rows.
//
// Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "worker/kv/block_pool.h"
#include "worker/kv/deferred_release.h"
#include "worker/kv/prefix_index.h"
#include "worker/kv/staging.h"

namespace lckv {

struct KvMemoryOptions {
  int32_t num_blocks = 0;
  int32_t num_host_blocks = 0;
  int32_t num_groups = 0;
  int32_t staging_rows = 0;  // per group
  std::vector<PrefixUnit> units;
};

struct KvMemory {
  explicit KvMemory(KvMemoryOptions options)
      : blocks(options.num_blocks),
        host_blocks(options.num_host_blocks),
        staging(options.num_groups, options.staging_rows),
        prefixes(std::move(options.units), &blocks) {}

  // The caller takes no more than blocks.num_free(). What idle blocks hold goes last.
  BlockRef take_block() {
    if (blocks.num_blank() == 0) prefixes.forget_oldest();
    std::optional<BlockRef> block = blocks.take();
    LCKV_CHECK(block.has_value());
    return *std::move(block);
  }

  void commit(uint64_t step) {
    deferred.commit(step);
    deferred_host.commit(step);
  }

  BlockPool blocks;
  HostBlockPool host_blocks;
  Staging staging;
  PrefixIndex prefixes;
  // After the pools: what is still held goes back to them first.
  DeferredRelease<BlockRef> deferred;
  DeferredRelease<HostBlockRef> deferred_host;
};

}  // namespace lckv
