// What servers share at their edges.
#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "rpc/byte_size.h"
#include "rpc/flags.h"
#include "rpc/health_server.h"
#include "rpc/metrics_server.h"
#include "rpc/server_options.h"
#include "rpc/status_mapping.h"
#include "rpc/trace_span.h"

namespace lckv {
namespace {

using grpc::health::v1::HealthCheckResponse;

TEST(ByteSizeTest, ReadsAndWritesSizes) {
  EXPECT_EQ(*parse_byte_size("4GiB"), uint64_t{4} << 30);
  EXPECT_EQ(*parse_byte_size("512MiB"), uint64_t{512} << 20);
  EXPECT_EQ(*parse_byte_size("1.5 kb"), 1500u);
  EXPECT_EQ(*parse_byte_size("17"), 17u);
  for (const char* bad : {"", "GiB", "4XiB", "-1", "1.5", "99999999TiB", "1e3MB", "4 4GiB"}) {
    EXPECT_FALSE(parse_byte_size(bad).ok()) << bad;
  }
  EXPECT_EQ(format_byte_size(uint64_t{4} << 30), "4 GiB");
  EXPECT_EQ(format_byte_size(1536), "1.50 KiB");
  EXPECT_EQ(format_byte_size(12), "12 B");
}

TEST(StatusMappingTest, CodesAndDetailsSurviveTheWire) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(static_cast<int>(to_grpc_code(status.code())), code);
    EXPECT_EQ(to_absl_status(to_grpc_status(status)), status);
  }
  v1::Interrupted progress;
  progress.set_num_tokens(9);
  absl::Status status = with_interrupted(
      with_retry(invalid_field("a.b", "is bad"), absl::Milliseconds(1500)), progress);
  status = to_absl_status(to_grpc_status(status));
  EXPECT_EQ(violated_field(status), "a.b");
  EXPECT_EQ(retry_delay(status), absl::Milliseconds(1500));
  EXPECT_EQ(interrupted_progress(status)->num_tokens(), 9u);
}

TEST(StatusMappingTest, DetailsStayBelowTheLimit) {
  v1::Interrupted progress;
  for (uint32_t i = 0; i < 128; ++i) {
    progress.add_choices()->set_choice(i);
    progress.mutable_choices(static_cast<int>(i))->set_num_text_bytes(uint64_t{1} << 60);
  }
  const std::string endless(100000, 'x');
  absl::Status status = with_interrupted(invalid_field(endless, endless), progress);
  EXPECT_LT(to_grpc_status(status).error_details().size(), kMaxDetailBytes);
  EXPECT_TRUE(interrupted_progress(to_absl_status(to_grpc_status(status))).has_value());
  for (int i = 0; i < 2000; ++i) progress.add_choices()->set_num_text_bytes(uint64_t{1} << 60);
  status = with_interrupted(invalid_field("f", "w"), progress);
  EXPECT_LT(to_grpc_status(status).error_details().size(), kMaxDetailBytes);
  EXPECT_EQ(violated_field(to_absl_status(to_grpc_status(status))), "f");
}

class HealthTest : public ::testing::Test {
 protected:
  HealthTest() {
    auto health = HealthServer::start({.services = {"lckv.v1.Inference"}});
    EXPECT_TRUE(health.ok()) << health.status();
    health_ = *std::move(health);
    stub_ = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
        host_port("127.0.0.1", health_->port()), grpc::InsecureChannelCredentials()));
  }

  grpc::Status check(const std::string& service, HealthCheckResponse& response) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    return stub_->Check(&context, request, &response);
  }

  std::unique_ptr<HealthServer> health_;
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
};

