// How the client's commands reach a router, and how they report what went wrong.
#pragma once

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "rpc/tls.h"

namespace lckv {

struct ConnectionOptions {
  std::string router = "127.0.0.1:50051";
  absl::Duration timeout = absl::Minutes(10);  // deadline of each call
  TlsClientFiles tls;
  std::string server_name;  // that the certificate must have; empty: the router's
  std::string token;        // empty: none is sent
  bool allow_plaintext = false;
};

// --router, --timeout, --tls-*, --token-file, --allow-plaintext; `options` must outlive the parsing
// of `app`.
void add_connection_flags(CLI::App& app, ConnectionOptions& options);

// Connects when the first call is made; each call carries the token. Any thread may use the
// channel. InvalidArgument where a file cannot be used, or where plaintext would leave this machine
// without --allow-plaintext.
absl::StatusOr<std::shared_ptr<grpc::Channel>> open_channel(const ConnectionOptions& options);

// Gives `call` the deadline that begins now.
void set_deadline(grpc::ClientContext& call, const ConnectionOptions& options);

// The line a user reads: "UNAVAILABLE: no replica is ready (retry in 1s)".
std::string describe_error(const absl::Status& status);

}  // namespace lckv
