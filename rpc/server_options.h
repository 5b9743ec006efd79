// What every gRPC endpoint of this project sets.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"

namespace lckv {

// Largest request a public port takes; 4 MiB is what clients expect to receive at most, so
// responses stay below.
inline constexpr int kMaxPublicRequestBytes = 16 << 20;
// Of all of a request's headers together.
inline constexpr int kMaxHeaderBytes = 16 << 10;
// Largest frame between router and leader: a whole vocabulary of logprobs for a chunk of prompt,
// tokenizer files.
inline constexpr int kMaxInternalFrameBytes = 512 << 20;

// "host:port", with an IPv6 host in brackets.
std::string host_port(absl::string_view host, uint16_t port);

// Answers reflection on every server built afterwards. Call once in main, before the first server
// is built.
void enable_reflection();

// Takes reflection off one server.
void leave_reflection_out(grpc::ServerBuilder& builder);

// The public port: request limit, pings from clients tolerated, idle connections probed.
void configure_public_server(grpc::ServerBuilder& builder);

// The hop between router and leader: a peer that is gone is noticed within 4 s at both ends, also
// when no frame is due (keep-alive 2 s, answer within 2 s, without data).
void configure_internal_server(grpc::ServerBuilder& builder);
grpc::ChannelArguments internal_channel_arguments();

}  // namespace lckv
