// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011): four random words from a counter and a key, without state.
#pragma once

#include <array>
#include <cstdint>

namespace lckv {

constexpr std::array<uint32_t, 4> philox_4x32_10(std::array<uint32_t, 4> counter,
                                                 std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = 0xD2511F53ULL * counter[0];
    const uint64_t high = 0xCD9E8D57ULL * counter[2];
    counter = {static_cast<uint32_t>(high >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(high),
               static_cast<uint32_t>(low >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(low)};
    key = {key[0] + 0x9E3779B9U, key[1] + 0xBB67AE85U};
  }
  return counter;
}

}  // namespace lckv
