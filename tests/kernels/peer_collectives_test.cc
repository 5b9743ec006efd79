// Exchanges through peer memory, over the stand-in for CUDA with threads as ranks, whose kernels
// run at the same time: sums, orders, consecutive calls, deadlines, peers that go, shared devices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/peer_kernels.h"
#include "kernels/cuda/rank_devices.h"
#include "kernels/cuda/stream.h"
#include "tests/kernels/device_ranks.h"

namespace lckv {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

// Of a wait that is in vain.
constexpr absl::Duration kShort = absl::Milliseconds(300);
// Half of it is for a trial in vain.
constexpr absl::Duration kTrial = absl::Seconds(6);
// Floats that are exchanged at once at the most.
constexpr int64_t kAtOnce = kHalfBytes / static_cast<int64_t>(sizeof(float));

std::vector<DeviceRank> sharing(int size, absl::Duration call_timeout = absl::Seconds(60)) {
  CudaCollectivesOptions all = patient();
  all.shares_device = true;
  all.call_timeout = call_timeout;
  return connect_devices(size, all);
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class PeerTest : public testing::TestWithParam<int> {
 protected:
  int size() const { return GetParam(); }
  // From rank 0 on.
  std::vector<float> sum_of(uint32_t seed, int64_t count) const {
    std::vector<float> sum = random_floats(seed, count);
    for (int rank = 1; rank < size(); ++rank) {
      const std::vector<float> theirs = random_floats(seed + rank, count);
      for (int64_t i = 0; i < count; ++i) sum[i] += theirs[i];
    }
    return sum;
  }
};

// From one number to what is no small message any more, and goes over NCCL.
TEST_P(PeerTest, SumsHaveTheBytesOfGloo) {
  CudaCollectivesOptions all = patient();
  all.reproducible = true;
  const std::vector<DeviceRank> ranks = connect_devices(size(), all);
  const auto hosts = connect_threads(size());
  const int64_t small = 2 * kAtOnce / size();
  for (const int64_t count : {int64_t{1}, int64_t{3}, int64_t{4}, int64_t{1021}, int64_t{1024},
                              int64_t{40000}, small, small + 1}) {
    SCOPED_TRACE(testing::Message() << count << " numbers");
    run_on_devices(ranks, [&](int rank) {
      const std::vector<float> given = random_floats(rank, count);
      const auto data = ranks[rank].on_device(given);
      ASSERT_TRUE(ranks[rank].collectives->all_reduce(data->floats(), count).ok());
      ASSERT_TRUE(ranks[rank].collectives->wait().ok());
      std::vector<float> expected = given;
      ASSERT_TRUE(hosts[rank]->all_reduce(expected.data(), count).ok());
      EXPECT_TRUE(same_bytes(ranks[rank].read(*data), expected)) << "rank " << rank;
    });
  }
}

// Small messages are added in the order of ranks in the free mode too.
TEST_P(PeerTest, DataMayLieAnywhere) {
  const std::vector<DeviceRank> ranks = connect_devices(size(), patient());
  for (const int offset : {1, 2, 3}) {
    run_on_devices(ranks, [&](int rank) {
      std::vector<float> given(offset, -1.0F);
      const std::vector<float> own = random_floats(rank, 3001);
      given.insert(given.end(), own.begin(), own.end());
      given.push_back(-2.0F);
      const auto data = ranks[rank].on_device(given);
      ASSERT_TRUE(ranks[rank].collectives->all_reduce(data->floats() + offset, 3001).ok());
      ASSERT_TRUE(ranks[rank].collectives->wait().ok());
      std::vector<float> expected(offset, -1.0F);
      const std::vector<float> sum = sum_of(0, 3001);
      expected.insert(expected.end(), sum.begin(), sum.end());
      expected.push_back(-2.0F);
      EXPECT_TRUE(same_bytes(ranks[rank].read(*data), expected)) << "rank " << rank;
    });
  }
}

// What a rank gives next must not reach those that still read what it gave before.
TEST_P(PeerTest, CallsMayFollowEachOtherAtFullSpeed) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr int kCalls = 100;
  constexpr int64_t kMost = 600;
  std::mt19937 random(seed);
  std::vector<int64_t> counts(kCalls);
  for (int64_t& count : counts) count = std::uniform_int_distribution<int64_t>(1, kMost)(random);
  const std::vector<DeviceRank> ranks = connect_devices(size(), patient());
  run_on_devices(ranks, [&](int rank) {
    std::mt19937 delays(seed + rank);
    const auto data = ranks[rank].on_device(random_floats(seed + rank, kCalls * kMost));
    for (int call = 0; call < kCalls; ++call) {
      if (delays() % 8 == 0) absl::SleepFor(absl::Microseconds(delays() % 500));
      float* const own = data->floats() + call * kMost;
      ASSERT_TRUE(ranks[rank].collectives->all_reduce(own, counts[call]).ok());
    }
    ASSERT_TRUE(ranks[rank].collectives->wait().ok());
    const std::vector<float> sums = sum_of(seed, kCalls * kMost);
    const std::vector<float> found = ranks[rank].read(*data);
    for (int call = 0; call < kCalls; ++call) {
      ASSERT_EQ(
          std::memcmp(&found[call * kMost], &sums[call * kMost], counts[call] * sizeof(float)), 0)
          << "rank " << rank << ", call " << call;
    }
  });
}

TEST_P(PeerTest, RanksOfOneDeviceExchangeEverythingInPieces) {
  const std::vector<DeviceRank> ranks = sharing(size());
  constexpr int64_t kCount = kAtOnce + 7;
  run_on_devices(ranks, [&](int rank) {
    Collectives& collectives = *ranks[rank].collectives;
    const std::vector<float> own = random_floats(rank, kCount);
    const auto data = ranks[rank].on_device(own);
    ASSERT_TRUE(collectives.all_reduce(data->floats(), kCount).ok());
    ASSERT_TRUE(collectives.wait().ok());
    EXPECT_TRUE(same_bytes(ranks[rank].read(*data), sum_of(0, kCount))) << "rank " << rank;

    const auto given = ranks[rank].on_device(own);
    const auto all = ranks[rank].ops->allocate(size() * kCount * sizeof(float));
    ASSERT_TRUE(collectives.all_gather(given->floats(), kCount, all->floats()).ok());
    ASSERT_TRUE(collectives.wait().ok());
    const std::vector<float> gathered = ranks[rank].read(*all);
    for (int peer = 0; peer < size(); ++peer) {
      const std::vector<float> theirs = random_floats(peer, kCount);
      EXPECT_EQ(std::memcmp(&gathered[peer * kCount], theirs.data(), kCount * sizeof(float)), 0)
          << "rank " << rank << " of rank " << peer;
    }

    const int root = size() - 1;
    const auto sent = ranks[rank].on_device(own);
    constexpr auto kBytes = static_cast<int64_t>(kCount * sizeof(float)) - 3;
    ASSERT_TRUE(collectives.broadcast(sent->data(), kBytes, root).ok());
    ASSERT_TRUE(collectives.wait().ok());
    std::vector<float> expected = random_floats(root, kCount);
    if (rank != root)
      std::memcpy(reinterpret_cast<std::byte*>(expected.data()) + kBytes,
                  reinterpret_cast<const std::byte*>(own.data()) + kBytes, 3);
    EXPECT_TRUE(same_bytes(ranks[rank].read(*sent), expected)) << "rank " << rank;
  });
}

// Each of them takes its turn in the same two halves.
TEST_P(PeerTest, OperationsMayFollowEachOtherAtFullSpeed) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::vector<DeviceRank> ranks = sharing(size());
  constexpr int kRounds = 30;
  constexpr int64_t kCount = 77;
  run_on_devices(ranks, [&](int rank) {
    std::mt19937 delays(seed + rank);
    Collectives& collectives = *ranks[rank].collectives;
    std::vector<std::unique_ptr<DeviceBuffer>> sums;
    std::vector<std::unique_ptr<DeviceBuffer>> parts;
    std::vector<std::unique_ptr<DeviceBuffer>> sent;
    for (int round = 0; round < kRounds; ++round) {
      const std::vector<float> own = random_floats(100 * round + rank, kCount);
      for (auto* buffers : {&sums, &sent}) buffers->push_back(ranks[rank].on_device(own));
      parts.push_back(ranks[rank].ops->allocate(size() * kCount * sizeof(float)));
      if (delays() % 4 == 0) absl::SleepFor(absl::Microseconds(delays() % 500));
      float* const given = sums.back()->floats();
      ASSERT_TRUE(collectives.all_gather(given, kCount, parts.back()->floats()).ok());
      ASSERT_TRUE(collectives.all_reduce(given, kCount).ok());
      const int root = round % size();
      ASSERT_TRUE(collectives.broadcast(sent.back()->data(), kCount * 4, root).ok());
    }
    ASSERT_TRUE(collectives.wait().ok());
    for (int round = 0; round < kRounds; ++round) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << ", round " << round);
      EXPECT_TRUE(same_bytes(ranks[rank].read(*sums[round]), sum_of(100 * round, kCount)));
      EXPECT_TRUE(same_bytes(ranks[rank].read(*sent[round]),
                             random_floats(100 * round + round % size(), kCount)));
      const std::vector<float> all = ranks[rank].read(*parts[round]);
      for (int peer = 0; peer < size(); ++peer) {
        const std::vector<float> theirs = random_floats(100 * round + peer, kCount);
        EXPECT_TRUE(std::equal(theirs.begin(), theirs.end(), all.begin() + peer * kCount));
      }
    }
  });
}

