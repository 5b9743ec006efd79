// Bearer tokens: the file, and every service behind it.
#include "router/access.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/router/router_fixture.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kTokens[] = R"({"tokens": [
  {"token": "generating-token-1", "tenant": "acme", "rights": ["generate"]},
  {"token": "generating-token-2", "tenant": "acme", "rights": ["generate"]},
  {"token": "admin-token-of-ops", "tenant": "ops", "rights": ["admin"]}]})";

class AccessTest : public RouterTest {
 protected:
  AccessTest()
      : path_(std::filesystem::temp_directory_path() /
              ("lckv-tokens-" + std::to_string(getpid()) + ".json")) {
    write(kTokens);
    options_.tokens_file = path_;
  }
  ~AccessTest() override { std::filesystem::remove(path_); }

  void write(const std::string& content) { std::ofstream(path_) << content; }
  Outcome generate(const std::string& header, const std::string& tenant = "") {
    grpc::ClientContext context;
    if (!header.empty()) context.AddMetadata("authorization", header);
    v1::GenerateRequest asked = request(3);
    asked.set_tenant(tenant);
    return run(asked, context);
  }
  // One call of each service: Inference, Models, Admin.
  std::vector<grpc::StatusCode> codes(const std::string& token) {
    std::vector<grpc::StatusCode> codes;
    const auto call = [&](auto&& method) {
      grpc::ClientContext context;
      if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
      codes.push_back(method(&context).error_code());
    };
    v1::TokenizeRequest text;
    text.set_text("a");
    v1::TokenizeResponse tokenized;
    v1::DetokenizeResponse detokenized;
    v1::ListModelsResponse models;
    v1::Model model;
    v1::ListReplicasResponse replicas;
    v1::Replica replica;
    const auto of_models = v1::Models::NewStub(channel_);
    const auto of_admin = v1::Admin::NewStub(channel_);
    call([&](auto* c) { return stub_->Tokenize(c, text, &tokenized); });
    call([&](auto* c) { return stub_->Detokenize(c, {}, &detokenized); });
    call([&](auto* c) { return of_models->ListModels(c, {}, &models); });
    call([&](auto* c) { return of_models->GetModel(c, {}, &model); });
    call([&](auto* c) { return of_admin->ListReplicas(c, {}, &replicas); });
    call([&](auto* c) { return of_admin->DrainReplica(c, {}, &replica); });
    call([&](auto* c) { return of_admin->UndrainReplica(c, {}, &replica); });
    return codes;
  }

  const std::filesystem::path path_;
};

TEST_F(AccessTest, TokensOpenWhatTheirRightsSay) {
  FakeLeader leader(demo_hello(), count_up);
  start_ready({leader.address()});
  using enum grpc::StatusCode;
  EXPECT_THAT(codes(""), ::testing::Each(UNAUTHENTICATED));
  EXPECT_THAT(codes("generating-token-3"), ::testing::Each(UNAUTHENTICATED));
  EXPECT_THAT(codes("generating-token-"), ::testing::Each(UNAUTHENTICATED));
  const auto generating = codes("generating-token-2");
  EXPECT_THAT(std::vector(generating.begin(), generating.begin() + 4), ::testing::Each(OK));
  EXPECT_THAT(std::vector(generating.begin() + 4, generating.end()),
              ::testing::Each(PERMISSION_DENIED));
  const auto admin = codes("admin-token-of-ops");
  EXPECT_THAT(std::vector(admin.begin(), admin.begin() + 4), ::testing::Each(PERMISSION_DENIED));
  EXPECT_THAT(std::vector(admin.begin() + 4, admin.end()),
              ::testing::Each(Not(::testing::AnyOf(PERMISSION_DENIED, UNAUTHENTICATED))));
}

TEST_F(AccessTest, TenantIsTheTokens) {
  FakeLeader leader(demo_hello(), count_up);
  start_ready({leader.address()});
  EXPECT_EQ(generate("").status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(generate("Basic generating-token-1").status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_TRUE(generate("bearer generating-token-1").status.ok());
  EXPECT_TRUE(generate("Bearer generating-token-1", "acme").status.ok());
  const Outcome other = generate("Bearer generating-token-1", "ops");
  EXPECT_EQ(other.status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(violated_field(other.status), "tenant");
  ASSERT_EQ(leader.num_submits(), 2);
  for (const auto& submit : leader.submits()) EXPECT_EQ(submit.tenant(), "acme");
}

TEST_F(AccessTest, TokensAreExchangedWhileTheRouterRuns) {
  FakeLeader leader(demo_hello(), count_up);
  start_ready({leader.address()});
  write("{");
  absl::SleepFor(absl::Milliseconds(1500));
  EXPECT_TRUE(generate("Bearer generating-token-1").status.ok());
  write(R"({"tokens": [{"token": "generating-token-9", "tenant": "t", "rights": ["generate"]}]})");
  EXPECT_TRUE(eventually([&] { return generate("Bearer generating-token-9").status.ok(); }));
  EXPECT_EQ(generate("Bearer generating-token-1").status.code(),
            absl::StatusCode::kUnauthenticated);
}

TEST_F(AccessTest, BrokenFileEndsTheStartWithoutShowingATokenOfIt) {
  const std::pair<const char*, const char*> files[] = {
      {"secret-secret-secret", "is no JSON"},
      {R"({"tokens": {}})", "tokens: must be a list"},
      {R"({"tokens": [{"token": "secret", "tenant": "a", "rights": []}]})",
       "tokens[0].token: must have 16 bytes or more"},
      {R"({"tokens": [{"token": "secret-secret-secret", "rights": []}]})",
       "tokens[0].tenant: must be a string, and not empty"},
      {R"({"tokens": [{"token": "secret-secret-secret", "tenant": "a", "rights": ["all"]}]})",
       "tokens[0].rights[0]: must be \"generate\" or \"admin\""},
      {R"({"tokens": [{"token": "secret-secret-secret", "tenant": "a", "rights": []},
                      {"token": "secret-secret-secret", "tenant": "b", "rights": []}]})",
       "tokens[1].token: is here twice"},
  };
  options_.port = 0;
  for (const auto& [content, message] : files) {
    write(content);
    const auto router = Router::start(options_, [](bool) {});
    ASSERT_FALSE(router.ok()) << content;
    const std::string line(router.status().message());
    EXPECT_THAT(line, HasSubstr(path_.string() + ": " + message));
    EXPECT_THAT(line, Not(HasSubstr("secret")));
  }
}

}  // namespace
}  // namespace lckv
