// KvMemory: everything that sequences hold, counted in blocks and rows.
//
// Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>

#include "worker/kv/block_pool.h"
#include "worker/kv/deferred_release.h"
#include "worker/kv/staging.h"

namespace lckv {

struct KvMemory {
  KvMemory(int32_t num_blocks, int32_t num_host_blocks, int32_t num_groups, int32_t staging_rows)
      : blocks(num_blocks), host_blocks(num_host_blocks), staging(num_groups, staging_rows) {}

  void commit(uint64_t step) {
    deferred.commit(step);
    deferred_host.commit(step);
  }

  BlockPool blocks;
  HostBlockPool host_blocks;
  Staging staging;
  // After the pools: what is still held goes back to them first.
  DeferredRelease<BlockRef> deferred;
  DeferredRelease<HostBlockRef> deferred_host;
};

}  // namespace lckv