TEST_P(PeerTest, DataMayLieInHostMemory) { expect_host_data_works(sharing(size())); }

TEST_P(PeerTest, NobodyPassesABarrierBeforeAllHaveCome) { expect_barriers_hold(sharing(size())); }

INSTANTIATE_TEST_SUITE_P(Sizes, PeerTest, testing::Values(1, 2, 4, 8),
                         testing::PrintToStringParamName());

// A call on device memory returns before its peers have come, and only wait() hears of them.
TEST(PeerDeadlines, WaitEndsWhenWhatWasBegunIsDone) {
  const std::vector<DeviceRank> ranks = sharing(2);
  std::atomic<bool> last_came = false;
  run_on_devices(std::span(ranks).first(2), [&](int rank) {
    ASSERT_TRUE(ranks[rank].collectives->barrier().ok());
    const auto data = ranks[rank].on_device({1.0F});
    if (rank == 1) {
      absl::SleepFor(kShort);
      last_came = true;
    }
    ASSERT_TRUE(ranks[rank].collectives->all_reduce(data->floats(), 1).ok());
    EXPECT_TRUE(rank == 1 || !last_came);
    ASSERT_TRUE(ranks[rank].collectives->wait().ok());
    EXPECT_TRUE(last_came);
    EXPECT_EQ(ranks[rank].read(*data), std::vector<float>{2.0F});
  });
}

