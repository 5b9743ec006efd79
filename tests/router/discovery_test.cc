// Finding replicas: the file of expected models, names, replicas that two addresses lead to.
#include "router/fleet/discovery.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "router/api/models_service.h"
#include "tests/router/router_fixture.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DiscoveryTest : public RouterTest {
 protected:
  DiscoveryTest() {
    std::filesystem::create_directories(folder_);
    options_.discovery.poll_interval = absl::Milliseconds(20);
    options_.discovery.resolve_interval = absl::Milliseconds(20);
  }
  ~DiscoveryTest() override {
    router_.reset();
    std::filesystem::remove_all(folder_);
  }

  static std::string models(const std::string& name, const std::string& worker) {
    const std::string workers = worker.empty() ? "" : "\"" + worker + "\"";
    return R"({"models": [{"name": ")" + name + R"(", "workers": [)" + workers + "]}]}";
  }
  // As Kubernetes mounts a secret: models.json -> data -> version-N, and data is swapped.
  void mount(const std::string& content) {
    const auto version = folder_ / ("version-" + std::to_string(++num_versions_));
    std::filesystem::create_directories(version);
    std::ofstream(version / "models.json") << content;
    std::filesystem::create_directory_symlink(version, folder_ / "new");
    std::filesystem::rename(folder_ / "new", folder_ / "data");
    if (num_versions_ == 1) {
      std::filesystem::create_symlink(folder_ / "data" / "models.json", folder_ / "models.json");
    }
    options_.discovery.models_file = folder_ / "models.json";
  }
  std::vector<std::string> addresses() {
    std::vector<std::string> found;
    const auto snapshot = router_->fleet().snapshot();
    for (const ReplicaView& view : snapshot->replicas) {
      found.push_back(view.address);
    }
    return found;
  }
  bool is_ready(const std::string& address) {
    const auto snapshot = router_->fleet().snapshot();
    return std::any_of(snapshot->replicas.begin(), snapshot->replicas.end(),
                       [&address](const ReplicaView& view) {
                         return view.address == address && view.state == ReplicaState::kReady;
                       });
  }
  double queue_depth(const std::string& model) {
    return metric("lckv_router_queue_depth", model).value_or(-1);
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("lckv-discovery-" + std::to_string(getpid()));
  int num_versions_ = 0;
};

TEST_F(DiscoveryTest, ExpectedModelWithoutReplicasIsUnavailableAndCounted) {
  mount(models("demo", ""));
  start({});
  EXPECT_TRUE(eventually([&] { return ready_.load(); }));
  const Outcome outcome = run(request(3));
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(retry_delay(outcome.status).has_value());
  v1::GenerateRequest other = request(3);
  other.set_model("other");
  EXPECT_EQ(run(other).status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(eventually([&] { return queue_depth("demo") == 0; }));
  EXPECT_EQ(queue_depth("other"), -1);
  const auto listed = list_models(*router_->fleet().snapshot());
  ASSERT_EQ(listed.models_size(), 1);
  EXPECT_EQ(listed.models(0).name(), "demo");
}

TEST_F(DiscoveryTest, SwappedFileAddsReplicasAndKeepsLiveSessionsOfOthers) {
  FakeLeader first(demo_hello("a"), count_up);
  FakeLeader second(demo_hello("b"), count_up);
  mount(models("demo", first.address()));
  start({});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  mount(models("demo", second.address()));
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 2; }));
  EXPECT_THAT(addresses(), ElementsAre(first.address(), second.address()));
  first.kill();
  EXPECT_TRUE(eventually([&] { return addresses() == std::vector{second.address()}; }));
  EXPECT_TRUE(run(request(3)).status.ok());
}

TEST_F(DiscoveryTest, MalformedFileEndsTheStartAndLeavesARunningRouterAsItWas) {
  mount(R"({"models": [{"name": "demo", "workers": ["nowhere"]}]})");
  const auto refused = Router::start(options_, [](bool) {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("models.json: models[0].workers[0]: \"nowhere\" is no host:port"));

  FakeLeader leader(demo_hello("a"), count_up);
  mount(models("demo", leader.address()));
  start({});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  mount("{");
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_THAT(addresses(), ElementsAre(leader.address()));
  EXPECT_TRUE(run(request(3)).status.ok());
  mount(models("another", ""));
  EXPECT_TRUE(eventually([&] { return queue_depth("another") == 0; }));
}

TEST_F(DiscoveryTest, ReplicaOfAnotherModelThanExpectedIsNotUsed) {
  FakeLeader leader(demo_hello("a"), count_up);
  mount(models("other", leader.address()));
  start({});
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_EQ(count_state(ReplicaState::kReady), 0u);
}

TEST_F(DiscoveryTest, AllAddressesOfANameAreCandidatesAndErrorsKeepThem) {
  FakeLeader first(demo_hello("a"), count_up);
  FakeLeader second(demo_hello("b"), count_up);
  std::mutex mutex;
  absl::StatusOr<std::vector<std::string>> answer = std::vector{first.address()};
  std::atomic<int> num_asked = 0;
  options_.discovery.resolve = [&](const std::string& name) {
    EXPECT_EQ(name, "demo.serving:50061");
    ++num_asked;
    std::lock_guard lock(mutex);
    return answer;
  };
  const auto set_answer = [&](absl::StatusOr<std::vector<std::string>> next) {
    std::lock_guard lock(mutex);
    answer = std::move(next);
  };
  start({"demo.serving:50061"});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  set_answer(std::vector{first.address(), second.address()});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 2; }));
  for (const auto& bad : {absl::StatusOr<std::vector<std::string>>(std::vector<std::string>()),
                          absl::StatusOr<std::vector<std::string>>(absl::UnavailableError("no"))}) {
    set_answer(bad);
    const int before = num_asked;
    ASSERT_TRUE(eventually([&] { return num_asked >= before + 2; }));
    EXPECT_EQ(count_state(ReplicaState::kReady), 2u);
  }
  router_.reset();  // before what the lookups refer to
  absl::SleepFor(absl::Milliseconds(50));
}

