// Sampler: draws tokens from logits and tells their log-probabilities.
//
// Per seat it keeps what sampling depends on besides the logits: the ids that penalties count, in
// the order bias, penalties, suppression of ends, then Ops::sample. Log-probabilities are the
// model's own: before all of these. A draw is begun, and read once its results are there. Owner:
// ModelRunner. Thread: the engine's only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "kernels/ops.h"
#include "worker/engine/step_results.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

struct SamplerOptions {
  int32_t max_num_seqs = 0;
  int32_t max_rows = 0;  // of a draw
  int32_t vocabulary = 0;
};

// A draw that was begun.
struct Draw {
  uint64_t step = 0;
  std::vector<SampleRow> rows;
  ResultSpan<int32_t> ids;  // of each row that draws
  // Of the rows that ask for log-probabilities, one after the other.
  ResultSpan<float> own;
  ResultSpan<TopEntry> top;
};

class Sampler {
 public:
  // `ops` must outlive it.
  Sampler(const SamplerOptions& options, Ops& ops);

  // Room that log-probabilities of any one row may take.
  static size_t max_row_bytes(int32_t vocabulary) {
    return StepResults::bytes_of<float>(1) + StepResults::bytes_of<TopEntry>(vocabulary);
  }
  // As many of the rows, from the first, as may be drawn at once and have their log-probabilities
  // in `bytes`.
  size_t count_rows(std::span<const SampleRow> rows, size_t bytes) const;

  void open(const SeatOpening& opening, uint64_t step);
  void close(SeatId seat);
  // Whether what a row draws depends on the tokens that its seat drew before: all of them are to be
  // read first.
  bool need_tokens(std::span<const SampleRow> rows) const;
  // The rows draw at most once for a seat. `logits` [rows, vocabulary] are overwritten; ids, and
  // what else is taken of `results`, are there once they were sent.
  Draw draw(uint64_t step, std::span<const SampleRow> rows, float* logits,
            const ResultSpan<int32_t>& ids, StepResults& results);
  // Adds a result for each of the draw's rows. In the order in which they were drawn.
  void read(const Draw& draw, std::vector<SampleResult>& results);

 private:
  struct Seat {
    std::shared_ptr<const SequenceSpec> spec;  // null: empty
    uint64_t opened = 0;                       // in which step
    // Filled only where a penalty needs them.
    absl::flat_hash_map<int32_t, int32_t> generated;  // id -> how often
    absl::flat_hash_set<int32_t> seen;                // in prompt or generated
  };
  const Seat& seat_of(const SampleRow& row) const;
  SampleArgs sample_args(const SampleRow& row, const float* logits) const;
  // A token of a seat that may have been closed since the step that drew it.
  void count(int32_t token, uint64_t step, Seat& seat) const;
  // Makes the request's changes. Returns where the logits are as the model gave them, if
  // log-probabilities are asked for.
  const float* adjust(const SampleRow& row, float* logits);
  const float* keep(const float* logits);
  static TokenLogprob logprob_of(float own, std::span<const TopEntry> top);

  const int32_t vocabulary_;
  const int32_t max_rows_;
  Ops& ops_;
  std::vector<Seat> seats_;
  const int32_t max_kept_;
  std::unique_ptr<DeviceBuffer> kept_;  // [max_kept, vocabulary]: logits before they were changed
  // Of the draw at hand.
  int32_t num_kept_ = 0;
  std::vector<SampleArgs> draws_;
  std::vector<LogprobArgs> logged_;
  std::vector<int32_t> ids_;  // of logits that change next
  std::vector<float> values_;
};

}  // namespace lckv
