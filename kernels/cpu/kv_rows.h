// Moves of keys and values between float rows, staged rows and slots; see Ops for the meaning.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace lckv {

void stage_rows(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged);
void zero_rows(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& staged);
void copy_rows(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to);
KvDistance row_distance(const KvLayout& layout, int32_t id, const KvRows& fresh,
                        const KvRows& read);
void append_rows(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots);
void commit_rows(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots);

}  // namespace lckv
