// The draw of a token and log-probabilities, of a row by one block of threads; see Ops::sample
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

struct DrawnRows {
  const SampleArgs* rows = nullptr;  // [num_rows]
  int32_t num_rows = 0;
  int32_t vocabulary = 0;  // of every row
  Mass* masses = nullptr;  // [num_rows, vocabulary]: scratch
};
void draw_rows(const DrawnRows& args, cudaStream_t stream);

struct LoggedRows {
  const LogprobArgs* rows = nullptr;  // [num_rows]
  int32_t num_rows = 0;
  int32_t vocabulary = 0;  // of every row
};
void find_row_logprobs(const LoggedRows& args, cudaStream_t stream);

}  // namespace lckv
