// NCCL's collectives as ours call them, over tests/kernels/emulated_cuda/nccl.h with threads as
// ranks: sums, orders, where data lies, deadlines and peers that go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "tests/kernels/device_ranks.h"
#include "tests/kernels/emulated_cuda/nccl.h"

namespace lckv {
namespace {

using testing::HasSubstr;

// Of a wait that is in vain.
constexpr absl::Duration kShort = absl::Milliseconds(200);

std::vector<DeviceRank> connect(int size, bool reproducible,
                                absl::Duration call_timeout = absl::Seconds(60)) {
  CudaCollectivesOptions all = patient();
  all.reproducible = reproducible;
  all.call_timeout = call_timeout;
  return connect_devices(size, all);
}

// Where peer memory is not to be had.
class NcclTest : public testing::TestWithParam<int> {
 protected:
  int size() const { return GetParam(); }

 private:
  const emulated_cuda::NoPeerMemory none_;
};

// From one number to more than is gathered at once.
TEST_P(NcclTest, ReproducibleSumsAreTakenInTheOrderOfRanks) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/true);
  for (const int64_t count : {1, 1000, (1 << 18) + 3}) {
    SCOPED_TRACE(testing::Message() << count << " numbers");
    std::vector<float> expected = random_floats(0, count);
    for (int rank = 1; rank < size(); ++rank) {
      const std::vector<float> theirs = random_floats(rank, count);
      for (int64_t i = 0; i < count; ++i) expected[i] += theirs[i];
    }
    run_on_devices(ranks, [&](int rank) {
      const auto data = ranks[rank].on_device(random_floats(rank, count));
      ASSERT_TRUE(ranks[rank].collectives->all_reduce(data->floats(), count).ok());
      EXPECT_EQ(ranks[rank].read(*data), expected) << "rank " << rank;
    });
  }
}

TEST_P(NcclTest, SumsAreTheSameOnEveryRank) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false);
  std::vector<std::vector<float>> sums(size());
  run_on_devices(ranks, [&](int rank) {
    const auto data = ranks[rank].on_device(random_floats(rank, 5000));
    ASSERT_TRUE(ranks[rank].collectives->all_reduce(data->floats(), 5000).ok());
    sums[rank] = ranks[rank].read(*data);
  });
  double expected = 0;
  for (int rank = 0; rank < size(); ++rank) expected += random_floats(rank, 5000).back();
  EXPECT_NEAR(sums[0].back(), expected, 1e-2);
  for (int rank = 1; rank < size(); ++rank) EXPECT_EQ(sums[rank], sums[0]);
}

TEST_P(NcclTest, GathersByRank) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false);
  constexpr int64_t kCount = 1000;
  std::vector<float> expected;
  for (int rank = 0; rank < size(); ++rank) {
    const std::vector<float> theirs = random_floats(rank, kCount);
    expected.insert(expected.end(), theirs.begin(), theirs.end());
  }
  run_on_devices(ranks, [&](int rank) {
    const auto own = ranks[rank].on_device(random_floats(rank, kCount));
    const auto all = ranks[rank].ops->allocate(size() * kCount * sizeof(float));
    ASSERT_TRUE(ranks[rank].collectives->all_gather(own->floats(), kCount, all->floats()).ok());
    EXPECT_EQ(ranks[rank].read(*all), expected);
  });
}

TEST_P(NcclTest, DataMayLieInHostMemory) {
  expect_host_data_works(connect(size(), /*reproducible=*/true));
}

TEST_P(NcclTest, NobodyPassesABarrierBeforeAllHaveCome) {
  expect_barriers_hold(connect(size(), /*reproducible=*/false));
}

// Whoever still looks whether the last exchange has ended finds that it has.
TEST_P(NcclTest, APeerThatLeavesAfterTheLastExchangeIsNoLoss) {
  for (int round = 0; round < 50; ++round) {
    std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false);
    run_on_devices(ranks, [&](int rank) {
      const absl::Status status = ranks[rank].collectives->barrier();
      EXPECT_TRUE(status.ok()) << status;
      ranks[rank].collectives.reset();
    });
  }
}

