// Who goes first, and who is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/worker/scheduler_harness.h"

namespace lckv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<uint64_t> order_of_starts(const SchedulerHarness& harness) {
  std::vector<uint64_t> order;
  for (const SequenceEvent& event : harness.events) {
    if (event.kind == SequenceEvent::Kind::kStarted) order.push_back(raw(event.sequence));
  }
  return order;
}

SequenceSpec spec_for(const std::string& tenant, int32_t priority, int32_t prompt_size) {
  SequenceSpec spec = spec_of(prompt_size, 2);
  spec.tenant = tenant;
  spec.priority = priority;
  return spec;
}

class SchedulerOrder : public testing::Test {
 protected:
  static SchedulerOptions one_seat() {
    SchedulerOptions options = ample_options(passes_of("0_1"));
    options.max_num_seqs = 1;
    return options;
  }
};

TEST_F(SchedulerOrder, WithinAPriorityStreamsThatGoOnAfterALossComeFirst) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  harness.submit(1, spec_for("a", 0, 4));
  harness.submit(2, spec_for("b", 0, 4));
  SequenceSpec continued = spec_for("a", 0, 4);
  continued.continued = true;
  harness.submit(3, continued);
  harness.submit(4, spec_for("a", 1, 4));
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(4, 3, 2, 1));
}

TEST_F(SchedulerOrder, HigherPriorityThenArrival) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  harness.submit(1, spec_for("a", 0, 4));
  harness.submit(2, spec_for("a", 1, 4));
  harness.submit(3, spec_for("a", 1, 4));
  harness.submit(4, spec_for("a", 2, 4));
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(4, 2, 3, 1));
}

TEST_F(SchedulerOrder, TheTenantServedLeastComesNext) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  harness.submit(1, spec_for("big", 0, 40));
  harness.submit(2, spec_for("big", 0, 40));
  harness.submit(3, spec_for("small", 0, 4));
  harness.submit(4, spec_for("small", 0, 4));
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(1, 3, 4, 2));
}

TEST_F(SchedulerOrder, ATenantThatIdledHasSavedUpNothing) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  harness.submit(1, spec_for("busy", 0, 40));
  harness.submit(2, spec_for("busy", 0, 40));
  harness.step();
  // Lifted to what the other was served: not two in a row.
  harness.submit(3, spec_for("new", 0, 60));
  harness.submit(4, spec_for("new", 0, 4));
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(1, 3, 2, 4));
}

TEST_F(SchedulerOrder, PausedSequencesAreNotAdmitted) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  harness.submit(1, spec_for("a", 1, 4));
  harness.submit(2, spec_for("a", 0, 4));
  harness.scheduler.pause(SequenceId{1});
  while (harness.scheduler.has_work()) harness.step();
  EXPECT_TRUE(harness.finished(2));
  EXPECT_FALSE(harness.finished(1));
  harness.scheduler.unpause(SequenceId{1});
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(2, 1));
}

TEST_F(SchedulerOrder, RefusesWhatCanNeverFit) {
  SchedulerOptions options = one_seat();
  options.max_context = 30;
  options.num_blocks = 10;  // of 4 slots, in 2 units: 20 positions
  SchedulerHarness harness(options, passes_of("0_1"));
  const absl::Status context = harness.try_submit(1, spec_of(30, 1));
  EXPECT_EQ(context.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(context.message()), HasSubstr("context of 30"));
  const absl::Status blocks = harness.try_submit(2, spec_of(20, 1));
  EXPECT_EQ(blocks.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(blocks.message()), HasSubstr("12 KV blocks, the limit is 10"));
  harness.submit(3, spec_of(19, 1));
  harness.run();
}

TEST_F(SchedulerOrder, RefusesAnIteratedPromptBeyondStaging) {
  const PassPlan passes = passes_of("0_3_3_3_4");
  SchedulerOptions options = ample_options(passes);
  options.staging_rows = 12;
  SchedulerHarness harness(options, passes);
  SequenceSpec spec = spec_of(13, 1);
  harness.submit(1, spec);
  spec.prefill_mode = PrefillMode::kIterated;
  const absl::Status refused = harness.try_submit(2, spec);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("12 staging rows"));
  spec.prompt.pop_back();
  harness.submit(3, spec);
  harness.run();
}

