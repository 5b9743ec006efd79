#include "tests/support/local_replica.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace lckv {
namespace {

std::string logits_difference(const char* what, const std::map<int32_t, std::vector<float>>& a,
                              const std::map<int32_t, std::vector<float>>& b) {
  if (a.size() != b.size()) return absl::StrCat(a.size(), " and ", b.size(), " ", what);
  for (auto x = a.begin(), y = b.begin(); x != a.end(); ++x, ++y) {
    const bool same =
        x->first == y->first && x->second.size() == y->second.size() &&
        std::memcmp(x->second.data(), y->second.data(), x->second.size() * sizeof(float)) == 0;
    if (same) continue;
    for (size_t i = 0; i < std::min(x->second.size(), y->second.size()); ++i) {
      if (std::memcmp(&x->second[i], &y->second[i], sizeof(float)) == 0) continue;
      return absl::StrCat(what, " ", x->first, ", id ", i, ": ", x->second[i], " and ",
                          y->second[i]);
    }
    return absl::StrCat(what, " ", x->first, " and ", y->first);
  }
  return "";
}

bool is_copied_to_host(const StepPlan& plan, BlockId block) {
  return std::any_of(plan.to_host.begin(), plan.to_host.end(),
                     [block](const BlockCopy& copy) { return copy.device == block; });
}

}  // namespace

std::string difference(const Transcript& a, const Transcript& b) {
  if (!a.finished || !b.finished) return "a sequence that did not finish";
  std::string found = logits_difference("logits of prompt token", a.prompt_logits, b.prompt_logits);
  if (found.empty()) found = logits_difference("logits of token", a.logits, b.logits);
  if (found.empty() && a.tokens != b.tokens) found = "tokens of equal logits";
  return found;
}

absl::StatusOr<std::unique_ptr<LocalReplica>> LocalReplica::open(
    const LocalOptions& options, std::unique_ptr<Collectives> ranks) {
  auto local = open_local_runner(options, std::move(ranks));
  if (!local.ok()) return local.status();
  return std::unique_ptr<LocalReplica>(new LocalReplica(options, *std::move(local)));
}

LocalReplica::LocalReplica(const LocalOptions& options, LocalRunner local)
    : options_(options),
      local_(std::move(local)),
      tables_(options.max_num_seqs, local_.passes.num_units()),
      sequences_(options.max_num_seqs) {
  SchedulerOptions scheduler{.max_num_seqs = options.max_num_seqs,
                             .max_row_layers = options.max_row_layers,
                             .max_batched_rows = options.max_batched_rows,
                             .max_context = options.max_context,
                             .num_blocks = options.num_blocks,
                             .num_host_blocks = options.num_host_blocks,
                             .slots_per_block = local_.geometry.slots_per_block,
                             .staging_rows = options.staging_rows,
                             .prefill_lookahead = options.lookahead,
                             .reproducible = options.reproducible && options.fixed_windows,
                             .prefill_tolerance = options.tolerance,
                             .official_decode = options.official_decode,
                             .prefix_caching = options.prefix_caching,
                             .max_uncommitted_plans = options.max_uncommitted_plans};
  scheduler_ = std::make_unique<Scheduler>(std::move(scheduler), local_.passes);
}

SequenceId LocalReplica::submit(SequenceSpec spec) {
  const SequenceId id{transcripts_.size() + 1};
  spec.num_logprobs = 0;
  transcripts_[raw(id)];
  const absl::Status status =
      scheduler_->submit(id, std::make_shared<const SequenceSpec>(std::move(spec)), absl::Now());
  LCKV_CHECK(status.ok());
  return id;
}

bool LocalReplica::step() {
  if (!failure_.ok()) return false;
  while (static_cast<int32_t>(planned_.size()) < options_.max_uncommitted_plans) {
    std::optional<StepPlan> plan = scheduler_->plan(absl::Now());
    if (!plan.has_value()) break;
    planned_.push_back(*std::move(plan));
  }
  if (planned_.empty()) return false;
  const StepPlan plan = std::move(planned_.front());
  planned_.pop_front();
  mirror(plan);
  StepTimes times;
  const auto result = local_.runner->run(plan, times);
  if (!result.ok()) {
    failure_ = result.status();
    return false;
  }
  record(plan);
  take(scheduler_->commit(*result, absl::Now()));
  return true;
}

