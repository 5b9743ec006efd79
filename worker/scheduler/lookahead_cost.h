// How many rows an exact prefill walk takes: trades the number of walks (latency) against the rows
// that are walked more than once (throughput). A pure function.
#pragma once

#include <cstdint>

namespace lckv {

struct LookaheadLoad {
  int32_t rows_left = 0;          // of the prompt, from its first unsettled row on
  int32_t num_prompts = 1;        // that are prefilled side by side, this one included
  int32_t num_decoding_rows = 0;  // in the step
  int32_t free_rows = 16;         // a step takes little longer with them than with one row
  float tolerance = 0.0F;
};

// At least 1, at most rows_left.
int32_t choose_lookahead(const LookaheadLoad& load);

}  // namespace lckv
