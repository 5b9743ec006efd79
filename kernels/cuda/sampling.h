// The draw of a token and log-probabilities, of one row by one block of threads; see Ops::sample
// and Ops::logprobs for the meaning. All pointers are device pointers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sampling_index.h"
#include "kernels/ops.h"

namespace lckv {

struct ChangedLogits {
  float* logits = nullptr;
  LogitChange change = LogitChange::kAdd;
  const int32_t* ids = nullptr;  // [count]
  const float* values = nullptr;
  int32_t count = 0;
};
void change_row_logits(const ChangedLogits& args, cudaStream_t stream);

// *token: the id. masses [vocabulary]: scratch.
void draw_row(const SampleArgs& args, Mass* masses, int32_t* token, cudaStream_t stream);

struct RowLogprobs {
  const float* logits = nullptr;  // [vocabulary]
  int32_t vocabulary = 0;
  const int32_t* ids = nullptr;  // [num_ids]
  int32_t num_ids = 0;
  int32_t num_top = 0;
  double* norm = nullptr;   // of all logits: what a log-probability is less than its logit
  float* own = nullptr;     // [num_ids] logits
  TopEntry* top = nullptr;  // [num_top] the most likely ones in any order, with their logits
};
void find_row_logprobs(const RowLogprobs& args, cudaStream_t stream);

}  // namespace lckv
