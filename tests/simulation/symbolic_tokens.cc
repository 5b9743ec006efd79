#include "tests/simulation/symbolic_tokens.h"

#include <algorithm>
#include <vector>

namespace lckv::simulation {
namespace {

bool stops(const SequenceSpec& spec, int32_t token) {
  const auto in = [token](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return in(spec.eos_token_ids) || in(spec.stop_token_ids);
}

}  // namespace

uint64_t extend_hash(uint64_t hash, int32_t token) {
  uint64_t x = hash * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(token) + 0x7F4A7C15ULL;
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9ULL;
  return x ^ (x >> 32);
}

int32_t next_token(uint64_t hash) { return static_cast<int32_t>((hash >> 7) % kVocabulary); }

int32_t drawn_token(const SequenceSpec& spec, uint64_t hash, int32_t index) {
  int32_t token = next_token(hash);
  while (index < spec.min_new_tokens && stops(spec, token)) token = (token + 1) % kVocabulary;
  return token;
}

}  // namespace lckv::simulation
