#include "tests/worker/scheduler_harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {

PassPlan passes_of(const std::string& layer_types, int32_t window, int32_t num_passes) {
  const auto num_layers =
      static_cast<int32_t>(std::count(layer_types.begin(), layer_types.end(), '_')) + 1;
  absl::StatusOr<LayerPlan> plan = parse_layer_map(layer_types, {.num_layers = num_layers,
                                                                 .kv_heads = 1,
                                                                 .head_dim = 16,
                                                                 .sliding_window = window,
                                                                 .num_passes = num_passes});
  LCKV_CHECK(plan.ok());
  return make_pass_plan(*std::move(plan));
}

SchedulerOptions ample_options(const PassPlan& passes) {
  SchedulerOptions options;
  options.max_num_seqs = 8;
  options.max_context = 256;
  options.max_batched_rows = 512;
  options.max_row_layers = int64_t{512} * passes.layers.num_layers();
  options.slots_per_block.assign(passes.num_units(), 4);
  options.num_blocks = 64 * 8 * passes.num_units();
  options.num_host_blocks = options.num_blocks;
  options.staging_rows = 512;
  options.prefill_tolerance = 0.001F;
  return options;
}

SequenceSpec spec_of(int32_t prompt_size, int32_t max_new_tokens) {
  SequenceSpec spec;
  for (int32_t i = 0; i < prompt_size; ++i) spec.prompt.push_back(100 + i);
  spec.max_new_tokens = max_new_tokens;
  return spec;
}

absl::Status SchedulerHarness::try_submit(uint64_t id, SequenceSpec spec) {
  return scheduler.submit(SequenceId{id}, std::make_shared<SequenceSpec>(std::move(spec)),
                          absl::UnixEpoch());
}

void SchedulerHarness::submit(uint64_t id, SequenceSpec spec) {
  const absl::Status status = try_submit(id, std::move(spec));
  EXPECT_TRUE(status.ok()) << status;
}

std::vector<SequenceEvent> SchedulerHarness::commit(const StepPlan& plan) {
  StepResult result{.step = plan.step};
  for (const GroupRows& group : plan.groups) {
    std::vector<int32_t>& rows = result.settled_rows.emplace_back();
    for (const WalkSegment& walk : group.segments) {
      const bool settles = walk.end == WalkEnd::kSettle;
      const bool commits = walk.end == WalkEnd::kCommit;
      const int32_t count = settles && settled ? settled(walk) : walk.num_rows;
      rows.push_back(settles || commits ? std::min(count, walk.num_rows) : 0);
    }
  }
  for (const SampleRow& row : plan.samples) {
    const bool scores = row.kind == SampleRow::Kind::kPromptLogprob;
    result.samples.push_back({.token = scores ? row.target : sampled ? sampled(row) : 7});
  }
  std::vector<SequenceEvent> committed = scheduler.commit(result, absl::UnixEpoch());
  for (const SequenceEvent& event : committed) {
    if (event.kind == SequenceEvent::Kind::kFinished) finished_[raw(event.sequence)] = event;
    events.push_back(event);
  }
  return committed;
}

StepPlan SchedulerHarness::step() {
  std::optional<StepPlan> made = plan();
  LCKV_CHECK(made.has_value());
  for (const SeatOpening& opening : made->opened) {
    seats_[raw(opening.seat)] = raw(opening.sequence);
  }
  commit(*made);
  return *std::move(made);
}

void SchedulerHarness::run(int32_t max_steps) {
  for (int32_t i = 0; i < max_steps && scheduler.has_work(); ++i) step();
  EXPECT_FALSE(scheduler.has_work());
}

int32_t SchedulerHarness::num_tokens(uint64_t id) const {
  return static_cast<int32_t>(
      std::count_if(events.begin(), events.end(), [id](const SequenceEvent& event) {
        return event.kind == SequenceEvent::Kind::kToken && raw(event.sequence) == id;
      }));
}

const OrdinarySegment* ordinary_of(const SchedulerHarness& harness, const StepPlan& plan,
                                   int32_t index, uint64_t id) {
  for (const OrdinarySegment& segment : plan.ordinary[index].segments) {
    if (harness.on_seat(segment.seat) == id) return &segment;
  }
  return nullptr;
}

const WalkSegment* walk_of(const SchedulerHarness& harness, const StepPlan& plan, int32_t group,
                           uint64_t id) {
  for (const WalkSegment& segment : plan.groups[group].segments) {
    if (harness.on_seat(segment.seat) == id) return &segment;
  }
  return nullptr;
}

}  // namespace lckv
