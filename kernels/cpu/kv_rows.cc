#include "kernels/cpu/kv_rows.h"

#include <cstring>
#include <utility>

#include "kernels/bfloat16.h"
#include "kernels/check.h"
#include "kernels/cpu/elementwise.h"

namespace lckv {
namespace {

int64_t row_width(const KvLayout& layout) {
  return static_cast<int64_t>(layout.kv_heads) * layout.head_dim;
}

int64_t row_bytes(const KvLayout& layout) {
  return row_width(layout) * static_cast<int64_t>(dtype_bytes(layout.dtype));
}

// Where the key of one head lies in a slot; the value lies row_bytes * slots further.
std::byte* slot_key(const KvLayout& layout, int32_t block, int32_t slot, int32_t head) {
  LCKV_CHECK(block >= 0 && slot >= 0 && slot < layout.slots_per_block);
  const int64_t index =
      (static_cast<int64_t>(head) * layout.slots_per_block + slot) * layout.head_dim;
  return layout.base + block * layout.block_bytes +
         index * static_cast<int64_t>(dtype_bytes(layout.dtype));
}

float widened(float value) { return value; }
float widened(uint16_t value) { return bfloat16_to_float(value); }

// In several sums, so that the loop keeps up with memory; their order is fixed.
template <class Value>
void add_distance(const std::byte* fresh, const std::byte* read, int64_t size,
                  KvDistance& distance) {
  constexpr int64_t kSums = 16;  // rows are multiples of the smallest head
  const auto* const now = reinterpret_cast<const Value*>(fresh);
  const auto* const before = reinterpret_cast<const Value*>(read);
  float differences[kSums] = {};
  float norms[kSums] = {};
  for (int64_t i = 0; i < size; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      const float value = widened(now[i + j]);
      const float difference = value - widened(before[i + j]);
      differences[j] += difference * difference;
      norms[j] += value * value;
    }
  }
  for (int64_t j = 0; j < kSums; ++j) {
    distance.difference_squared += differences[j];
    distance.norm_squared += norms[j];
  }
}

}  // namespace

void stage_rows(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0) continue;
    const int64_t from = static_cast<int64_t>(i) * row_stride;
    const int64_t to = ids[i] * row_bytes(layout);
    convert_row(k + from, row_width(layout), layout.dtype, staged.k + to);
    convert_row(v + from, row_width(layout), layout.dtype, staged.v + to);
  }
}

void zero_rows(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& staged) {
  const int64_t bytes = row_bytes(layout);
  for (const int32_t id : ids) {
    std::memset(staged.k + id * bytes, 0, static_cast<size_t>(bytes));
    std::memset(staged.v + id * bytes, 0, static_cast<size_t>(bytes));
  }
}

void copy_rows(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) {
  const int64_t bytes = row_bytes(layout);
  for (const int32_t id : ids) {
    std::memcpy(to.k + id * bytes, from.k + id * bytes, static_cast<size_t>(bytes));
    std::memcpy(to.v + id * bytes, from.v + id * bytes, static_cast<size_t>(bytes));
  }
}

KvDistance row_distance(const KvLayout& layout, int32_t id, const KvRows& fresh,
                        const KvRows& read) {
  LCKV_CHECK(layout.dtype != DType::kFloat16 && row_width(layout) % 16 == 0);
  const int64_t bytes = row_bytes(layout);
  const int64_t at = id * bytes;
  KvDistance distance;
  for (const auto& [now, before] :
       {std::pair(fresh.k + at, read.k + at), std::pair(fresh.v + at, read.v + at)}) {
    if (layout.dtype == DType::kFloat32) {
      add_distance<float>(now, before, row_width(layout), distance);
    } else {
      add_distance<uint16_t>(now, before, row_width(layout), distance);
    }
    if (std::memcmp(now, before, static_cast<size_t>(bytes)) != 0) distance.differs = 1.0F;
  }
  return distance;
}

void append_rows(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) {
  LCKV_CHECK(blocks.size() == slots.size());
  const int64_t values = row_bytes(layout) * layout.slots_per_block;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i] < 0) continue;
    for (int32_t head = 0; head < layout.kv_heads; ++head) {
      std::byte* const key = slot_key(layout, blocks[i], slots[i], head);
      const int64_t from =
          static_cast<int64_t>(i) * row_stride + static_cast<int64_t>(head) * layout.head_dim;
      convert_row(k + from, layout.head_dim, layout.dtype, key);
      convert_row(v + from, layout.head_dim, layout.dtype, key + values);
    }
  }
}

void commit_rows(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) {
  LCKV_CHECK(ids.size() == blocks.size() && blocks.size() == slots.size());
  const int64_t values = row_bytes(layout) * layout.slots_per_block;
  const int64_t head_bytes = row_bytes(layout) / layout.kv_heads;
  for (size_t i = 0; i < ids.size(); ++i) {
    for (int32_t head = 0; head < layout.kv_heads; ++head) {
      std::byte* const key = slot_key(layout, blocks[i], slots[i], head);
      const int64_t from = ids[i] * row_bytes(layout) + head * head_bytes;
      std::memcpy(key, staged.k + from, static_cast<size_t>(head_bytes));
      std::memcpy(key + values, staged.v + from, static_cast<size_t>(head_bytes));
    }
  }
}

}  // namespace lckv
