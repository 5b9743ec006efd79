// Gloo's collectives with threads as ranks: sums, orders, deadlines and peers that go.
#include "kernels/collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "tests/support/rank_threads.h"

namespace lckv {
namespace {

using testing::HasSubstr;

// Of a wait that is in vain.
constexpr absl::Duration kShort = absl::Milliseconds(200);

class CollectivesTest : public testing::TestWithParam<int> {
 protected:
  int size() const { return GetParam(); }
};

// From a few bytes, where ranks have nothing of their own to sum, to more than one way carries.
TEST_P(CollectivesTest, SumsInTheOrderOfRanks) {
  auto ranks = connect_threads(size());
  for (const int64_t count : {1, 3, 1024, 16384, 16385, 200003}) {
    SCOPED_TRACE(testing::Message() << count << " numbers");
    std::vector<std::vector<float>> values;
    for (int rank = 0; rank < size(); ++rank) values.push_back(random_floats(rank, count));
    std::vector<float> expected = values[0];
    for (int rank = 1; rank < size(); ++rank) {
      for (int64_t i = 0; i < count; ++i) expected[i] += values[rank][i];
    }
    run_ranks(size(), [&](int rank) {
      const absl::Status status = ranks[rank]->all_reduce(values[rank].data(), count);
      EXPECT_TRUE(status.ok()) << status;
    });
    for (int rank = 0; rank < size(); ++rank) {
      EXPECT_EQ(std::memcmp(values[rank].data(), expected.data(), count * sizeof(float)), 0)
          << "rank " << rank;
    }
  }
}

TEST_P(CollectivesTest, GathersByRank) {
  auto ranks = connect_threads(size());
  constexpr int64_t kCount = 1000;
  run_ranks(size(), [&](int rank) {
    const std::vector<float> own = random_floats(rank, kCount);
    std::vector<float> all(size() * kCount);
    ASSERT_TRUE(ranks[rank]->all_gather(own.data(), kCount, all.data()).ok());
    for (int peer = 0; peer < size(); ++peer) {
      const std::vector<float> theirs = random_floats(peer, kCount);
      EXPECT_TRUE(std::equal(theirs.begin(), theirs.end(), all.begin() + peer * kCount));
    }
  });
}

TEST_P(CollectivesTest, BroadcastsMoreThanOnePiece) {
  auto ranks = connect_threads(size());
  const std::vector<float> sent = random_floats(7, (int64_t{9} << 20) / 4 + 5);
  for (int root = 0; root < size(); ++root) {
    run_ranks(size(), [&](int rank) {
      std::vector<float> data = rank == root ? sent : std::vector<float>(sent.size());
      const auto bytes = static_cast<int64_t>(sent.size() * sizeof(float));
      ASSERT_TRUE(ranks[rank]->broadcast(data.data(), bytes, root).ok());
      EXPECT_EQ(data, sent);
    });
  }
}

// A root may be far ahead of those that it sends to, and what it sends is far more than sockets
// hold.
TEST_P(CollectivesTest, RanksMayBeFarApart) {
  auto ranks = connect_threads(size());
  constexpr int kRounds = 40;
  constexpr int64_t kCount = 30011;
  run_ranks(size(), [&](int rank) {
    std::vector<float> data(kCount);
    for (int round = 0; round < kRounds; ++round) {
      if (rank == round % size()) absl::SleepFor(absl::Milliseconds(5));
      std::fill(data.begin(), data.end(), static_cast<float>(rank == 0 ? round : -1));
      ASSERT_TRUE(ranks[rank]->broadcast(data.data(), kCount * 4, /*root=*/0).ok());
      ASSERT_EQ(data, std::vector<float>(kCount, static_cast<float>(round)));
    }
    ASSERT_TRUE(ranks[rank]->all_reduce(data.data(), kCount).ok());
    ASSERT_EQ(data, std::vector<float>(kCount, static_cast<float>((kRounds - 1) * size())));
  });
}

TEST_P(CollectivesTest, NobodyPassesABarrierBeforeAllHaveCome) {
  auto ranks = connect_threads(size());
  std::atomic<int> come = 0;
  for (int round = 1; round <= 50; ++round) {
    run_ranks(size(), [&](int rank) {
      ++come;
      ASSERT_TRUE(ranks[rank]->barrier().ok());
      EXPECT_EQ(come, round * size());
      ASSERT_TRUE(ranks[rank]->barrier().ok());
    });
  }
}

TEST_P(CollectivesTest, APeerThatDoesNotComeIsNamedAtTheDeadline) {
  auto ranks = connect_threads(size(), absl::Seconds(2));
  const int last = size() - 1;
  std::vector<absl::Status> statuses(size());
  run_ranks(last, [&](int rank) {
    float value = 1.0F;
    statuses[rank] = ranks[rank]->all_reduce(&value, 1);
  });
  // The first whose time is up takes its connections with it.
  int num_late = 0;
  for (int rank = 0; rank < last; ++rank) {
    EXPECT_FALSE(statuses[rank].ok());
    if (!absl::IsDeadlineExceeded(statuses[rank])) continue;
    ++num_late;
    EXPECT_THAT(std::string(statuses[rank].message()),
                HasSubstr(absl::StrCat("rank ", last, " did not come")));
  }
  EXPECT_GE(num_late, 1);
  // Nothing of a group that has failed goes on.
  float value = 1.0F;
  EXPECT_EQ(ranks[0]->all_reduce(&value, 1), statuses[0]);
  EXPECT_TRUE(absl::IsUnavailable(ranks[last]->barrier()));
}

TEST_P(CollectivesTest, APeerThatIsGoneIsNamedAtOnce) {
  auto ranks = connect_threads(size());
  const int last = size() - 1;
  run_ranks(size(), [&](int rank) {
    ASSERT_TRUE(ranks[rank]->barrier().ok());
    if (rank == last) {
      ranks[rank].reset();
      return;
    }
    std::vector<float> values(100000, 1.0F);
    const absl::Status status = ranks[rank]->all_reduce(values.data(), 100000);
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("is gone"));
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, CollectivesTest, testing::Values(2, 3, 4),
                         testing::PrintToStringParamName());

GlooOptions options_of(int rank, int size, const RendezvousStore& store) {
  return {.rank = rank, .size = size, .address = "127.0.0.1", .life = "a", .store = store};
}

TEST(ConnectGloo, OneRankIsAloneAndSumsItself) {
  auto rank = connect_gloo(options_of(0, 1, rendezvous_in_memory()));
  ASSERT_TRUE(rank.ok()) << rank.status();
  float value = 3.0F;
  EXPECT_TRUE((*rank)->all_reduce(&value, 1).ok());
  EXPECT_EQ(value, 3.0F);
}

TEST(ConnectGloo, NamesTheRankThatNeverComes) {
  const RendezvousStore store = rendezvous_in_memory();
  std::vector<absl::Status> statuses(2);
  run_ranks(2, [&](int rank) {
    GlooOptions options = options_of(rank, 3, store);
    options.timeout = kShort;
    statuses[rank] = connect_gloo(options).status();
  });
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("no address of rank 2"));
  }
}

TEST(ConnectGloo, ARankOfAnotherLifeStaysOutside) {
  const RendezvousStore store = rendezvous_in_memory();
  run_ranks(2, [&](int rank) {
    GlooOptions options = options_of(rank, 2, store);
    options.life = rank == 0 ? "a" : "b";
    options.timeout = kShort;
    EXPECT_TRUE(absl::IsDeadlineExceeded(connect_gloo(options).status()));
  });
}

// Even one that got hold of the right addresses.
TEST(ConnectGloo, ARankOfAnotherLifeIsFoundOutOnceConnected) {
  const RendezvousStore store = rendezvous_in_memory();
  RendezvousStore forged = store;
  forged.set = [store](const std::string& key, std::string bytes) {
    return store.set(absl::StrReplaceAll(key, {{"/b/", "/a/"}}), std::move(bytes));
  };
  forged.get = [store](const std::string& key, absl::Time deadline) {
    return store.get(absl::StrReplaceAll(key, {{"/b/", "/a/"}}), deadline);
  };
  run_ranks(2, [&](int rank) {
    GlooOptions options = options_of(rank, 2, rank == 0 ? store : forged);
    options.life = rank == 0 ? "a" : "b";
    const absl::Status status = connect_gloo(options).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("another life"));
  });
}

TEST(ConnectGloo, TwoRanksCannotBearOneNumber) {
  const RendezvousStore store = rendezvous_in_memory();
  std::vector<absl::Status> statuses(2);
  run_ranks(2, [&](int thread) {
    GlooOptions options = options_of(0, 2, store);
    options.timeout = kShort;
    statuses[thread] = connect_gloo(options).status();
  });
  EXPECT_EQ(absl::IsAlreadyExists(statuses[0]) + absl::IsAlreadyExists(statuses[1]), 1);
}

TEST(ConnectGloo, RefusesWrongNumbersAndAddresses) {
  const RendezvousStore store = rendezvous_in_memory();
  EXPECT_TRUE(absl::IsInvalidArgument(connect_gloo(options_of(2, 2, store)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(connect_gloo(options_of(-1, 2, store)).status()));
  GlooOptions options = options_of(0, 2, store);
  options.address = "203.0.113.1";  // of documentation: no interface of ours
  EXPECT_TRUE(absl::IsInvalidArgument(connect_gloo(options).status()));
}

}  // namespace
}  // namespace lckv
