#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace lckv {
namespace {

bool counts_generated(const SamplingSpec& sampling) {
  return sampling.presence_penalty != 0.0F || sampling.frequency_penalty != 0.0F;
}
bool counts_seen(const SamplingSpec& sampling) { return sampling.repetition_penalty != 1.0F; }

// What is not a number is least likely, so that there is an order.
float rank_of(float logprob) {
  return std::isnan(logprob) ? -std::numeric_limits<float>::infinity() : logprob;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options, Ops& ops)
    : vocabulary_(options.vocabulary),
      max_rows_(options.max_rows),
      ops_(ops),
      seats_(options.max_num_seqs),
      max_kept_(std::min(options.max_num_seqs, options.max_rows)),
      kept_(ops.allocate(sizeof(float) * max_kept_ * vocabulary_)) {
  LCKV_CHECK(vocabulary_ > 0 && max_kept_ > 0);
  // What memory a draw takes is taken now, and not while requests are served.
  const auto drawn = ops_.allocate(sizeof(int32_t));
  const SampleArgs first{.logits = kept_->floats(),
                         .vocabulary = vocabulary_,
                         .temperature = 0.0F,
                         .drawn = reinterpret_cast<int32_t*>(drawn->data())};
  ops_.sample({&first, 1});
}

size_t Sampler::count_rows(std::span<const SampleRow> rows, size_t bytes) const {
  size_t num_logged = 0;
  size_t num_top = 0;
  size_t count = 0;
  for (; count < std::min<size_t>(rows.size(), max_rows_); ++count) {
    if (rows[count].num_logprobs < 0) continue;
    num_top += rows[count].num_logprobs;
    const size_t needed =
        StepResults::bytes_of<float>(++num_logged) + StepResults::bytes_of<TopEntry>(num_top);
    if (needed > bytes) break;
  }
  return count;
}

void Sampler::open(const SeatOpening& opening, uint64_t step) {
  Seat& seat = seats_.at(raw(opening.seat));
  LCKV_CHECK(seat.spec == nullptr && opening.spec != nullptr);
  seat.spec = opening.spec;
  seat.opened = step;
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

bool Sampler::need_tokens(std::span<const SampleRow> rows) const {
  return std::any_of(rows.begin(), rows.end(), [this](const SampleRow& row) {
    if (row.kind != SampleRow::Kind::kSample) return false;
    const SamplingSpec& sampling = seat_of(row).spec->sampling;
    return counts_generated(sampling) || counts_seen(sampling);
  });
}

Draw Sampler::draw(uint64_t step, std::span<const SampleRow> rows, float* logits,
                   const ResultSpan<int32_t>& ids, StepResults& results) {
  draws_.clear();
  logged_.clear();
  num_kept_ = 0;
  size_t num_top = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    float* const own = logits + static_cast<int64_t>(i) * vocabulary_;
    LogprobArgs logged{.logits = own, .num_top = row.num_logprobs};
    if (row.kind == SampleRow::Kind::kSample) {
      logged.logits = adjust(row, own);
      logged.token.drawn = ids.device + i;
      draws_.push_back(sample_args(row, own));
      draws_.back().drawn = ids.device + i;
    } else {
      LCKV_CHECK(row.num_logprobs >= 0);
      logged.token.id = row.target;
    }
    if (row.num_logprobs < 0) continue;
    LCKV_CHECK(row.num_logprobs <= vocabulary_);
    logged_.push_back(logged);
    num_top += row.num_logprobs;
  }
  Draw draw{.step = step, .rows = {rows.begin(), rows.end()}, .ids = ids};
  ops_.sample(draws_);
  if (logged_.empty()) return draw;
  draw.own = results.take<float>(logged_.size());
  draw.top = results.take<TopEntry>(num_top);
  float* own = draw.own.device;
  TopEntry* top = draw.top.device;
  for (LogprobArgs& logged : logged_) {
    logged.own = own++;
    logged.top = top;
    top += logged.num_top;
  }
  ops_.logprobs(logged_, vocabulary_);
  return draw;
}

void Sampler::read(const Draw& draw, std::vector<SampleResult>& results) {
  auto own = draw.own.host.begin();
  size_t first_top = 0;
  for (size_t i = 0; i < draw.rows.size(); ++i) {
    const SampleRow& row = draw.rows[i];
    SampleResult& result = results.emplace_back();
    const bool is_drawn = row.kind == SampleRow::Kind::kSample;
    result.token = is_drawn ? draw.ids.host[i] : row.target;
    if (is_drawn) count(result.token, draw.step, seats_.at(raw(row.seat)));
    if (row.num_logprobs < 0) continue;
    result.logprob = logprob_of(*own++, draw.top.host.subspan(first_top, row.num_logprobs));
    first_top += row.num_logprobs;
  }
}

const Sampler::Seat& Sampler::seat_of(const SampleRow& row) const {
  const Seat& seat = seats_.at(raw(row.seat));
  LCKV_CHECK(seat.spec != nullptr);
  return seat;
}

SampleArgs Sampler::sample_args(const SampleRow& row, const float* logits) const {
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

void Sampler::count(int32_t token, uint64_t step, Seat& seat) const {
  LCKV_CHECK(token >= 0 && token < vocabulary_);
  if (seat.spec == nullptr || seat.opened > step) return;
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

TokenLogprob Sampler::logprob_of(float own, std::span<const TopEntry> top) {
  std::vector<TopEntry> order(top.begin(), top.end());
  std::sort(order.begin(), order.end(), [](const TopEntry& left, const TopEntry& right) {
    const float a = rank_of(left.logprob);
    const float b = rank_of(right.logprob);
    return a != b ? a > b : left.id < right.id;
  });
  TokenLogprob found{.own = own};
  found.top_ids.reserve(order.size());
  found.top_logprobs.reserve(order.size());
  for (const TopEntry& entry : order) {
    found.top_ids.push_back(entry.id);
    found.top_logprobs.push_back(entry.logprob);
  }
  return found;
}

}  // namespace lckv
