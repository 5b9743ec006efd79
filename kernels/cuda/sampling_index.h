// The integers that the draw of a token is made of. Constexpr: the device's and the host's.
//
// Top-k, top-p and min-p each leave a beginning of all tokens in the order of their logits. So what
// is left is told by its mass, and a draw is the token at which the running sum of masses passes a
// target: no sorting. Masses are weights as integers: their sums do not depend on the order in
// which threads add.
#pragma once

#include <bit>
#include <cstdint>

namespace lckv {

using Mass = unsigned long long;

// Larger for larger logits, equal for equal ones. NaN counts as the least likely.
constexpr uint32_t ordered_key(float logit) {
  constexpr uint32_t kSign = 0x80000000U;
  constexpr uint32_t kInfinity = 0x7F800000U;
  uint32_t bits = std::bit_cast<uint32_t>(logit);
  if ((bits & ~kSign) > kInfinity) bits = kSign | kInfinity;
  if (bits == kSign) bits = 0;  // zeros of both signs are equal
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

constexpr float logit_of_key(uint32_t key) {
  constexpr uint32_t kSign = 0x80000000U;
  return std::bit_cast<float>((key & kSign) != 0 ? key & ~kSign : ~key);
}

// Fractional bits of a mass, so that the masses of a whole vocabulary, at most 1 each, fit in 63.
constexpr int mass_bits(int32_t vocabulary) {
  return 62 - std::bit_width(static_cast<uint32_t>(vocabulary));
}

// Of a weight in [0, 1], rounded.
constexpr Mass mass_of_weight(double weight, int bits) {
  return static_cast<Mass>(weight * static_cast<double>(Mass{1} << bits) + 0.5);
}

// floor(mass * random / 2^53)
constexpr Mass draw_target(Mass mass, uint64_t random_bits) {
  return static_cast<Mass>((static_cast<unsigned __int128>(mass) * random_bits) >> 53);
}

// The least mass that reaches the share, and no less than that of the first token.
constexpr Mass share_of_mass(Mass mass, double share) {
  const double product = share * static_cast<double>(mass);
  auto wanted = static_cast<Mass>(product);
  if (static_cast<double>(wanted) < product) ++wanted;
  if (wanted > mass) wanted = mass;
  return wanted > 0 ? wanted : 1;
}

// The most likely token's place in one number: the largest logit, the lowest id among equals.
constexpr Mass likeliest_first(uint32_t key, int32_t id) {
  return Mass{key} << 32 | ~static_cast<uint32_t>(id);
}
constexpr int32_t id_of(Mass likeliest) {
  return static_cast<int32_t>(~static_cast<uint32_t>(likeliest));
}

}  // namespace lckv
