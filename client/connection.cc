#include "client/connection.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"
#include "rpc/flags.h"
#include "rpc/status_mapping.h"
#include "rpc/tls_flags.h"
#include "rpc/watched_file.h"

namespace lckv {
namespace {

// Prompt logprobs of a long window and the ids of a whole file exceed gRPC's usual 4 MiB.
constexpr int kMaxResponseBytes = 64 << 20;

// Puts the token into the headers of every call.
class TokenSender final : public grpc::experimental::Interceptor {
 public:
  explicit TokenSender(const std::string& token) : token_(token) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    using grpc::experimental::InterceptionHookPoints;
    if (batch->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      batch->GetSendInitialMetadata()->emplace("authorization", absl::StrCat("Bearer ", token_));
    }
    batch->Proceed();
  }

 private:
  const std::string& token_;
};

class TokenSenders final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenSenders(std::string token) : token_(std::move(token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo* /*info*/) override {
    return new TokenSender(token_);
  }

 private:
  const std::string token_;
};

absl::StatusOr<std::string> read_token(const std::string& path) {
  const auto content = read_small_file(path);
  if (!content.ok()) return content.status();
  const std::string token(absl::StripAsciiWhitespace(*content));
  const bool sendable = !token.empty() && std::all_of(token.begin(), token.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
  if (sendable) return token;
  return absl::InvalidArgumentError(absl::StrCat(path, ": must hold one token and nothing else"));
}

}  // namespace

void add_connection_flags(CLI::App& app, ConnectionOptions& options) {
  const char* group = "Connection";
  app.add_option("--router", options.router, "Router's host:port")
      ->capture_default_str()
      ->group(group);
  add_duration(app, "--timeout", options.timeout, "Deadline of each call")->group(group);
  add_tls_client_flags(app, "--tls", options.tls, options.server_name, group);
  app.add_option_function<std::string>(
         "--token-file", [&options](const std::string& path) { options.token = *read_token(path); },
         "Holds the bearer token to send")
      ->check(CLI::Validator(
          [](std::string& path) { return std::string(read_token(path).status().message()); }, ""))
      ->type_name("FILE")
      ->group(group);
  add_plaintext_flag(app, options.allow_plaintext, group);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> open_channel(const ConnectionOptions& options) {
  TlsReload read_once;  // as a program that calls ends soon
  auto credentials = make_channel_credentials(options.tls, "--tls", read_once);
  if (!credentials.ok()) return credentials.status();
  const std::string host = options.router.substr(0, options.router.rfind(':'));
  if (*credentials == nullptr && !options.allow_plaintext &&
      !is_loopback(absl::StrReplaceAll(host, {{"[", ""}, {"]", ""}}))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--router ", options.router, " is another machine: give --tls-ca, or --allow-plaintext"));
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxResponseBytes);
  if (*credentials == nullptr) {
    credentials = grpc::InsecureChannelCredentials();
  } else if (!options.server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.server_name);
  }
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> senders;
  if (!options.token.empty()) senders.push_back(std::make_unique<TokenSenders>(options.token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(options.router, *credentials,
                                                                 arguments, std::move(senders));
}

void set_deadline(grpc::ClientContext& call, const ConnectionOptions& options) {
  call.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
}

std::string describe_error(const absl::Status& status) {
  std::string line = absl::StrCat(code_name(status.code()), ": ", status.message());
  if (const auto delay = retry_delay(status)) {
    absl::StrAppend(&line, " (retry in ", absl::FormatDuration(*delay), ")");
  }
  return absl::StrReplaceAll(line, {{"\n", " "}});
}

}  // namespace lckv
