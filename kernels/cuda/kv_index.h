// Where keys and values lie, in values from a base. Constexpr: the device's and the host's.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace lckv {

constexpr int64_t kv_row_width(const KvLayout& layout) {
  return int64_t{layout.kv_heads} * layout.head_dim;
}

constexpr int64_t kv_row_bytes(const KvLayout& layout) {
  return kv_row_width(layout) * static_cast<int64_t>(dtype_bytes(layout.dtype));
}

// From a key to its value within a block.
constexpr int64_t value_distance(const KvLayout& layout) {
  return kv_row_width(layout) * layout.slots_per_block;
}

// Element j of a row, counted over all heads, of a slot's key: from the block's begin.
constexpr int64_t slot_element(const KvLayout& layout, int32_t slot, int64_t j) {
  const int64_t head = j / layout.head_dim;
  return (head * layout.slots_per_block + slot) * layout.head_dim + j % layout.head_dim;
}

}  // namespace lckv
