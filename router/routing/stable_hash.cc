#include "router/routing/stable_hash.h"

#include <algorithm>

namespace lckv {
namespace {

constexpr size_t kBlockTokens = 16;
constexpr uint64_t kFnvOffset = 0xcbf29ce484222325;
constexpr uint64_t kFnvPrime = 0x100000001b3;

}  // namespace

uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

uint64_t stable_hash(absl::string_view bytes) {
  uint64_t hash = kFnvOffset;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * kFnvPrime;
  return mix(hash);
}

uint64_t prefix_hash(absl::string_view tenant, const std::vector<uint32_t>& prompt) {
  size_t count = std::min(prompt.size(), kMaxPrefixTokens);
  if (count >= kBlockTokens) count -= count % kBlockTokens;
  uint64_t hash = stable_hash(tenant);
  for (size_t i = 0; i < count; ++i) hash = (hash ^ prompt[i]) * kFnvPrime;
  return mix(hash);
}

}  // namespace lckv
