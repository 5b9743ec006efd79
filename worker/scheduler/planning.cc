// Planning: who takes part in the next step, with which rows.
#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "worker/scheduler/lookahead_cost.h"
#include "worker/scheduler/scheduler_impl.h"

namespace lckv {
namespace {

bool any(const std::vector<bool>& flags) {
  return std::find(flags.begin(), flags.end(), true) != flags.end();
}

}  // namespace

std::optional<StepPlan> Scheduler::Impl::plan() {
  if (static_cast<int32_t>(uncommitted_.size()) >= options_.max_uncommitted_plans) {
    return std::nullopt;
  }
  Planning planning = begin_plan();
  vacate_seats(planning);
  for (Sequence* sequence : running_order()) {
    if (planning.blocked) break;
    if (takes_part(*sequence)) extend(planning, *sequence);
  }
  admit(planning);
  if (planning.builder.empty() && uncommitted_.empty()) break_deadlock(planning);
  starved_ = planning.starved;

  const bool empty = planning.builder.empty();
  auto [plan, record] = planning.builder.finish();
  if (empty) return std::nullopt;
  num_plans_ = record.step;
  uncommitted_.push_back(std::move(record));
  return std::move(plan);
}

Scheduler::Impl::Planning Scheduler::Impl::begin_plan() {
  const BuilderOptions options{.step = num_plans_ + 1,
                               .max_row_layers = options_.max_row_layers,
                               .max_batched_rows = options_.max_batched_rows,
                               .prefill_tolerance = options_.prefill_tolerance};
  Planning planning{.builder = PlanBuilder(options, map_, memory_)};
  planning.staging_short.resize(map_.num_groups);
  for (const SeatId seat : std::exchange(closings_, {})) planning.builder.close(seat);
  for (const SequenceId id : std::exchange(done_before_, {})) {
    find(id)->is_done_before = true;
    planning.builder.done_before(id);
  }
  for (Sequence* sequence : seated_) {
    offer_prefix(*sequence);
    if (sequence->paused) continue;
    ++(sequence->is_decoding() ? planning.num_decoding_rows : planning.num_prompts);
  }
  planning.num_prompts += std::min(queue_.size(), static_cast<int32_t>(free_seats_.size()));
  return planning;
}

bool Scheduler::Impl::takes_part(const Sequence& sequence) const {
  return sequence.seat.has_value() && !sequence.paused && !sequence.awaits_walk;
}

// Whoever went short in the last plan, then decoding sequences, then the others, each in rank.
std::vector<Sequence*> Scheduler::Impl::running_order() const {
  const auto place = [this](const Sequence* sequence) {
    if (starved_.has_value() && sequence->id == *starved_) return 0;
    return sequence->is_decoding() ? 1 : 2;
  };
  std::vector<Sequence*> order = seated_;
  std::stable_sort(order.begin(), order.end(),
                   [&place](const Sequence* a, const Sequence* b) { return place(a) < place(b); });
  return order;
}

void Scheduler::Impl::extend(Planning& planning, Sequence& sequence) {
  planning.builder.trim(sequence, chunk());
  const RowChoice choice = choose(planning, sequence);
  bool starves = choice.lacks_budget || any(choice.lacks_staging);
  if (!choice.empty()) {
    const int32_t num_blocks = num_missing_blocks(sequence, choice, map_, options_.slots_per_block);
    if (make_room(planning, sequence, num_blocks)) {
      add_rows(planning, sequence, choice);
    } else {
      starves = true;
    }
  }
  if (starves && !planning.starved.has_value()) planning.starved = sequence.id;
}

void Scheduler::Impl::admit(Planning& planning) {
  if (planning.evicted) return;
  while (!planning.blocked && !any(planning.staging_short)) {
    Sequence* head = queue_.head();
    if (head == nullptr || !admit_one(planning, *head)) return;
  }
}

bool Scheduler::Impl::admit_one(Planning& planning, Sequence& sequence) {
  if (free_seats_.empty() && !evict_paused(planning)) return false;
  take_prefix(sequence);
  const RowChoice choice = choose(planning, sequence);
  if (choice.empty() || !make_room_to_start(planning, sequence, choice)) {
    begin_anew(sequence);
    return false;
  }
  count_prefix(sequence);
  queue_.remove(sequence);
  planning.builder.open(sequence, free_seats_.back());
  free_seats_.pop_back();
  const auto place =
      std::upper_bound(seated_.begin(), seated_.end(), &sequence,
                       [](const Sequence* a, const Sequence* b) { return outranks(*a, *b); });
  seated_.insert(place, &sequence);
  add_rows(planning, sequence, choice);
  return true;
}

bool Scheduler::Impl::make_room_to_start(Planning& planning, const Sequence& sequence,
                                         const RowChoice& choice) {
  int32_t num_blocks = num_missing_blocks(sequence, choice, map_, options_.slots_per_block);
  if (sequence.host.has_value()) num_blocks += sequence.host->num_blocks();
  // One that was preempted would soon be again if it came back to less than it had.
  num_blocks = std::max(num_blocks, sequence.blocks_held - sequence.table.num_blocks());
  return make_room(planning, sequence, num_blocks);
}

void Scheduler::Impl::add_rows(Planning& planning, Sequence& sequence, const RowChoice& choice) {
  const int32_t before = sequence.ordinary.front();
  planning.builder.add(sequence, choice);
  queue_.serve(sequence.spec->tenant, choice.row_layers);
  if (map_.num_groups > 0) return;
  // Without a group a prompt row is settled as it runs, and may be read in the same step.
  offer_prefix(sequence);
  const int32_t end = std::min(sequence.ordinary.front(), sequence.prompt_size());
  totals_.num_prompt_rows += std::max(0, end - std::max(before, sequence.num_counted));
  sequence.num_counted = std::max(sequence.num_counted, end);
}

RowChoice Scheduler::Impl::choose(Planning& planning, const Sequence& sequence) {
  const StepRoom room = step_room(planning, sequence);
  RowChoice choice = choose_rows(sequence, map_, walk_rules(planning, sequence), room);
  bool seatable = true;
  bool lacks = false;
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    // A seat without a staging row in every group could not go on.
    const bool has_row = sequence.seat.has_value() || room.staging_rows[g] > 0;
    seatable = seatable && has_row;
    if (has_row && !choice.lacks_staging[g]) continue;
    planning.staging_short[g] = lacks = true;
  }
  if (lacks) evict_paused(planning);
  return seatable ? choice : RowChoice{};
}

