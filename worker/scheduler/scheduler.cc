#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/scheduler/scheduler_impl.h"

namespace lckv {
namespace {

std::vector<PrefixUnit> prefix_units(const RangeMap& map,
                                     const std::vector<int32_t>& slots_per_block) {
  std::vector<PrefixUnit> units;
  for (size_t u = 0; u < map.units.size(); ++u) {
    PrefixUnit unit{.slots_per_block = slots_per_block.at(u)};
    for (const UnitRule::Reader& reader : map.units[u].readers) {
      unit.window = std::max(unit.window, reader.window);
    }
    units.push_back(unit);
  }
  return units;
}

}  // namespace

Scheduler::Impl::Impl(SchedulerOptions options, const PassPlan& passes)
    : options_(std::move(options)),
      map_(make_range_map(passes)),
      memory_({.num_blocks = options_.num_blocks,
               .num_host_blocks = options_.num_host_blocks,
               .num_groups = map_.num_groups,
               .staging_rows = options_.staging_rows,
               .units = prefix_units(map_, options_.slots_per_block)}) {
  LCKV_CHECK(options_.slots_per_block.size() == map_.units.size());
  LCKV_CHECK(options_.max_num_seqs > 0 && options_.max_uncommitted_plans > 0);
  LCKV_CHECK(options_.max_batched_rows > 0);
  LCKV_CHECK(!options_.reproducible || options_.prefill_lookahead > 0);
  // A row that does not fit a step by itself would wait for ever.
  for (const int32_t layers : map_.layers) LCKV_CHECK(layers <= options_.max_row_layers);
  for (int32_t seat = options_.max_num_seqs - 1; seat >= 0; --seat) {
    free_seats_.push_back(SeatId{seat});
  }
}

Scheduler::Impl::~Impl() {
  for (auto& [id, sequence] : sequences_) give_staging_back(*sequence);
}

Sequence* Scheduler::Impl::find(SequenceId id) {
  const auto found = sequences_.find(raw(id));
  return found == sequences_.end() ? nullptr : found->second.get();
}

absl::Status Scheduler::Impl::check_fits(const SequenceSpec& spec) const {
  const auto prompt = static_cast<int64_t>(spec.prompt.size());
  const int64_t positions = prompt + spec.max_new_tokens;
  if (prompt == 0) return absl::InvalidArgumentError("prompt: must not be empty");
  if (positions > options_.max_context) {
    return absl::InvalidArgumentError(absl::StrCat("prompt and max_new_tokens: ", positions,
                                                   " tokens exceed the context of ",
                                                   options_.max_context));
  }
  int64_t num_blocks = 0;
  for (const int32_t slots : options_.slots_per_block) {
    num_blocks += (positions + slots - 1) / slots;
  }
  if (num_blocks > options_.num_blocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt and max_new_tokens: ", positions, " tokens need ", num_blocks,
                     " KV blocks, the limit is ", options_.num_blocks));
  }
  if (map_.num_groups > 0 && spec.prefill_mode == PrefillMode::kIterated &&
      prompt > options_.staging_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt: ", prompt, " tokens exceed the ", options_.staging_rows,
                     " staging rows that iterated prefill is limited to"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Impl::submit(SequenceId id, std::shared_ptr<const SequenceSpec> spec) {
  LCKV_CHECK(find(id) == nullptr);
  if (absl::Status fits = check_fits(*spec); !fits.ok()) return fits;
  if (queue_.size() >= options_.max_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", options_.max_waiting, " sequences wait"));
  }
  auto sequence = std::make_unique<Sequence>(id, std::move(spec), num_submitted_++, map_,
                                             &options_.slots_per_block);
  queue_.enter(sequence->spec->tenant);
  begin_anew(*sequence);
  if (sequence->finish().has_value()) {
    done_before_.push_back(id);
  } else {
    queue_.push(*sequence);
  }
  sequences_.emplace(raw(id), std::move(sequence));
  return absl::OkStatus();
}

void Scheduler::Impl::cancel(SequenceId id) {
  if (Sequence* sequence = find(id)) end(*sequence);
}

void Scheduler::Impl::set_paused(SequenceId id, bool paused) {
  if (Sequence* sequence = find(id)) sequence->paused = paused;
}

void Scheduler::Impl::give_staging_back(Sequence& sequence) {
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    for (const StagingRow row : sequence.groups[g].rows) memory_.staging.give_back(g, row);
    sequence.groups[g].rows.clear();
  }
}

