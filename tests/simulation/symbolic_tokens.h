// Tokens that follow from the history before them alone.
#pragma once

#include <cstdint>

#include "worker/scheduler/sequence_spec.h"

namespace lckv::simulation {

uint64_t extend_hash(uint64_t hash, int32_t token);
// The token that follows a history.
int32_t next_token(uint64_t hash);
constexpr int32_t kVocabulary = 50;
constexpr int32_t kEos = 0;
// Generated token `index` of a sequence with that history: what stops it cannot be drawn too early.
int32_t drawn_token(const SequenceSpec& spec, uint64_t hash, int32_t index);

}  // namespace lckv::simulation