TEST_F(SchedulerOrder, RefusesWhereTheQueueIsFull) {
  SchedulerOptions options = one_seat();
  options.max_waiting = 2;
  SchedulerHarness harness(options, passes_of("0_1"));
  harness.submit(1, spec_of(4, 1));
  harness.submit(2, spec_of(4, 1));
  EXPECT_EQ(harness.try_submit(3, spec_of(4, 1)).code(), absl::StatusCode::kResourceExhausted);
  harness.step();
  harness.submit(4, spec_of(4, 1));
  harness.run();
}

TEST_F(SchedulerOrder, AHigherPriorityTakesTheSeatOfALowerOne) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  SequenceSpec long_one = spec_for("a", 0, 4);
  long_one.max_new_tokens = 20;
  harness.submit(1, long_one);
  harness.step();
  harness.submit(2, spec_for("a", 1, 4));
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(1, 2));
  EXPECT_EQ(harness.finish_of(1).num_preemptions, 1);
  EXPECT_EQ(harness.finish_of(2).num_preemptions, 0);
  EXPECT_EQ(harness.num_tokens(1), 20);
}

TEST_F(SchedulerOrder, AsManySeatsAsHigherPrioritiesNeedAreTakenAtOnce) {
  SchedulerOptions options = one_seat();
  options.max_num_seqs = 3;
  SchedulerHarness harness(options, passes_of("0_1"));
  SequenceSpec long_one = spec_for("a", 0, 4);
  long_one.max_new_tokens = 20;
  for (const uint64_t id : {1, 2, 3}) harness.submit(id, long_one);
  harness.step();
  harness.submit(4, spec_for("a", 1, 4));
  harness.submit(5, spec_for("a", 2, 4));
  harness.submit(6, spec_for("a", 3, 4));
  harness.scheduler.pause(SequenceId{6});
  const StepPlan plan = harness.step();
  std::vector<uint64_t> opened;
  for (const SeatOpening& opening : plan.opened) opened.push_back(raw(opening.sequence));
  EXPECT_THAT(opened, ElementsAre(5, 4));
  harness.scheduler.unpause(SequenceId{6});
  harness.run();
  const auto num_preemptions = [&](uint64_t id) { return harness.finish_of(id).num_preemptions; };
  EXPECT_EQ(num_preemptions(1) + num_preemptions(2) + num_preemptions(3), 3);
  for (const uint64_t id : {1, 2, 3}) EXPECT_EQ(harness.num_tokens(id), 20);
}

TEST_F(SchedulerOrder, EqualPrioritiesKeepTheirSeats) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  harness.submit(1, spec_for("a", 3, 4));
  harness.step();
  harness.submit(2, spec_for("a", 3, 4));
  harness.submit(3, spec_for("a", 2, 4));
  harness.run();
  EXPECT_THAT(order_of_starts(harness), ElementsAre(1, 2, 3));
  for (const uint64_t id : {1, 2, 3}) EXPECT_EQ(harness.finish_of(id).num_preemptions, 0);
}

TEST_F(SchedulerOrder, WhatWaitsIsCountedByPriority) {
  SchedulerHarness harness(one_seat(), passes_of("0_1"));
  for (uint64_t id = 1; id <= 5; ++id) {
    harness.submit(id, spec_for("a", id % 2 == 0 ? 0 : 7, 4));
  }
  EXPECT_THAT(harness.scheduler.load().waiting, ElementsAre(std::pair(7, 3), std::pair(0, 2)));
  harness.step();
  EXPECT_THAT(harness.scheduler.load().waiting, ElementsAre(std::pair(7, 2), std::pair(0, 2)));
  harness.run();
  EXPECT_TRUE(harness.scheduler.load().waiting.empty());
}

}  // namespace
}  // namespace lckv