// As of a model that was scaled to zero: nobody is to look for its last replica for ever.
TEST_F(DiscoveryTest, NameWithoutAddressesForLongHasNoCandidates) {
  auto leader = std::make_unique<FakeLeader>(demo_hello("a"), count_up);
  std::mutex mutex;
  std::vector<std::string> answer = {leader->address()};
  options_.discovery.believe_empty_after = absl::Milliseconds(100);
  options_.discovery.resolve = [&](const std::string&) {
    std::lock_guard lock(mutex);
    return absl::StatusOr<std::vector<std::string>>(answer);
  };
  start({"demo.serving:50061"});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  {
    std::lock_guard lock(mutex);
    answer.clear();
  }
  // What is there goes on being used; what is gone is not looked for.
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_EQ(count_state(ReplicaState::kReady), 1u);
  leader.reset();
  EXPECT_TRUE(eventually([&] { return addresses().empty(); }));
  router_.reset();  // before what the lookups refer to
  absl::SleepFor(absl::Milliseconds(50));
}

TEST_F(DiscoveryTest, LookupThatHangsHoldsUpNothing) {
  FakeLeader leader(demo_hello("a"), count_up);
  const auto released = std::make_shared<std::atomic<bool>>(false);
  options_.discovery.resolve_timeout = absl::Milliseconds(30);
  options_.discovery.resolve = [released](const std::string&) {
    while (!*released) absl::SleepFor(absl::Milliseconds(5));
    return absl::StatusOr<std::vector<std::string>>(std::vector<std::string>());
  };
  start({"slow.serving:50061", leader.address()});
  EXPECT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  EXPECT_TRUE(run(request(3)).status.ok());
  router_.reset();
  *released = true;
}

TEST_F(DiscoveryTest, SystemResolverKnowsLocalhost) {
  const auto addresses = resolve_with_system("localhost:50061");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_THAT(*addresses, ::testing::Contains("127.0.0.1:50061"));
  // Where a name server can be asked it says that there is none.
  const auto none = resolve_with_system("no-such-host.invalid:50061");
  EXPECT_TRUE(!none.ok() || none->empty());
}

TEST_F(DiscoveryTest, ReplicaReachedTwiceIsOneAndFoundAgainTheOtherWay) {
  auto leader = std::make_unique<FakeLeader>(demo_hello("a"), count_up);
  // Another port to the same replica: what a second address of a host looks like to a router.
  FakeLeader other_way(demo_hello("a"), count_up);
  start({leader->address()});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  router_->fleet().set_candidates({.replicas = {{leader->address(), leader->address(), ""},
                                                {other_way.address(), other_way.address(), ""}}});
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_THAT(addresses(), ElementsAre(leader->address()));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(run(request(3)).status.ok());
  EXPECT_EQ(leader->num_submits(), 4);
  leader.reset();
  // The first way counts as ready until its loss is noticed.
  EXPECT_TRUE(eventually([&] { return is_ready(other_way.address()); }));
  EXPECT_TRUE(run(request(3)).status.ok());
  EXPECT_EQ(other_way.num_submits(), 1);
}

TEST_F(DiscoveryTest, PlaintextBeyondThisMachineNeedsPermission) {
  start({"192.0.2.1:50061"});
  EXPECT_THAT(addresses(), IsEmpty());
  options_.fleet.allow_plaintext = true;
  start({"192.0.2.1:50061"});
  EXPECT_THAT(addresses(), ElementsAre("192.0.2.1:50061"));
}

struct BadFile {
  const char* content;
  const char* message;
};

TEST(ModelsFileTest, EveryErrorNamesItsKey) {
  const BadFile files[] = {
      {"[]", "the file: must be an object"},
      {"{\"models\": 1}", "models: must be a list"},
      {"{\"model\": []}", "model: is no known key; known: models"},
      {"{\"models\": [{\"workers\": []}]}", "models[0].name: must be a string, and not empty"},
      {"{\"models\": [{\"name\": \"a\"}]}", "models[0].workers: must be a list"},
      {"{\"models\": [{\"name\": \"a\", \"workers\": [7]}]}",
       "models[0].workers[0]: 7 is no host:port"},
      {"{\"models\": [{\"name\": \"a\", \"workers\": [\"h:0\"]}]}",
       "models[0].workers[0]: \"h:0\" is no host:port"},
      {R"({"models": [{"name": "a", "workers": []}, {"name": "a", "workers": []}]})",
       "models[1].name: \"a\" is here twice"},
      {R"({"models": [{"name": "a", "workers": ["h:1"]}, {"name": "b", "workers": ["h:1"]}]})",
       "models[1].workers[0]: h:1 is here twice"},
  };
  for (const BadFile& file : files) {
    const auto models = parse_models(file.content);
    ASSERT_FALSE(models.ok()) << file.content;
    EXPECT_EQ(std::string(models.status().message()), file.message);
  }
  EXPECT_THAT(std::string(parse_models("{\n \"models\" ").status().message()),
              HasSubstr("no JSON: parse error at line 2"));
}

}  // namespace
}  // namespace lckv