// The kernel that waits for it ends, so that the stream is free, and its data are as they were.
TEST(PeerDeadlines, APeerThatDoesNotComeIsNamedAndTheOthersHearOfIt) {
  const std::vector<DeviceRank> ranks = sharing(3, kShort);
  run_on_devices(ranks, [&](int rank) { ASSERT_TRUE(ranks[rank].collectives->barrier().ok()); });
  const auto data = ranks[0].on_device({5.0F});
  const absl::Time began = absl::Now();
  ASSERT_TRUE(ranks[0].collectives->all_reduce(data->floats(), 1).ok()) << "waits for its peers";
  const absl::Status status = ranks[0].collectives->wait();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  // The host waits a second for the device to name them.
  EXPECT_THAT(std::string(status.message()),
              MatchesRegex("(ranks 1, 2|rank 1|rank 2|a rank) did not come in time"));
  EXPECT_LT(absl::Now() - began, absl::Seconds(30)) << "the timeout of the first exchange";
  EXPECT_EQ(ranks[0].read(*data), std::vector<float>{5.0F});
  // Nothing of a group that has failed goes on.
  EXPECT_EQ(ranks[0].collectives->all_reduce(data->floats(), 1), status);
  EXPECT_EQ(ranks[0].collectives->wait(), status);
  // What rank 0 gave is there for rank 1, but rank 2 is not, and rank 0 will not be again.
  const absl::Status theirs = ranks[1].collectives->barrier();
  EXPECT_FALSE(theirs.ok());
  const absl::Status last = ranks[2].collectives->barrier();
  EXPECT_TRUE(absl::IsUnavailable(last) || last.ok()) << last;
  const absl::Status next = ranks[2].collectives->barrier();
  EXPECT_TRUE(absl::IsUnavailable(next)) << next;
  EXPECT_THAT(std::string(next.message()), HasSubstr("rank"));
}

TEST(PeerDeadlines, APeerMayComeToTheFirstExchangeWhenItIsReady) {
  const std::vector<DeviceRank> ranks = sharing(2, kShort);
  run_on_devices(std::span(ranks).first(2), [&](int rank) {
    if (rank == 1) absl::SleepFor(3 * kShort);
    const absl::Status status = ranks[rank].collectives->barrier();
    EXPECT_TRUE(status.ok()) << status;
  });
}

TEST(PeerDeadlines, APeerThatIsGoneIsNoDeadline) {
  std::vector<DeviceRank> ranks = sharing(3);
  run_on_devices(ranks, [&](int rank) {
    ASSERT_TRUE(ranks[rank].collectives->barrier().ok());
    if (rank == 0) {
      ranks[0].collectives.reset();
    } else {
      const absl::Status status = ranks[rank].collectives->barrier();
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("gone"));
    }
  });
}