TEST_P(NcclTest, APeerThatDoesNotComeIsADeadline) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false, kShort);
  run_on_devices(ranks, [&](int rank) { ASSERT_TRUE(ranks[rank].collectives->barrier().ok()); });
  const absl::Time began = absl::Now();
  const absl::Status status = ranks[0].collectives->barrier();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_LT(absl::Now() - began, absl::Seconds(50)) << "the timeout of the first exchange";
  EXPECT_THAT(std::string(status.message()), HasSubstr("a rank did not come in time"));
  // Nothing of a group that has failed goes on.
  EXPECT_EQ(ranks[0].collectives->barrier(), status);
  const absl::Status theirs = ranks[1].collectives->barrier();
  EXPECT_TRUE(absl::IsUnavailable(theirs)) << theirs;
  EXPECT_EQ(ranks[1].collectives->barrier(), theirs);
}

// It may still be loading its weights.
TEST_P(NcclTest, APeerMayComeToTheFirstExchangeWhenItIsReady) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false, kShort);
  run_on_devices(ranks, [&](int rank) {
    if (rank == 1) absl::SleepFor(3 * kShort);
    const absl::Status status = ranks[rank].collectives->barrier();
    EXPECT_TRUE(status.ok()) << status;
  });
}

// A call on device memory returns before its peers have come, and only wait() hears of them.
TEST_P(NcclTest, WaitEndsWhenWhatWasBegunIsDone) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false);
  std::atomic<bool> last_came = false;
  run_on_devices(ranks, [&](int rank) {
    ASSERT_TRUE(ranks[rank].collectives->barrier().ok());
    const auto data = ranks[rank].on_device({1.0F});
    if (rank == 1) {
      absl::SleepFor(kShort);
      last_came = true;
    }
    ASSERT_TRUE(ranks[rank].collectives->all_reduce(data->floats(), 1).ok());
    ASSERT_TRUE(ranks[rank].collectives->wait().ok());
    EXPECT_TRUE(last_came);
    EXPECT_EQ(ranks[rank].read(*data), std::vector<float>{static_cast<float>(size())});
  });
}

TEST_P(NcclTest, WaitingForAPeerThatDoesNotComeIsADeadline) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false, kShort);
  run_on_devices(ranks, [&](int rank) { ASSERT_TRUE(ranks[rank].collectives->barrier().ok()); });
  const auto data = ranks[0].on_device({1.0F});
  ASSERT_TRUE(ranks[0].collectives->all_reduce(data->floats(), 1).ok());
  const absl::Status status = ranks[0].collectives->wait();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_EQ(ranks[0].collectives->wait(), status);
}

// A batch of one sum, made again where it is recorded.
absl::Status sum_in_batch(const DeviceRank& rank, DeviceBuffer& data) {
  const OpsBatch batch(*rank.ops, {.range = 0, .rows = 1});
  return batch.is_repeated() ? absl::OkStatus() : rank.collectives->all_reduce(data.floats(), 1);
}

// NCCL does not end before graphs that have its exchanges are freed.
TEST_P(NcclTest, RecordedBatchesDoNotHoldUpAFailure) {
  const std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false, kShort);
  std::vector<std::unique_ptr<DeviceBuffer>> data(size());
  const int before = emulated_cuda::num_graph_launches();
  run_on_devices(ranks, [&](int rank) {
    data[rank] = ranks[rank].on_device({1.0F});
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(sum_in_batch(ranks[rank], *data[rank]).ok());
      ASSERT_TRUE(ranks[rank].collectives->wait().ok());
    }
    EXPECT_EQ(ranks[rank].read(*data[rank])[0], static_cast<float>(size() * size() * size()));
  });
  EXPECT_EQ(emulated_cuda::num_graph_launches(), before + 2 * size());
  ASSERT_TRUE(sum_in_batch(ranks[0], *data[0]).ok());
  const absl::Status status = ranks[0].collectives->wait();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST_P(NcclTest, AFailureEndsARecording) {
  std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false);
  std::vector<std::unique_ptr<DeviceBuffer>> data(size());
  run_on_devices(ranks, [&](int rank) {
    data[rank] = ranks[rank].on_device({1.0F});
    ASSERT_TRUE(sum_in_batch(ranks[rank], *data[rank]).ok());
    ASSERT_TRUE(ranks[rank].collectives->wait().ok());
  });
  ranks[1].collectives.reset();
  const int before = emulated_cuda::num_graph_launches();
  EXPECT_TRUE(absl::IsUnavailable(sum_in_batch(ranks[0], *data[0])));
  EXPECT_EQ(emulated_cuda::num_graph_launches(), before);
  EXPECT_EQ(ranks[0].read(*data[0])[0], static_cast<float>(size())) << "nothing is recorded";
}

