// A link's connection to a leader, over real sockets.
#include "router/fleet/session.h"

#include <chrono>
#include <future>
#include <memory>
#include <thread>

#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "tests/router/fake_leader.h"

namespace lckv {
namespace {

// Calls flush every session of a link, also one that is just being opened.
TEST(SessionTest, WhatIsQueuedBeforeThereIsAStreamIsSentOnceThereIsOne) {
  FakeLeader leader(demo_hello(), [](const auto&, const auto&) {});
  const auto channel = grpc::CreateChannel(leader.address(), grpc::InsecureChannelCredentials());
  const auto stub = internal::v1::Engine::NewStub(channel);
  const auto session = std::make_shared<Session>();
  std::promise<void> answered;
  std::promise<void> ended;
  session->set_handlers({.on_frame =
                             [&](const internal::v1::WorkerFrame& frame) {
                               if (!frame.has_hello()) answered.set_value();
                             },
                         .on_end = [&](const grpc::Status&) { ended.set_value(); }});
  internal::v1::RouterFrame beat;
  beat.mutable_beat();
  session->enqueue(beat);
  session->flush();
  session->start(*stub);
  EXPECT_EQ(answered.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  session->cancel();
  EXPECT_EQ(ended.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  // gRPC's thread, which tells the end, holds the session a moment longer, and must not be the last
  // to: with it the channel would go there.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (session.use_count() > 1) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::yield();
  }
}

}  // namespace
}  // namespace lckv
