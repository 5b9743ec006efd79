// What --block-size may be: tokens per block of the largest slot.
#pragma once

#include <bit>
#include <cstdint>

namespace lckv {

inline constexpr int32_t kMaxBlockSize = 4096;

constexpr bool is_block_size(int64_t tokens) {
  return tokens >= 1 && tokens <= kMaxBlockSize &&
         std::has_single_bit(static_cast<uint64_t>(tokens));
}

}  // namespace lckv
