// Which ranks a launcher starts, from flags and LeaderWorkerSet's environment.
#include "worker/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class LaunchTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "LWS_LEADER_ADDRESS"}) {
      unsetenv(name);
    }
    config_.tensor_parallel_size = 4;
    config_.threads = 3;
  }
  void TearDown() override { SetUp(); }
  absl::StatusOr<LaunchOptions> plan() const { return plan_launch(config_, {"--model", "m"}); }
  std::string refusal() const { return std::string(plan().status().message()); }

  WorkerConfig config_;
};

TEST_F(LaunchTest, OneHostNeedsNothingElse) {
  const LaunchOptions options = plan().value();
  EXPECT_EQ(options.first_rank, 0);
  EXPECT_EQ(options.num_ranks, 4);
  EXPECT_EQ(options.leader, "127.0.0.1:0");
  EXPECT_EQ(options.life.size(), 16U);
  EXPECT_NE(options.life, plan().value().life);
  EXPECT_THAT(options.arguments, ElementsAre("--model", "m"));
}

TEST_F(LaunchTest, RanksOfAHostShareItsCores) {
  config_.threads = 0;
  EXPECT_THAT(plan().value().arguments, ElementsAre("--model", "m", "--threads", testing::_));
}

TEST_F(LaunchTest, LeaderWorkerSetPlacesRanks) {
  setenv("LWS_GROUP_SIZE", "2", 1);
  setenv("LWS_WORKER_INDEX", "1", 1);
  setenv("LWS_LEADER_ADDRESS", "set-0.set.default", 1);
  const LaunchOptions options = plan().value();
  EXPECT_EQ(options.first_rank, 2);
  EXPECT_EQ(options.num_ranks, 2);
  EXPECT_EQ(options.leader, "set-0.set.default:50063");
  EXPECT_EQ(options.life, "");  // no launcher knows those of the other hosts
}

TEST_F(LaunchTest, FlagsGoBeforeTheEnvironment) {
  setenv("LWS_GROUP_SIZE", "2", 1);
  setenv("LWS_WORKER_INDEX", "1", 1);
  setenv("LWS_LEADER_ADDRESS", "elsewhere", 1);
  config_.leader = "10.0.0.1:7";
  config_.local_ranks = 3;
  config_.first_rank = 1;
  const LaunchOptions options = plan().value();
  EXPECT_EQ(options.first_rank, 1);
  EXPECT_EQ(options.num_ranks, 3);
  EXPECT_EQ(options.leader, "10.0.0.1:7");
}

TEST_F(LaunchTest, WhatCannotBeIsRefusedByName) {
  setenv("LWS_GROUP_SIZE", "3", 1);
  EXPECT_THAT(refusal(), HasSubstr("LWS_GROUP_SIZE 3 hosts in equal parts"));
  setenv("LWS_GROUP_SIZE", "many", 1);
  EXPECT_EQ(refusal(), "LWS_GROUP_SIZE \"many\" in the environment is no number from 0 on");
  setenv("LWS_GROUP_SIZE", "2", 1);
  EXPECT_THAT(refusal(), HasSubstr("--leader HOST:PORT is needed"));
  config_.leader = "10.0.0.1:0";
  EXPECT_THAT(refusal(), HasSubstr("ranks on other hosts need its port"));
  setenv("LWS_WORKER_INDEX", "2", 1);
  EXPECT_THAT(refusal(), HasSubstr("ranks 4 to 5 of --tensor-parallel-size 4"));
}

TEST_F(LaunchTest, RankIsNoLauncher) {
  EXPECT_TRUE(is_launcher(config_));
  config_.rank = 0;
  EXPECT_FALSE(is_launcher(config_));
  config_ = WorkerConfig();
  EXPECT_FALSE(is_launcher(config_));
}

TEST_F(LaunchTest, LeaderIsHostAndPort) {
  EXPECT_EQ(split_leader("[::1]:80").value(), std::pair(std::string("[::1]"), uint16_t{80}));
  for (const char* wrong : {"", "host", ":1", "host:", "host:x", "host:65536", "host:-1"}) {
    EXPECT_THAT(std::string(split_leader(wrong).status().message()), HasSubstr("is not HOST:PORT"))
        << wrong;
  }
}

TEST(DeviceOfRank, CountsFromTheFirstRankOfItsHost) {
  EXPECT_EQ(device_of_rank({.device_index = 3}), 3);
  // Of a launcher that has ranks 4 to 7; without one, each rank is told its own.
  EXPECT_EQ(device_of_rank({.rank = 4, .first_rank = 4}), 0);
  EXPECT_EQ(device_of_rank({.device_index = 2, .rank = 6, .first_rank = 4}), 4);
  EXPECT_EQ(device_of_rank({.device_index = 1, .rank = 6}), 1);
}

TEST(DeviceOfRank, IsOneForAllWhereTheyShareIt) {
  const WorkerConfig config = {
      .device_index = 2, .rank = 6, .first_rank = 4, .allow_shared_device = true};
  EXPECT_EQ(device_of_rank(config), 2);
}

}  // namespace
}  // namespace lckv
