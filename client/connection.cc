#include "client/connection.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "rpc/flags.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

// Prompt logprobs of a long window and the ids of a whole file exceed gRPC's usual 4 MiB.
constexpr int kMaxResponseBytes = 64 << 20;

}  // namespace

void add_connection_flags(CLI::App& app, ConnectionOptions& options) {
  app.add_option("--router", options.router, "Router's host:port")
      ->capture_default_str()
      ->group("Connection");
  add_duration(app, "--timeout", options.timeout, "Deadline of each call")->group("Connection");
}

std::shared_ptr<grpc::Channel> open_channel(const ConnectionOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxResponseBytes);
  return grpc::CreateCustomChannel(options.router, grpc::InsecureChannelCredentials(), arguments);
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