WalkRules Scheduler::Impl::walk_rules(const Planning& planning, const Sequence& sequence) const {
  WalkRules rules{.chunk = chunk(), .official_decode = options_.official_decode};
  if (map_.num_groups == 0 || rules.chunk > 0) return rules;
  const int32_t left = sequence.prompt_size() - sequence.groups.back().settled;
  if (left <= 0) return rules;
  if (options_.prefill_lookahead > 0) {
    rules.lookahead = std::min(options_.prefill_lookahead, left);
    return rules;
  }
  rules.lookahead = choose_lookahead({.rows_left = left,
                                      .num_prompts = std::max(planning.num_prompts, 1),
                                      .num_decoding_rows = planning.num_decoding_rows,
                                      .free_rows = options_.free_rows,
                                      .tolerance = options_.prefill_tolerance});
  if (sequence.lookahead_limit > 0) {
    rules.lookahead = std::min(rules.lookahead, sequence.lookahead_limit);
  }
  return rules;
}

// Each other seat without a staging row keeps one back, in this plan where it is still to come and
// in the next one in any case: rows whose last reader is in this plan are free by then.
StepRoom Scheduler::Impl::step_room(const Planning& planning, const Sequence& sequence) const {
  StepRoom room{.row_layers = planning.builder.row_layers_left(),
                .range_rows = planning.builder.range_rows_left(),
                .staging_rows = std::vector<int32_t>(map_.num_groups, 0)};
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    const bool has_row = !sequence.groups[g].rows.empty();
    int32_t num_without = 0;
    int32_t num_to_come = 0;
    for (const Sequence* other : seated_) {
      if (other == &sequence || !other->groups[g].rows.empty()) continue;
      ++num_without;
      if (other->last_step != planning.builder.step()) ++num_to_come;
    }
    const int32_t num_free = memory_.staging.num_free(g);
    const int32_t num_next = num_free + planning.builder.num_released(g);
    int32_t rows = std::max(0, std::min(num_free - num_to_come, num_next - num_without));
    if (planning.staging_short[g]) rows = std::min(rows, has_row ? 0 : 1);
    room.staging_rows[g] = rows;
  }
  return room;
}

}  // namespace lckv