// Garbage where nobody has a right to read any more; what goes to the host is read once more.
void LocalReplica::poison(const StepPlan& plan, SeatId seat, UnitId unit, size_t num_blocks) {
  if (!options_.poison || options_.prefix_caching) return;
  const auto blocks = tables_.blocks(seat, unit);
  for (size_t i = 0; i < std::min(num_blocks, blocks.size()); ++i) {
    const bool is_copied = is_copied_to_host(plan, BlockId{blocks[i]});
    if (!is_copied) fill_with_garbage(blocks[i]);
  }
}

void LocalReplica::fill_with_garbage(int32_t block) {
  if (local_.ops->block_base() == nullptr) return;
  local_.ops->fill(local_.ops->block_base() + block * local_.geometry.block_bytes,
                   local_.geometry.block_bytes, 0xff);
}

// Poisons what is appended, except blocks that are taken as they are: copied from the host, or of
// a beginning that was run; both lie below the first row of a seat that the plan opens. What goes
// to the host in this step is read once more.
void LocalReplica::append(const StepPlan& plan) {
  std::map<SeatId, int32_t> first_row;
  for (const SeatOpening& opening : plan.opened) first_row[opening.seat] = 0;
  for (const OrdinarySegment& segment : plan.ordinary.front().segments) {
    const auto opened = first_row.find(segment.seat);
    if (opened != first_row.end()) opened->second = segment.first_position;
  }
  for (const TableAppend& append : plan.appends) {
    tables_.append(append.seat, append.unit, append.block);
    if (!options_.poison || !options_.prefix_caching) continue;
    const auto num_blocks = static_cast<int32_t>(tables_.blocks(append.seat, append.unit).size());
    const int32_t end = (tables_.num_trimmed(append.seat, append.unit) + num_blocks) *
                        local_.geometry.slots_per_block[raw(append.unit)];
    const auto opened = first_row.find(append.seat);
    const bool is_fresh = opened == first_row.end() || end > opened->second;
    if (is_fresh && !is_copied_to_host(plan, append.block)) fill_with_garbage(raw(append.block));
  }
}

void LocalReplica::mirror(const StepPlan& plan) {
  for (const SeatId seat : plan.closed) {
    for (int32_t u = 0; u < local_.passes.num_units(); ++u) {
      poison(plan, seat, UnitId{u}, tables_.blocks(seat, UnitId{u}).size());
    }
    tables_.close(seat);
  }
  for (const SeatOpening& opening : plan.opened) {
    sequences_.at(raw(opening.seat)) = raw(opening.sequence);
  }
  for (const TableTrim& trim : plan.trims) {
    poison(plan, trim.seat, trim.unit, trim.num_blocks);
    tables_.trim(trim.seat, trim.unit, trim.num_blocks);
  }
  append(plan);
}

void LocalReplica::record(const StepPlan& plan) {
  auto logits = local_.ops->take_logits();
  LCKV_CHECK(logits.size() == plan.samples.size());
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    const SampleRow& row = plan.samples[i];
    Transcript& transcript = transcripts_.at(sequences_.at(raw(row.seat)));
    auto& kept =
        row.kind == SampleRow::Kind::kSample ? transcript.logits : transcript.prompt_logits;
    const bool is_new = kept.emplace(row.index, std::move(logits[i])).second;
    LCKV_CHECK(is_new);
  }
}

void LocalReplica::take(const std::vector<SequenceEvent>& events) {
  for (const SequenceEvent& event : events) {
    Transcript& transcript = transcripts_.at(raw(event.sequence));
    if (event.kind == SequenceEvent::Kind::kStarted) {
      transcript.num_cached_tokens = event.num_cached_tokens;
    }
    if (event.kind == SequenceEvent::Kind::kToken) transcript.tokens.push_back(event.token);
    if (event.kind != SequenceEvent::Kind::kFinished) continue;
    transcript.finished = true;
    transcript.num_prefill_walks = event.num_prefill_walks;
    transcript.num_preemptions = event.num_preemptions;
  }
}

std::vector<float> LocalReplica::kv(SequenceId sequence, UnitId unit, int32_t position,
                                    bool values) const {
  const auto seat = std::find(sequences_.begin(), sequences_.end(), raw(sequence));
  LCKV_CHECK(seat != sequences_.end());
  const SeatId id{static_cast<int32_t>(seat - sequences_.begin())};
  const int32_t slots = local_.geometry.slots_per_block[raw(unit)];
  const int32_t block = position / slots - tables_.num_trimmed(id, unit);
  return read_slot(local_, unit, tables_.blocks(id, unit)[block], position % slots, values);
}

std::vector<int32_t> random_tokens(uint64_t seed, int32_t count, int32_t vocabulary) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocabulary)));
  }
  return tokens;
}

}  // namespace lckv