TEST_F(HealthTest, StatesOfStandingAndNamedServices) {
  HealthCheckResponse response;
  ASSERT_TRUE(check("liveness", response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  for (const char* service : {"", "readiness", "lckv.v1.Inference"}) {
    ASSERT_TRUE(check(service, response).ok()) << service;
    EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING) << service;
  }
  health_->set_ready(true);
  for (const char* service : {"", "readiness", "lckv.v1.Inference", "liveness"}) {
    ASSERT_TRUE(check(service, response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING) << service;
  }
  EXPECT_EQ(check("nobody", response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthTest, WatchFollowsChangesAndEndsOnStop) {
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("later");
  auto reader = stub_->Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  for (const bool serving : {true, false, true}) {
    health_->set_serving("later", serving);
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.status(),
              serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  }
  std::thread stopper([&] { health_->stop(); });
  EXPECT_FALSE(reader->Read(&response));
  stopper.join();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(MetricsServerTest, TakenPortIsAStatus) {
  const auto registry = std::make_shared<prometheus::Registry>();
  const auto first = MetricsServer::start({}, registry);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_NE((*first)->port(), 0);
  EXPECT_EQ(MetricsServer::start({.port = (*first)->port()}, registry).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(TraceSpanTest, ReadsWhatTheStandardAllows) {
  const std::string trace = "0af7651916cd43dd8448eb211c80319c";
  const std::string span = "b7ad6b7169203331";
  const auto parsed = parse_traceparent("00-" + trace + "-" + span + "-01");
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->trace_id, trace);
  EXPECT_EQ(parsed->span_id, span);
  EXPECT_EQ(parsed->flags, 1);
  // A later version may say more; what is known of it holds.
  EXPECT_TRUE(parse_traceparent("cc-" + trace + "-" + span + "-ff-what-comes-later").has_value());
  for (const std::string& bad :
       {std::string(), std::string("00"), "ff-" + trace + "-" + span + "-01",
        "00-" + trace + "-" + span, "00-" + trace + "-" + span + "-01-more",
        "00-" + trace + "-" + span + "-0g", "00-" + trace + "-0000000000000000-01",
        "00-" + std::string(32, '0') + "-" + span + "-01",
        "00-0AF7651916CD43DD8448EB211C80319C-" + span + "-01",
        "00_" + trace + "-" + span + "-01"}) {
    EXPECT_FALSE(parse_traceparent(bad).has_value()) << bad;
  }
}

TEST(TraceSpanTest, AChildKeepsTheTraceAndHasASpanOfItsOwn) {
  const auto parent = parse_traceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff");
  ASSERT_TRUE(parent.has_value());
  EXPECT_EQ(to_traceparent(child_of(*parent, 0x1234)),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000001234-01");
  // No span is named by zeros alone.
  EXPECT_TRUE(parse_traceparent(to_traceparent(child_of(*parent, 0))).has_value());
}

TEST(FlagsTest, EnvironmentAndWrongValues) {
  enum class Mode { kOne, kTwo };
  Mode mode = Mode::kOne;
  uint64_t size = 1;
  absl::Duration wait = absl::Seconds(1);
  const auto parse = [&](std::vector<const char*> arguments) {
    CLI::App app;
    add_byte_size(app, "--test-size", size, "");
    add_duration(app, "--test-wait", wait, "");
    add_enum(app, "--test-mode", mode, {{"one", Mode::kOne}, {"two", Mode::kTwo}}, "");
    arguments.insert(arguments.begin(), "program");
    return parse_flags(app, static_cast<int>(arguments.size()), arguments.data());
  };
  ASSERT_EQ(setenv("LCKV_TEST_SIZE", "2KiB", 1), 0);
  EXPECT_EQ(parse({"--test-wait", "90s", "--test-mode=two"}), std::nullopt);
  EXPECT_EQ(size, 2048u);
  EXPECT_EQ(wait, absl::Seconds(90));
  EXPECT_EQ(mode, Mode::kTwo);
  EXPECT_EQ(parse({"--test-size", "3KiB"}), std::nullopt);
  EXPECT_EQ(size, 3072u);
  testing::internal::CaptureStderr();
  EXPECT_EQ(parse({"--test-mode", "three"}), 2);
  // In one line: the last one of a container's log says why it ended.
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              ::testing::MatchesRegex("--test-mode: three not in [^\n]*one,two[^\n]*\n"));
  ASSERT_EQ(unsetenv("LCKV_TEST_SIZE"), 0);
}

}  // namespace
}  // namespace lckv
