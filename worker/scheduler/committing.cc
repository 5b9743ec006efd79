// Committing: what came of a plan.
#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "worker/scheduler/scheduler_impl.h"

namespace lckv {

std::vector<SequenceEvent> Scheduler::Impl::commit(const StepResult& result) {
  LCKV_CHECK(!uncommitted_.empty());
  const PlanRecord record = std::move(uncommitted_.front());
  uncommitted_.pop_front();
  LCKV_CHECK(record.step == result.step);
  memory_.commit(record.step);

  std::vector<SequenceEvent> events;
  for (const SequenceId id : record.started) {
    if (const Sequence* sequence = find(id)) {
      events.push_back({.kind = SequenceEvent::Kind::kStarted,
                        .sequence = id,
                        .num_cached_tokens = sequence->num_cached});
    }
  }
  commit_walks(record, result);
  commit_samples(record, result, events);
  for (const SequenceId id : record.scored) {
    Sequence* sequence = find(id);
    if (sequence == nullptr) continue;
    const FinishReason reason =
        sequence->spec->max_is_context ? FinishReason::kContextFull : FinishReason::kMaxNewTokens;
    finish(*sequence, {.reason = reason}, events);
  }
  for (const SequenceId id : record.done_before) {
    Sequence* sequence = find(id);
    if (sequence == nullptr) continue;
    events.push_back({.kind = SequenceEvent::Kind::kStarted, .sequence = id});
    finish(*sequence, *sequence->finish(), events);
  }
  return events;
}

void Scheduler::Impl::commit_walks(const PlanRecord& record, const StepResult& result) {
  LCKV_CHECK(result.settled_rows.size() == record.walks.size());
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    LCKV_CHECK(result.settled_rows[g].size() == record.walks[g].size());
    for (size_t i = 0; i < record.walks[g].size(); ++i) {
      commit_walk(record.walks[g][i], g, result.settled_rows[g][i]);
    }
  }
}

void Scheduler::Impl::commit_walk(const PlanRecord::Walk& walk, int32_t group,
                                  int32_t num_settled) {
  Sequence* sequence = find(walk.sequence);
  if (sequence == nullptr) return;
  if (walk.end == WalkEnd::kPass || walk.end == WalkEnd::kPassEnd) num_settled = 0;
  if (walk.end == WalkEnd::kCommit) LCKV_CHECK(num_settled == walk.num_rows);
  count_walk(walk, *sequence, group, num_settled);
  if (walk.end != WalkEnd::kSettle) return;
  LCKV_CHECK(num_settled >= 1 && num_settled <= walk.num_rows);
  if (walk.num_rows == 1) return;  // certain: moved on when it was planned

  GroupProgress& progress = sequence->groups[group];
  LCKV_CHECK(progress.settled == walk.first_position);
  progress.settled += num_settled;
  sequence->awaits_walk = false;
  // The first walks over a window bring all of its rows nearer without settling many; where rows
  // still hardly settle after these, walking many of them again and again is waste.
  constexpr int32_t kPatience = 4;
  const bool whole = num_settled == walk.num_rows;
  sequence->num_partial_walks = whole ? 0 : sequence->num_partial_walks + 1;
  sequence->lookahead_limit =
      sequence->num_partial_walks < kPatience ? 0 : std::max(options_.free_rows, 4 * num_settled);
}

void Scheduler::Impl::count_walk(const PlanRecord::Walk& walk, Sequence& sequence, int32_t group,
                                 int32_t num_settled) {
  if (!sequence.in_prompt(walk.first_position)) return;
  GroupProgress& progress = sequence.groups[group];
  const bool replayed = walk.first_position < progress.counted_end;
  // An iterated prompt counts afresh when it starts over.
  if (!replayed || sequence.iterated()) ++progress.num_prefill_walks;
  const int32_t settled_end = walk.first_position + num_settled;
  const int32_t num_counted = std::max(0, settled_end - progress.counted_end);
  progress.counted_end += num_counted;
  if (group != map_.num_groups - 1) return;  // totals are those of the last group
  totals_.num_prompt_rows += num_counted;
  if (replayed) return;
  ++totals_.num_prefill_walks;
  totals_.num_prefill_row_walks += walk.num_rows;
}

void Scheduler::Impl::commit_samples(const PlanRecord& record, const StepResult& result,
                                     std::vector<SequenceEvent>& events) {
  LCKV_CHECK(result.samples.size() == record.samples.size());
  for (size_t i = 0; i < record.samples.size(); ++i) {
    Sequence* sequence = find(record.samples[i].sequence);
    if (sequence == nullptr) continue;
    const SampleResult& sample = result.samples[i];
    SequenceEvent event{.sequence = sequence->id, .token = sample.token};
    event.logprob = sample.logprob;
    event.position = record.samples[i].index;
    if (record.samples[i].kind == SampleRow::Kind::kPromptLogprob) {
      event.kind = SequenceEvent::Kind::kPromptLogprob;
      events.push_back(std::move(event));
      continue;
    }
    LCKV_CHECK(!sequence->pending.empty());
    LCKV_CHECK(sequence->pending.front().step == record.step);
    sequence->pending.pop_front();
    sequence->generated.push_back(sample.token);
    LCKV_CHECK(static_cast<int32_t>(sequence->generated.size()) == event.position + 1);
    events.push_back(std::move(event));
    if (const auto end = sequence->finish()) finish(*sequence, *end, events);
  }
}

void Scheduler::Impl::finish(Sequence& sequence, const SequenceFinish& finish,
                             std::vector<SequenceEvent>& events) {
  events.push_back({.kind = SequenceEvent::Kind::kFinished,
                    .sequence = sequence.id,
                    .reason = finish.reason,
                    .matched_stop_token = finish.matched_stop_token,
                    .num_prefill_walks = sequence.num_prefill_walks(),
                    .num_preemptions = sequence.num_preemptions});
  end(sequence);
}

}  // namespace lckv
