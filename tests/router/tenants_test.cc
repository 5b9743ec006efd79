// Limits per tenant: the gate alone, then through a router.
#include "router/tenants.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/router/router_fixture.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;

std::string write_file(const std::string& name, const std::string& content) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("lckv-" + name + "-" + std::to_string(getpid()) + ".json");
  std::ofstream(path) << content;
  return path;
}

class TenantGateTest : public ::testing::Test {
 protected:
  void open(const std::string& content) {
    gate_ = std::make_unique<TenantGate>(
        write_file("tenants", content),
        TenantHandlers{.on_running = [this](const std::string& tenant,
                                            int64_t count) { running_[tenant] = count; },
                       .on_rejected = [this](const std::string& tenant,
                                             const char* limit) { ++rejected_[tenant + limit]; },
                       .on_tokens = [this](const std::string& tenant,
                                           uint64_t count) { tokens_[tenant] += count; }});
    ASSERT_TRUE(gate_->load().ok());
  }
  absl::Status admit(const std::string& tenant, uint64_t num_prompt_tokens = 1) {
    return gate_->admit({.tenant = tenant, .num_prompt_tokens = num_prompt_tokens, .now = now_});
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::unique_ptr<TenantGate> gate_;
  std::map<std::string, int64_t> running_;
  std::map<std::string, int> rejected_;
  std::map<std::string, uint64_t> tokens_;
};

TEST_F(TenantGateTest, CallsAtOnceAreLimitedPerTenantAndFreedByTheirEnd) {
  open(R"({"default": {"concurrent_requests": 1}, "tenants": {"a": {"concurrent_requests": 2}}})");
  EXPECT_TRUE(admit("a").ok());
  EXPECT_TRUE(admit("a").ok());
  const absl::Status over = admit("a");
  EXPECT_EQ(over.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(over.message()), HasSubstr("\"a\" is at its limit of 2 concurrent_req"));
  EXPECT_TRUE(retry_delay(over).has_value());
  // Tenants that are not listed have a limit each.
  EXPECT_TRUE(admit("b").ok());
  EXPECT_FALSE(admit("b").ok());
  EXPECT_TRUE(admit("c").ok());
  gate_->release("a", 5, now_);
  EXPECT_TRUE(admit("a").ok());
  gate_->tick(now_, 1);
  EXPECT_EQ(running_, (std::map<std::string, int64_t>{{"a", 2}, {"other", 2}}));
  EXPECT_EQ(rejected_["aconcurrent_requests"], 1);
  EXPECT_EQ(rejected_["otherconcurrent_requests"], 1);
  EXPECT_EQ(tokens_["a"], 8u);
}

TEST_F(TenantGateTest, TokensAMinuteCountPromptAndAnswerAndComeBackWithTime) {
  open(R"({"tenants": {"a": {"tokens_per_minute": 600}}})");
  EXPECT_TRUE(admit("a", 500).ok());
  gate_->release("a", 700, now_);  // 600 owed
  const absl::Status over = admit("a", 1);
  EXPECT_THAT(std::string(over.message()), HasSubstr("limit of 600 tokens_per_minute"));
  const auto delay = retry_delay(over);
  ASSERT_TRUE(delay.has_value());
  EXPECT_NEAR(absl::ToDoubleSeconds(*delay), 60.1, 0.01);
  now_ += *delay - absl::Milliseconds(500);
  EXPECT_FALSE(admit("a", 1).ok());
  now_ += absl::Seconds(1);
  EXPECT_TRUE(admit("a", 1).ok());
  EXPECT_TRUE(admit("b", 1'000'000).ok());
  EXPECT_TRUE(admit("b", 1'000'000).ok());
}

TEST_F(TenantGateTest, RoutersShareTheLimits) {
  open(R"({"default": {"concurrent_requests": 6, "tokens_per_minute": 600}})");
  gate_->tick(now_, 3);
  EXPECT_TRUE(admit("a", 100).ok());
  EXPECT_TRUE(admit("a", 99).ok());
  EXPECT_THAT(std::string(admit("a").message()), HasSubstr("concurrent_requests"));
  gate_->release("a", 1, now_);
  EXPECT_THAT(std::string(admit("a").message()), HasSubstr("tokens_per_minute"));
  gate_->tick(now_, 30);  // never less than one call at once
  EXPECT_TRUE(admit("b").ok());
  EXPECT_FALSE(admit("b").ok());
}

TEST_F(TenantGateTest, IdleTenantsMakeRoomAndRunningOnesDoNot) {
  constexpr int kMost = 65536;
  open(R"({"default": {"concurrent_requests": 1}})");
  // Names that are made up, one after the other.
  for (int i = 0; i < 2 * kMost; ++i) {
    ASSERT_TRUE(admit(std::to_string(i)).ok()) << i;
    gate_->release(std::to_string(i), 1, now_);
  }
  now_ += absl::Seconds(1);
  for (int i = 0; i < kMost; ++i) ASSERT_TRUE(admit(std::to_string(i)).ok()) << i;
  EXPECT_EQ(admit("another").message(), "too many tenants at once");
  gate_->release("7", 1, now_);
  now_ += absl::Seconds(1);
  EXPECT_TRUE(admit("another").ok());
  EXPECT_FALSE(admit("8").ok());  // is known to run
}

TEST_F(TenantGateTest, PriorityIsCapped) {
  open(R"({"default": {"max_priority": 0}, "tenants": {"a": {"max_priority": 5}, "b": {}}})");
  EXPECT_EQ(gate_->cap_priority("a", 9), 5);
  EXPECT_EQ(gate_->cap_priority("a", -3), -3);
  EXPECT_EQ(gate_->cap_priority("b", 9), 9);
  EXPECT_EQ(gate_->cap_priority("c", 9), 0);
}

TEST_F(TenantGateTest, ChangedFileIsTakenOverAndABrokenOneIsNot) {
  open(R"({"default": {"concurrent_requests": 0}})");
  EXPECT_FALSE(admit("a").ok());
  write_file("tenants", R"({"default": {"concurrent_requests": 1}})");
  gate_->tick(now_, 1);
  EXPECT_TRUE(admit("a").ok());
  write_file("tenants", "{");
  gate_->tick(now_ + absl::Seconds(2), 1);
  EXPECT_FALSE(admit("a").ok());
  EXPECT_TRUE(admit("b").ok());
  // The calls that run are still known.
  write_file("tenants", R"({"default": {"concurrent_requests": 2}})");
  gate_->tick(now_ + absl::Seconds(4), 1);
  EXPECT_TRUE(admit("a").ok());
  EXPECT_FALSE(admit("a").ok());
}

TEST(TenantsFileTest, EveryErrorNamesItsKey) {
  const std::pair<const char*, const char*> files[] = {
      {"[]", "the file: must be an object"},
      {R"({"tenant": {}})", "tenant: is no known key; known: default, tenants"},
      {R"({"tenants": []})", "tenants: must be an object"},
      {R"({"tenants": {"a": {"concurrent_requests": -1}}})",
       "tenants.a.concurrent_requests: must be an integer in [0, "},
      {R"({"tenants": {"a": {"tokens_per_minute": 0}}})",
       "tenants.a.tokens_per_minute: must be an integer in [1, "},
      {R"({"default": {"tokens_per_minute": 1e3}})",
       "default.tokens_per_minute: must be an integer"},
      {R"({"default": {"max_priority": 3000000000}})", "default.max_priority: must be an integer"},
      {R"({"default": {"concurrent_requests": 18446744073709551615}})", "must be an integer"},
  };
  for (const auto& [content, message] : files) {
    const auto table = parse_tenants(content);
    ASSERT_FALSE(table.ok()) << content;
    EXPECT_THAT(std::string(table.status().message()), HasSubstr(message));
  }
}

TEST_F(RouterTest, TenantOverItsLimitIsRefusedAndOthersAreNot) {
  std::atomic<bool> go_on = false;
  FakeLeader leader(demo_hello(), [&](const auto& session, const internal::v1::Submit& submit) {
    session->start(submit.handle());
    eventually([&] { return go_on.load(); });
    session->finish(submit.handle(), internal::v1::Finished::REASON_EOS);
  });
  options_.tenants_file = write_file(
      "router-tenants", R"({"tenants": {"a": {"concurrent_requests": 1, "max_priority": 3}}})");
  start_ready({leader.address()});
  v1::GenerateRequest of_a = request(3);
  of_a.set_tenant("a");
  of_a.set_priority(7);
  Outcome first;
  std::thread calling([&] { first = run(of_a); });
  ASSERT_TRUE(eventually([&] { return leader.num_submits() == 1; }));
  const Outcome second = run(of_a);
  EXPECT_EQ(second.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(retry_delay(second.status).has_value());
  go_on = true;
  EXPECT_TRUE(run(request(3)).status.ok());
  calling.join();
  EXPECT_TRUE(first.status.ok()) << first.status;
  EXPECT_TRUE(run(of_a).status.ok());
  EXPECT_EQ(leader.submits().front().priority(), 3);
}

}  // namespace
}  // namespace lckv
