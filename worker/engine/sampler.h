// Sampler: draws tokens from logits and tells their log-probabilities.
//
// Per seat it keeps what sampling depends on besides the logits: the ids that penalties count, in
// the order bias, penalties, suppression of ends, then Ops::sample. Log-probabilities are the
// model's own: before all of these. Owner: ModelRunner. Thread: the engine's only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "kernels/ops.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

struct SamplerOptions {
  int32_t max_num_seqs = 0;
  int32_t max_rows = 0;  // of a draw
  int32_t vocabulary = 0;
};

class Sampler {
 public:
  // `ops` must outlive it.
  Sampler(const SamplerOptions& options, Ops& ops);

  void open(const SeatOpening& opening);
  void close(SeatId seat);
  // One result for each of the rows, which draw at most once for a seat. `logits` [rows,
  // vocabulary] are overwritten.
  std::vector<SampleResult> draw(std::span<const SampleRow> rows, float* logits);

 private:
  struct Seat {
    std::shared_ptr<const SequenceSpec> spec;  // null: empty
    // Filled only where a penalty needs them.
    absl::flat_hash_map<int32_t, int32_t> generated;  // id -> how often
    absl::flat_hash_set<int32_t> seen;                // in prompt or generated
  };
  Seat& seat_of(const SampleRow& row);
  SampleArgs sample_args(const SampleRow& row, const float* logits);
  void count(int32_t token, Seat& seat) const;
  // Makes the request's changes. Returns where the logits are as the model gave them, if
  // log-probabilities are asked for.
  const float* adjust(const SampleRow& row, float* logits);
  const float* keep(const float* logits);
  // Of the rows that ask for them, of which logged_ has all but the ids.
  void find_logprobs(std::span<const SampleRow> rows, std::vector<SampleResult>& results);

  const int32_t vocabulary_;
  Ops& ops_;
  std::vector<Seat> seats_;
  const int32_t max_kept_;
  std::unique_ptr<DeviceBuffer> kept_;  // [max_kept, vocabulary]: logits before they were changed
  // Of the draw at hand.
  int32_t num_kept_ = 0;
  std::vector<SampleArgs> draws_;
  std::vector<int32_t> tokens_;
  std::vector<LogprobArgs> logged_;
  std::vector<int32_t> ids_;  // of logits that change next
  std::vector<float> values_;
};

}  // namespace lckv
