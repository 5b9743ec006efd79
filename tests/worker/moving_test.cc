// What a worker tells routers so that they can move streams: who is in the running step, and when
// they are to leave.
#include <functional>
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/service_fixture.h"

namespace lckv {
namespace {

using internal::v1::DrainRequest;
using internal::v1::DrainResponse;
using internal::v1::WorkerFrame;
using ::testing::ElementsAre;

class MovingTest : public ServiceTest {
 protected:
  grpc::Status ask(const DrainRequest& request) {
    grpc::ClientContext call;
    call.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    return stub_->Drain(&call, request, &answer_);
  }
  // The load of the first frame that meets the condition, else of the last one looked at. Frames
  // come with the test's own reports; some were under way before.
  internal::v1::Load told(Router& router,
                          const std::function<bool(const internal::v1::Load&)>& condition) {
    internal::v1::Load load;
    for (int i = 0; i < 10 && !condition(load); ++i) {
      report();
      load = router.next().load();
    }
    return load;
  }

  DrainResponse answer_;
};

TEST_F(MovingTest, SeatedSequencesAreToldBeforeTheirStep) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(70);
  router.submit(71);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 2; }));
  StepReport before = turn();
  before.seated = {sequence(1)};
  service_->report(before);
  const WorkerFrame frame = next_but_beats(router);
  EXPECT_THAT(frame.seated().handle(), ElementsAre(71));
  EXPECT_EQ(frame.load().step(), 0U);
}

TEST_F(MovingTest, ADrainCallIsToldToSessionsAndCanBeUndone) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  DrainRequest request;  // the fixture's worker has no id
  request.set_grace_seconds(1000);
  ASSERT_TRUE(ask(request).ok());
  EXPECT_TRUE(answer_.load().draining());
  EXPECT_FALSE(answer_.load().moving());
  const auto draining = told(router, [](const auto& load) { return load.draining(); });
  EXPECT_TRUE(draining.draining() && !draining.moving());
  request.set_grace_seconds(0);
  ASSERT_TRUE(ask(request).ok());
  EXPECT_TRUE(told(router, [](const auto& load) { return load.moving(); }).moving());
  request.set_undrain(true);
  ASSERT_TRUE(ask(request).ok());
  const auto back = told(router, [](const auto& load) { return load.credit() > 0; });
  EXPECT_TRUE(!back.draining() && !back.moving() && back.credit() > 0);
}

TEST_F(MovingTest, StreamsAreToLeaveWhenTheGraceIsOver) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  service_->drain(absl::Now() - absl::Seconds(1));
  EXPECT_TRUE(told(router, [](const auto& load) { return load.moving(); }).moving());
  DrainRequest undrain;
  undrain.set_undrain(true);
  EXPECT_EQ(ask(undrain).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(MovingTest, ADrainCallForAnotherLifeIsRefused) {
  start();
  serve();
  DrainRequest request;
  request.set_replica_id("an older life");
  EXPECT_EQ(ask(request).error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace lckv
