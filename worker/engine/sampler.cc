#include "worker/engine/sampler.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"

namespace lckv {
namespace {

bool counts_generated(const SamplingSpec& sampling) {
  return sampling.presence_penalty != 0.0F || sampling.frequency_penalty != 0.0F;
}
bool counts_seen(const SamplingSpec& sampling) { return sampling.repetition_penalty != 1.0F; }

}  // namespace

Sampler::Sampler(const SamplerOptions& options, Ops& ops)
    : vocabulary_(options.vocabulary),
      ops_(ops),
      seats_(options.max_num_seqs),
      max_kept_(std::min(options.max_num_seqs, options.max_rows)),
      kept_(ops.allocate(sizeof(float) * max_kept_ * vocabulary_)) {
  LCKV_CHECK(vocabulary_ > 0 && max_kept_ > 0);
  // What memory a draw takes is taken now, and not while requests are served.
  const SampleArgs first{.logits = kept_->floats(), .vocabulary = vocabulary_, .temperature = 0.0F};
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
  draws_.clear();
  logged_.clear();
  num_kept_ = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    float* const own = logits + static_cast<int64_t>(i) * vocabulary_;
    const float* given = own;
    if (row.kind == SampleRow::Kind::kSample) {
      given = adjust(row, own);
      draws_.push_back(sample_args(row, own));
    } else {
      LCKV_CHECK(row.num_logprobs >= 0);
      results[i].token = row.target;
    }
    if (row.num_logprobs >= 0) logged_.push_back({.logits = given, .num_top = row.num_logprobs});
  }
  tokens_.resize(draws_.size());
  ops_.sample(draws_, tokens_.data());
  auto token = tokens_.begin();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].kind != SampleRow::Kind::kSample) continue;
    results[i].token = *token++;
    count(results[i].token, seat_of(rows[i]));
  }
  if (!logged_.empty()) find_logprobs(rows, results);
  return results;
}

Sampler::Seat& Sampler::seat_of(const SampleRow& row) {
  Seat& seat = seats_.at(raw(row.seat));
  LCKV_CHECK(seat.spec != nullptr);
  return seat;
}

SampleArgs Sampler::sample_args(const SampleRow& row, const float* logits) {
  const SamplingSpec& sampling = seat_of(row).spec->sampling;
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

const float* Sampler::adjust(const SampleRow& row, float* logits) {
  const Seat& seat = seat_of(row);
  const SequenceSpec& spec = *seat.spec;
  const SamplingSpec& sampling = spec.sampling;
  const float* given = logits;
  const auto add = [this](int32_t id, float value) {
    ids_.push_back(id);
    values_.push_back(value);
  };
  const auto change = [&](LogitChange change) {
    if (ids_.empty()) return;
    if (row.num_logprobs >= 0 && given == logits) given = keep(logits);
    ops_.change_logits(logits, change, ids_, values_);
    ids_.clear();
    values_.clear();
  };
  for (const auto& [id, bias] : sampling.logit_bias) add(id, bias);
  change(LogitChange::kAdd);
  for (const int32_t id : seat.seen) add(id, sampling.repetition_penalty);
  change(LogitChange::kDiscourage);
  for (const auto& [id, count] : seat.generated) {
    add(id, -(sampling.presence_penalty + sampling.frequency_penalty * static_cast<float>(count)));
  }
  change(LogitChange::kAdd);
  if (row.index < spec.min_new_tokens) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    for (const int32_t id : spec.eos_token_ids) add(id, kNever);
    for (const int32_t id : spec.stop_token_ids) add(id, kNever);
    change(LogitChange::kSet);
  }
  return given;
}

const float* Sampler::keep(const float* logits) {
  LCKV_CHECK(num_kept_ < max_kept_);
  float* const kept = kept_->floats() + int64_t{num_kept_++} * vocabulary_;
  ops_.copy(reinterpret_cast<const std::byte*>(logits), reinterpret_cast<std::byte*>(kept),
            sizeof(float) * vocabulary_);
  return kept;
}

void Sampler::find_logprobs(std::span<const SampleRow> rows, std::vector<SampleResult>& results) {
  auto logged = logged_.begin();
  size_t num_top = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].num_logprobs < 0) continue;
    LCKV_CHECK(rows[i].num_logprobs <= vocabulary_);
    num_top += rows[i].num_logprobs;
    (logged++)->id = results[i].token;
  }
  std::vector<float> own(logged_.size());
  std::vector<TopEntry> top(num_top);
  ops_.logprobs(logged_, vocabulary_, own.data(), top.data());
  auto next_own = own.begin();
  auto next_top = top.begin();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].num_logprobs < 0) continue;
    TokenLogprob& found = results[i].logprob.emplace();
    found.own = *next_own++;
    found.top_ids.reserve(rows[i].num_logprobs);
    found.top_logprobs.reserve(rows[i].num_logprobs);
    for (int32_t j = 0; j < rows[i].num_logprobs; ++j, ++next_top) {
      found.top_ids.push_back(next_top->id);
      found.top_logprobs.push_back(next_top->logprob);
    }
  }
}

}  // namespace lckv
