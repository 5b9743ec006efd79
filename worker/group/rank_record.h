// RankRecord: what a rank tells its launcher, as one write to a pipe between them.
#pragma once

#include <climits>
#include <cstdint>

#include "worker/engine/rank_progress.h"

namespace lckv {

// Both ends are the same program, so its layout is its format.
struct RankRecord {
  enum class Kind : uint32_t {
    kPulse,
    kListening,  // the leader serves ranks on `port`
    kFailed,     // last: the rank ends, `why` says for what reason
  };
  Kind kind = Kind::kPulse;
  int32_t rank = 0;  // whom it is about: kFailed may blame another rank
  uint64_t step = 0;
  uint16_t port = 0;
  bool second_hand = false;  // kFailed: what the rank saw of a failure that may be another's
  char operation[16] = {};   // zero-terminated, as the next
  char why[456] = {};
};

// The kernel writes it whole or not at all.
static_assert(sizeof(RankRecord) <= PIPE_BUF);

}  // namespace lckv