// Others may still read what it gave before: it has no proof of the contrary any more.
TEST(PeerKernels, ARankThatHasLostAPeerTakesPartInNothingAnyMore) {
  const Stream stream;
  const auto ops = make_cuda_ops({}, {});
  std::vector<std::unique_ptr<DeviceBuffer>> memory;
  PeerRanks ranks{.size = 2};
  ExchangeState state = {};
  ranks.state = &state;
  for (int rank = 0; rank < 2; ++rank) {
    memory.push_back(ops->allocate(sizeof(ExchangeMemory)));
    ranks.memory[rank] = reinterpret_cast<ExchangeMemory*>(memory.back()->data());
  }
  const auto data = ops->allocate(sizeof(float));
  const float given = 3.0F;
  ops->copy(reinterpret_cast<const std::byte*>(&given), data->data(), sizeof(given));
  emulated_cuda::use_device([&] { ranks.memory[0]->gone[1] = 1; });
  for (int i = 0; i < 3; ++i) exchange_sums(ranks, data->floats(), 1, stream);
  check_cuda(cudaStreamSynchronize(stream), "waiting");
  EXPECT_EQ(state.lost[1], uint64_t{kIsGone});
  EXPECT_EQ(state.lost[0], uint64_t{kNotLost});
  emulated_cuda::use_device([&] {
    EXPECT_EQ(ranks.memory[1]->arrived[0][0], 1U);
    for (const int half : {0, 1}) {
      float there = 0;
      std::memcpy(&there, ranks.memory[0]->halves[half], sizeof(there));
      EXPECT_EQ(there, half == 1 ? given : 0.0F);
    }
  });
}

TEST(ConnectDevices, SaysInOneLineThatTwoRanksHaveOneDevice) {
  const CudaCollectivesOptions all = patient();
  std::vector<absl::Status> statuses(3);
  run_ranks(3, [&](int rank) {
    const auto ops = make_cuda_ops({.device = rank == 2 ? 1 : rank}, {});
    ops->enter_thread();
    statuses[rank] = connect_cuda_ranks(options_of(rank, 3, all), *ops).status();
  });
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(status.message(),
              "ranks 1 and 2 have the same device, GPU-00000000-0000-0000-0000-000000000001: each "
              "needs one of its own; for tests, --allow-shared-device lets them share it");
  }
}

// `reason`: in what people read of it.
void expect_nccl_alone(emulated_cuda::PeerMemory what, const std::string& reason) {
  const emulated_cuda::NoPeerMemory none(what);
  CudaCollectivesOptions all = patient();
  all.timeout = kTrial;
  std::vector<std::string> said(2);
  run_ranks(2, [&](int rank) {
    const auto ops = make_cuda_ops({.device = rank}, {});
    ops->enter_thread();
    CudaCollectivesOptions options = options_of(rank, 2, all);
    options.say = [&said, rank](absl::string_view line) { said[rank] = std::string(line); };
    const auto connected = connect_cuda_ranks(options, *ops);
    ASSERT_TRUE(connected.ok()) << connected.status();
    EXPECT_TRUE((*connected)->barrier().ok());
    EXPECT_TRUE((*connected)->barrier().ok());
  });
  EXPECT_THAT(said[0], HasSubstr("over NCCL"));
  EXPECT_THAT(said[0], HasSubstr(reason));
  EXPECT_EQ(said[1], said[0]);
  std::vector<DeviceRank> ranks(2);
  all = patient();
  all.timeout = kTrial;
  all.shares_device = true;
  for (const absl::Status& status : try_to_connect(all, ranks)) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(status.message(), absl::StrCat("--allow-shared-device: ", reason));
  }
}

TEST(ConnectDevices, WhereMemoryCannotBeMappedNcclDoesItAll) {
  expect_nccl_alone(emulated_cuda::PeerMemory::kRefused,
                    "rank 0: device memory of rank 1 cannot be mapped: emulated");
}

TEST(ConnectDevices, WhereNothingArrivesInMappedMemoryNcclDoesItAll) {
  expect_nccl_alone(emulated_cuda::PeerMemory::kLost,
                    "rank 0: what is written into peer memory does not arrive");
}

TEST(ConnectDevices, MoreRanksThanPeersAreRefusedOneDevice) {
  CudaCollectivesOptions all = patient();
  all.shares_device = true;
  std::vector<DeviceRank> ranks(kMaxPeers + 1);
  for (const absl::Status& status : try_to_connect(all, ranks)) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("9 ranks; peer memory is for 8 at most"));
  }
}

TEST(RankDevices, AreOnOneHostWhereAllNamesAgree) {
  EXPECT_TRUE(are_on_one_host(std::vector<RankDevice>{{"a", "0"}, {"a", "1"}}));
  EXPECT_FALSE(are_on_one_host(std::vector<RankDevice>{{"a", "0"}, {"a", "1"}, {"b", "2"}}));
}

}  // namespace
}  // namespace lckv
