// Hashes that every router computes alike, whatever its build and its life.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace lckv {

// A bijection of 64 bits whose every output bit depends on every input bit (SplitMix64's last
// steps).
uint64_t mix(uint64_t value);

// FNV-1a, mixed.
uint64_t stable_hash(absl::string_view bytes);

// Of the tenant and the prompt's leading whole blocks of 16 ids, at most kMaxPrefixTokens ids; a
// prompt shorter than one block counts whole. Prompts that may share KV blocks from their first
// token on, and agree that far, hash alike.
inline constexpr size_t kMaxPrefixTokens = 256;
uint64_t prefix_hash(absl::string_view tenant, const std::vector<uint32_t>& prompt);

}  // namespace lckv