TEST_P(NcclTest, APeerThatIsGoneIsNoDeadline) {
  std::vector<DeviceRank> ranks = connect(size(), /*reproducible=*/false);
  run_on_devices(ranks, [&](int rank) {
    if (rank == 0) {
      ranks[0].collectives.reset();
    } else {
      const absl::Status status = ranks[rank].collectives->barrier();
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, NcclTest, testing::Values(2, 3), testing::PrintToStringParamName());

// What every rank hears while the others say it, but what one of them keeps back.
RendezvousStore without(const RendezvousStore& store, const std::string& key) {
  RendezvousStore other = store;
  other.set = [store, key](const std::string& at, std::string bytes) {
    return at == key ? absl::OkStatus() : store.set(at, std::move(bytes));
  };
  other.get = [store, key](const std::string& at, absl::Time deadline) {
    return at == key ? absl::StatusOr<std::string>("not yet") : store.get(at, deadline);
  };
  return other;
}

// Rank `last` neither sets the key nor gets what was set there.
std::vector<absl::Status> connect_without(const std::string& key, int last) {
  CudaCollectivesOptions all = patient();
  all.timeout = 2 * kShort;
  std::vector<absl::Status> statuses(2);
  run_ranks(2, [&](int rank) {
    const auto ops = make_cuda_ops({.device = rank}, {});
    ops->enter_thread();
    CudaCollectivesOptions options = options_of(rank, 2, all);
    if (rank == last) options.store = without(all.store, key);
    statuses[rank] = connect_cuda_ranks(options, *ops).status();
  });
  return statuses;
}

TEST(ConnectNccl, WaitsNoLongerThanItsTimeoutForTheOthers) {
  const std::vector<absl::Status> statuses = connect_without("nccl/a", 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(statuses[1])) << statuses[1];
  EXPECT_TRUE(absl::IsDeadlineExceeded(statuses[0])) << statuses[0];
  EXPECT_THAT(std::string(statuses[0].message()), HasSubstr("not all 2 ranks connected"));
}

TEST(ConnectNccl, WaitsNoLongerThanItsTimeoutForAnId) {
  const absl::Status status = connect_without("nccl/a", 0)[1];
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no NCCL id of rank 0"));
}

TEST(ConnectNccl, NamesTheRankThatNeverComes) {
  const auto ops = make_cuda_ops({}, {});
  CudaCollectivesOptions all = patient();
  all.timeout = kShort;
  const absl::Status status = connect_cuda_ranks(options_of(1, 2, all), *ops).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no device of rank 0"));
}

TEST(ConnectNccl, RanksOfTwoLivesNeverMeet) {
  CudaCollectivesOptions all = patient();
  all.timeout = kShort;
  run_ranks(2, [&](int rank) {
    const auto ops = make_cuda_ops({.device = rank}, {});
    ops->enter_thread();
    CudaCollectivesOptions options = options_of(rank, 2, all);
    options.life = std::string(1, static_cast<char>('a' + rank));
    EXPECT_TRUE(absl::IsDeadlineExceeded(connect_cuda_ranks(options, *ops).status()));
  });
}

TEST(ConnectNccl, SaysInOneLineWhatNcclRefuses) {
  emulated_nccl::refuse(true);
  std::vector<DeviceRank> ranks(2);
  const std::vector<absl::Status> statuses = try_to_connect(patient(), ranks);
  emulated_nccl::refuse(false);
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(status.message(), "NCCL: invalid usage: Something of the devices");
  }
}

TEST(ConnectNccl, RefusesARankThatThereIsNot) {
  const auto ops = make_cuda_ops({}, {});
  EXPECT_TRUE(
      absl::IsInvalidArgument(connect_cuda_ranks(options_of(2, 2, patient()), *ops).status()));
}

}  // namespace
}  // namespace lckv
