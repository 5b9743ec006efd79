#include "worker/engine/sampler.h"

#include <limits>

#include "kernels/check.h"

namespace lckv {
namespace {

bool counts_generated(const SamplingSpec& sampling) {
  return sampling.presence_penalty != 0.0F || sampling.frequency_penalty != 0.0F;
}
bool counts_seen(const SamplingSpec& sampling) { return sampling.repetition_penalty != 1.0F; }

}  // namespace

Sampler::Sampler(int32_t max_num_seqs, int32_t vocabulary, Ops& ops)
    : vocabulary_(vocabulary),
      ops_(ops),
      seats_(max_num_seqs),
      raw_(ops.allocate(sizeof(float) * vocabulary)),
      top_(vocabulary) {
  LCKV_CHECK(vocabulary > 0);
  // What memory a draw takes is taken now, and not while requests are served.
  const SampleArgs first{.logits = raw_->floats(), .vocabulary = vocabulary, .temperature = 0.0F};
  int32_t token = 0;
  ops_.sample({&first, 1}, &token);
}

void Sampler::open(const SeatOpening& opening) {
  Seat& seat = seats_.at(raw(opening.seat));
  LCKV_CHECK(seat.spec == nullptr && opening.spec != nullptr);
  seat.spec = opening.spec;
  const SamplingSpec& sampling = seat.spec->sampling;
  if (counts_generated(sampling)) {
    for (const int32_t token : opening.generated) ++seat.generated[token];
  }
  if (counts_seen(sampling)) {
    seat.seen.insert(seat.spec->prompt.begin(), seat.spec->prompt.end());
    seat.seen.insert(opening.generated.begin(), opening.generated.end());
  }
}

void Sampler::close(SeatId id) { seats_.at(raw(id)) = {}; }

std::vector<SampleResult> Sampler::draw(std::span<const SampleRow> rows, float* logits) {
  std::vector<SampleResult> results(rows.size());
  const auto draws_with_others = [](const SampleRow& row) {
    return row.kind == SampleRow::Kind::kSample && row.num_logprobs < 0;
  };
  draws_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    float* const own = logits + static_cast<int64_t>(i) * vocabulary_;
    if (draws_with_others(row)) {
      draws_.push_back(sample_args(row, own));
    } else if (row.kind == SampleRow::Kind::kSample) {
      results[i] = draw_with_logprobs(row, own);
    } else {
      results[i] = {.token = row.target, .logprob = logprob(own, row.target, row.num_logprobs)};
    }
  }
  tokens_.resize(draws_.size());
  ops_.sample(draws_, tokens_.data());
  auto token = tokens_.begin();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!draws_with_others(rows[i])) continue;
    results[i].token = *token++;
    count(results[i].token, seat_of(rows[i]));
  }
  return results;
}

Sampler::Seat& Sampler::seat_of(const SampleRow& row) {
  Seat& seat = seats_.at(raw(row.seat));
  LCKV_CHECK(seat.spec != nullptr);
  return seat;
}

SampleResult Sampler::draw_with_logprobs(const SampleRow& row, float* logits) {
  ops_.copy(reinterpret_cast<const std::byte*>(logits), raw_->data(), sizeof(float) * vocabulary_);
  const SampleArgs args = sample_args(row, logits);
  int32_t token = 0;
  ops_.sample({&args, 1}, &token);
  count(token, seat_of(row));
  return {.token = token, .logprob = logprob(raw_->floats(), token, row.num_logprobs)};
}

// Of the row's logits as its request has them changed.
SampleArgs Sampler::sample_args(const SampleRow& row, float* logits) {
  const Seat& seat = seat_of(row);
  adjust(row, seat, logits);
  const SamplingSpec& sampling = seat.spec->sampling;
  return {.logits = logits,
          .vocabulary = vocabulary_,
          .temperature = sampling.temperature,
          .top_k = sampling.top_k,
          .top_p = sampling.top_p,
          .min_p = sampling.min_p,
          .seed = sampling.seed,
          .choice = sampling.choice,
          .position = static_cast<uint32_t>(row.index)};
}

void Sampler::count(int32_t token, Seat& seat) const {
  LCKV_CHECK(token >= 0 && token < vocabulary_);
  const SamplingSpec& sampling = seat.spec->sampling;
  if (counts_generated(sampling)) ++seat.generated[token];
  if (counts_seen(sampling)) seat.seen.insert(token);
}

void Sampler::adjust(const SampleRow& row, const Seat& seat, float* logits) {
  const SequenceSpec& spec = *seat.spec;
  const SamplingSpec& sampling = spec.sampling;
  const auto add = [this](int32_t id, float value) {
    ids_.push_back(id);
    values_.push_back(value);
  };
  for (const auto& [id, bias] : sampling.logit_bias) add(id, bias);
  change(LogitChange::kAdd, logits);
  for (const int32_t id : seat.seen) add(id, sampling.repetition_penalty);
  change(LogitChange::kDiscourage, logits);
  for (const auto& [id, count] : seat.generated) {
    add(id, -(sampling.presence_penalty + sampling.frequency_penalty * static_cast<float>(count)));
  }
  change(LogitChange::kAdd, logits);
  if (row.index < spec.min_new_tokens) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    for (const int32_t id : spec.eos_token_ids) add(id, kNever);
    for (const int32_t id : spec.stop_token_ids) add(id, kNever);
    change(LogitChange::kSet, logits);
  }
}

void Sampler::change(LogitChange change, float* logits) {
  if (ids_.empty()) return;
  ops_.change_logits(logits, change, ids_, values_);
  ids_.clear();
  values_.clear();
}

TokenLogprob Sampler::logprob(const float* logits, int32_t token, int32_t num_top) {
  LCKV_CHECK(num_top >= 0 && num_top <= vocabulary_);
  TokenLogprob result;
  ops_.logprobs(logits, vocabulary_, {&token, 1}, &result.own, num_top, top_.data());
  result.top_ids.reserve(num_top);
  result.top_logprobs.reserve(num_top);
  for (int32_t i = 0; i < num_top; ++i) {
    result.top_ids.push_back(top_[i].id);
    result.top_logprobs.push_back(top_[i].logprob);
  }
  return result;
}

}  // namespace lckv
