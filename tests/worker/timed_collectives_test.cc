// What a rank is seen to do while it exchanges with others.
#include "worker/group/timed_collectives.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "absl/time/clock.h"

namespace lckv {
namespace {

// Looks at the progress while a call is under way.
class Watched final : public Collectives {
 public:
  explicit Watched(std::function<absl::Status()> during) : during_(std::move(during)) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  absl::Status all_reduce(float*, int64_t) override { return during_(); }
  absl::Status all_gather(const float*, int64_t, float*) override { return during_(); }
  absl::Status broadcast(void*, int64_t, int) override { return during_(); }
  absl::Status barrier() override { return during_(); }
  absl::Status wait() override { return during_(); }
  absl::Status wait_for(absl::FunctionRef<bool()>) override { return during_(); }

 private:
  const std::function<absl::Status()> during_;
};

class TimedCollectivesTest : public testing::Test {
 protected:
  RankProgress progress_;
  std::string seen_;
  bool waits_ = false;
  absl::Status answer_;
  std::unique_ptr<Collectives> ranks_ = timed_collectives(std::make_unique<Watched>([this] {
                                                            const Operation operation =
                                                                progress_.look().operation;
                                                            seen_ = operation_name(operation);
                                                            waits_ = waits_for_ranks(operation);
                                                            absl::SleepFor(absl::Milliseconds(2));
                                                            return answer_;
                                                          }),
                                                          progress_);
};

TEST_F(TimedCollectivesTest, WaitingForWhatWasBegunIsSeenButIsNoCollective) {
  progress_.begin(1, Operation::kRun);
  ASSERT_TRUE(ranks_->wait().ok());
  EXPECT_EQ(seen_, "wait_for_ranks");
  EXPECT_TRUE(waits_);
  EXPECT_EQ(progress_.look().operation, Operation::kRun);
  EXPECT_EQ(progress_.look().num_collectives, 0U);
  EXPECT_EQ(progress_.look().collectives, absl::ZeroDuration());
  ASSERT_TRUE(ranks_->barrier().ok());
  EXPECT_EQ(seen_, "barrier");
  EXPECT_EQ(progress_.look().num_collectives, 1U);
  EXPECT_GE(progress_.look().collectives, absl::Milliseconds(2));
}

TEST_F(TimedCollectivesTest, AWaitInVainStaysWhatIsTold) {
  progress_.begin(1, Operation::kRun);
  answer_ = absl::DeadlineExceededError("no peer");
  EXPECT_EQ(ranks_->wait(), answer_);
  EXPECT_EQ(progress_.look().operation, Operation::kWaitForRanks);
}

}  // namespace
}  // namespace lckv
