// What RankWatch does ends the process: with one line, and exit code 1.
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/time/clock.h"
#include "kernels/device_failure.h"
#include "rpc/logging.h"
#include "worker/group/rank_watch.h"

namespace lckv {
namespace {

[[noreturn]] void wait_for_ever() {
  absl::SleepFor(absl::Seconds(60));
  std::_Exit(0);
}

TEST(RankWatchDeathTest, LoopThatStandsStillEndsTheProcess) {
  EXPECT_EXIT(
      {
        set_up_logging({});
        RankProgress progress;
        progress.begin(7, Operation::kRun);
        const RankWatch watch({.rank = 2, .step_timeout = absl::Milliseconds(300)}, progress);
        wait_for_ever();
      },
      testing::ExitedWithCode(1),
      "replica ended rank=2 step=7 operation=run why=\"nothing moved for 300ms "
      "\\(--step-timeout\\)\"");
}

TEST(RankWatchDeathTest, StartHasALimitOfItsOwn) {
  EXPECT_EXIT(
      {
        set_up_logging({});
        RankProgress progress;
        progress.enter(Operation::kLoad);
        const RankWatch watch(
            {.step_timeout = absl::ZeroDuration(), .start_timeout = absl::Milliseconds(300)},
            progress);
        wait_for_ever();
      },
      testing::ExitedWithCode(1), "operation=load why=\"nothing moved for 300ms");
}

TEST(RankWatchDeathTest, DeviceThatFailsEndsTheReplica) {
  EXPECT_EXIT(
      {
        set_up_logging({.format = "json"});
        RankProgress progress;
        progress.begin(7, Operation::kRun);
        const RankWatch watch({.rank = 2}, progress);
        end_on_device_failure("CUDA", "attention", "an illegal memory access was encountered");
      },
      testing::ExitedWithCode(1),
      "\\{.*\"rank\":\"2\",\"step\":\"7\",\"operation\":\"run\",\"why\":\"CUDA error in attention: "
      "an "
      "illegal memory access was encountered\"\\}");
}

TEST(RankWatchDeathTest, DeviceThatFailsWithoutAWatchHasALineToo) {
  EXPECT_EXIT(
      {
        set_up_logging({});
        RankProgress progress;
        { const RankWatch watch({.rank = 2}, progress); }
        end_on_device_failure("CUDA", "copy", "out of memory");
      },
      testing::ExitedWithCode(1), "^CUDA error in copy: out of memory\n$");
}

}  // namespace
}  // namespace lckv
