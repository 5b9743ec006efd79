// Strong names for the small integers that scheduler, tables and runner exchange.
#pragma once

#include <cstdint>

namespace lckv {

// A block of the device pool, of the host tier, and a row of one cyclic group's staging.
enum class BlockId : int32_t {};
enum class HostBlockId : int32_t {};
enum class StagingRow : int32_t {};

// A cached layer: its index among the cached layers, ascending by layer.
enum class UnitId : int32_t {};

// A place in the batch: 0 .. max_num_seqs - 1. Every rank mirrors tables and sampling state per
// seat.
enum class SeatId : int32_t {};

// Chosen by whoever submits; never used again.
enum class SequenceId : uint64_t {};

template <class Id>
constexpr auto raw(Id id) {
  if constexpr (sizeof(Id) == 8) {
    return static_cast<uint64_t>(id);
  } else {
    return static_cast<int32_t>(id);
  }
}

}  // namespace lckv
