#include "worker/sim/simulated_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/time/clock.h"
#include "kernels/check.h"

namespace lckv {
namespace {

// Row-walks of a row that settles within a tolerance; rows that a bitwise walk settles.
constexpr int32_t kWalksToSettle = 2;
constexpr int32_t kBitwiseRows = 2;
// Of a long step: how often it shows that it goes on.
constexpr absl::Duration kSignOfLife = absl::Milliseconds(100);
// The likelihood of a token, and by how much the next one is less likely.
constexpr float kTokenLogprob = -0.5F;
constexpr float kLogprobStep = 0.75F;

// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

uint64_t hash_of(const SequenceSpec& spec) {
  uint64_t hash = mix(spec.prompt.size());
  for (const int32_t token : spec.prompt) hash = mix(hash ^ static_cast<uint32_t>(token));
  if (spec.sampling.temperature == 0) return hash;
  return mix(mix(hash ^ spec.sampling.seed) ^ spec.sampling.choice);
}

bool ends(const SequenceSpec& spec, int32_t token) {
  const auto has = [token](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return has(spec.eos_token_ids) || has(spec.stop_token_ids);
}

TokenLogprob logprobs_of(int32_t token, int32_t num_top, int32_t vocabulary) {
  TokenLogprob result{.own = kTokenLogprob};
  for (int32_t i = 0; i < std::min(num_top, vocabulary); ++i) {
    result.top_ids.push_back(static_cast<int32_t>((int64_t{token} + i) % vocabulary));
    result.top_logprobs.push_back(kTokenLogprob - kLogprobStep * static_cast<float>(i));
  }
  return result;
}

}  // namespace

SimulatedRunner::SimulatedRunner(const SimulatedRunnerOptions& options, StepCost cost)
    : options_(options), cost_(std::move(cost)), seats_(options.max_num_seqs) {}

absl::Status SimulatedRunner::launch(const StepPlan& plan, StepTimes& times) {
  const absl::Time began = absl::Now();
  LCKV_CHECK(plan.step == last_step_ + 1);
  LCKV_CHECK(static_cast<int32_t>(plan.groups.size()) == options_.num_groups);
  last_step_ = plan.step;
  for (const SeatId seat : plan.closed) seats_.at(raw(seat)) = {};
  for (const SeatOpening& opening : plan.opened) open(opening);

  result_ = {.step = plan.step};
  for (size_t group = 0; group < plan.groups.size(); ++group) {
    std::vector<int32_t>& settled = result_.settled_rows.emplace_back();
    for (const WalkSegment& segment : plan.groups[group].segments) {
      settled.push_back(settle(segment, seats_.at(raw(segment.seat)).walked[group]));
    }
  }
  for (const SampleRow& row : plan.samples) result_.samples.push_back(draw(row));

  StepTimes cost;
  cost_.add(plan, cost);
  pass(began + cost.copies + cost.ordinary + cost.walks + cost.logits + cost.sample);
  times = cost;
  return absl::OkStatus();
}

void SimulatedRunner::pass(absl::Time end) {
  for (absl::Time now = absl::Now(); now < end; now = absl::Now()) {
    before_layer_();
    absl::SleepFor(std::min(end - now, kSignOfLife));
  }
}

void SimulatedRunner::open(const SeatOpening& opening) {
  Seat& seat = seats_.at(raw(opening.seat));
  LCKV_CHECK(seat.spec == nullptr);
  seat.spec = opening.spec;
  seat.request = hash_of(*opening.spec);
  seat.walked.resize(options_.num_groups);
}

// Rows that a walk settles: its first one always, and those after it that have been walked often
// enough.
int32_t SimulatedRunner::settle(const WalkSegment& segment, Seat::Walked& walked) const {
  if (segment.end == WalkEnd::kCommit) {
    walked = {};
    return segment.num_rows;
  }
  if (segment.end != WalkEnd::kSettle) return 0;
  const int64_t gone = segment.first_position - walked.first;
  const bool follows = gone >= 0 && gone <= static_cast<int64_t>(walked.walks.size());
  if (follows) {
    walked.walks.erase(walked.walks.begin(), walked.walks.begin() + gone);
  } else {
    walked.walks.clear();  // copied to the host in between
  }
  walked.first = segment.first_position;
  walked.walks.resize(std::max<size_t>(walked.walks.size(), segment.num_rows));
  int32_t settled = 0;
  for (int32_t row = 0; row < segment.num_rows; ++row) {
    ++walked.walks[row];
    const bool is_settled = row == 0 || (segment.tolerance > 0 ? walked.walks[row] >= kWalksToSettle
                                                               : row < kBitwiseRows);
    if (settled == row && is_settled) ++settled;
  }
  return settled;
}

SampleResult SimulatedRunner::draw(const SampleRow& row) const {
  const Seat& seat = seats_.at(raw(row.seat));
  LCKV_CHECK(seat.spec != nullptr);
  SampleResult result{.token = row.target};
  if (row.kind == SampleRow::Kind::kSample) {
    const auto vocabulary = static_cast<uint64_t>(options_.vocabulary);
    const uint64_t drawn = mix(seat.request ^ mix(static_cast<uint64_t>(row.index)));
    result.token = static_cast<int32_t>(drawn % vocabulary);
    // Not all of a vocabulary ends a sequence; a request that says so gets what it asked for.
    for (int32_t tries = 0; tries < options_.vocabulary && ends(*seat.spec, result.token);
         ++tries) {
      result.token = (result.token + 1) % options_.vocabulary;
    }
  }
  if (row.num_logprobs >= 0) {
    result.logprob = logprobs_of(result.token, row.num_logprobs, options_.vocabulary);
  }
  return result;
}

}  // namespace lckv
