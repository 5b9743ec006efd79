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

class Sampler {
 public:
  // `ops` must outlive it.
  Sampler(int32_t max_num_seqs, int32_t vocabulary, Ops& ops);

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
  SampleResult draw_with_logprobs(const SampleRow& row, float* logits);
  SampleArgs sample_args(const SampleRow& row, float* logits);
  void count(int32_t token, Seat& seat) const;
  void adjust(const SampleRow& row, const Seat& seat, float* logits);
  // Makes the change of ids_ and values_, if any, and forgets them.
  void change(LogitChange change, float* logits);
  TokenLogprob logprob(const float* logits, int32_t token, int32_t num_top);

  const int32_t vocabulary_;
  Ops& ops_;
  std::vector<Seat> seats_;
  std::unique_ptr<DeviceBuffer> raw_;  // [vocabulary]: a row's logits as the model gave them
  std::vector<TopEntry> top_;          // [vocabulary]
  std::vector<int32_t> ids_;           // of logits that change next
  std::vector<float> values_;
  std::vector<SampleArgs> draws_;  // of rows that draw together
  std::vector<int32_t> tokens_;
};

}  // namespace lckv