SeatId Scheduler::Impl::unseat(Sequence& sequence) {
  LCKV_CHECK(sequence.seat.has_value());
  const SeatId seat = *std::exchange(sequence.seat, std::nullopt);
  const size_t num_erased = std::erase(seated_, &sequence);
  LCKV_CHECK(num_erased == 1);
  free_seats_.push_back(seat);
  return seat;
}

// Staging rows may go at once: plans run in order, and those that name them were made before.
// Blocks wait for the commit of the last plan that names them.
void Scheduler::Impl::end(Sequence& sequence) {
  if (sequence.seat.has_value()) {
    closings_.push_back(unseat(sequence));
  } else if (std::erase(done_before_, sequence.id) == 0 && !sequence.is_done_before) {
    queue_.remove(sequence);
  }
  give_staging_back(sequence);
  offer_prefix(sequence);
  memory_.deferred.release(sequence.last_step, sequence.table.clear());
  if (sequence.host.has_value()) {
    for (HostCopy::Unit& unit : sequence.host->units) {
      memory_.deferred_host.release(sequence.last_step, std::move(unit.blocks));
    }
  }
  queue_.leave(sequence.spec->tenant);
  sequences_.erase(raw(sequence.id));
}

bool Scheduler::Impl::has_work() const {
  return queue_.head() != nullptr || !closings_.empty() || !done_before_.empty() ||
         std::any_of(seated_.begin(), seated_.end(),
                     [](const Sequence* sequence) { return !sequence->paused; });
}

SchedulerLoad Scheduler::Impl::load() const {
  SchedulerLoad load = totals_;
  load.num_running = static_cast<int32_t>(seated_.size());
  load.num_waiting = queue_.size();
  load.waiting.assign(queue_.sizes().begin(), queue_.sizes().end());
  load.num_free_blocks = memory_.blocks.num_free();
  load.num_idle_blocks = memory_.blocks.num_idle();
  load.num_blocks = memory_.blocks.num_blocks();
  load.num_free_host_blocks = memory_.host_blocks.num_free();
  load.num_host_blocks = memory_.host_blocks.num_blocks();
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    const int32_t num_free = memory_.staging.num_free(g);
    load.num_free_staging_rows = g == 0 ? num_free : std::min(load.num_free_staging_rows, num_free);
  }
  for (const Sequence* sequence : seated_) load.num_cached_tokens += sequence->ordinary.front();
  return load;
}

Scheduler::Scheduler(SchedulerOptions options, PassPlan passes)
    : impl_(std::make_unique<Impl>(std::move(options), passes)) {}
Scheduler::~Scheduler() = default;

absl::Status Scheduler::submit(SequenceId sequence, std::shared_ptr<const SequenceSpec> spec,
                               absl::Time /*now*/) {
  return impl_->submit(sequence, std::move(spec));
}
void Scheduler::cancel(SequenceId sequence) { impl_->cancel(sequence); }
void Scheduler::pause(SequenceId sequence) { impl_->set_paused(sequence, true); }
void Scheduler::unpause(SequenceId sequence) { impl_->set_paused(sequence, false); }
std::optional<StepPlan> Scheduler::plan(absl::Time /*now*/) { return impl_->plan(); }
std::vector<SequenceEvent> Scheduler::commit(const StepResult& result, absl::Time /*now*/) {
  return impl_->commit(result);
}
bool Scheduler::has_work() const { return impl_->has_work(); }
SchedulerLoad Scheduler::load() const { return impl_->load(); }

}  // namespace lckv
