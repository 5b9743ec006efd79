// A stream's number as a prompt: sources tell streams apart by it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace lckv::bench {

inline constexpr size_t kNumbersPerToken = 1000;

// Of ids that every vocabulary has.
inline std::array<uint32_t, 2> prompt_of(size_t stream) {
  return {static_cast<uint32_t>(3 + stream / kNumbersPerToken),
          static_cast<uint32_t>(3 + stream % kNumbersPerToken)};
}

template <typename Ids>
size_t stream_of(const Ids& prompt) {
  return static_cast<size_t>(prompt[0] - 3) * kNumbersPerToken + static_cast<size_t>(prompt[1] - 3);
}

}  // namespace lckv::bench
