#include "worker/group/follower_link.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "rpc/server_options.h"
#include "rpc/status_mapping.h"
#include "worker/group/plan_frames.h"

namespace lckv {
namespace {

using internal::v1::LeaderFrame;
using internal::v1::RankFrame;

// How often a key that is not there yet is asked for.
constexpr absl::Duration kAskAgain = absl::Milliseconds(5);

absl::Status unexpected() { return absl::InternalError("the leader sent an unexpected frame"); }

}  // namespace

absl::StatusOr<std::unique_ptr<FollowerLink>> FollowerLink::join(const std::string& leader,
                                                                 const TlsPeerFiles& tls,
                                                                 const RankIdentity& identity,
                                                                 absl::Time deadline) {
  TlsReload read_once;  // as a rank joins once
  auto credentials = make_channel_credentials(tls.files, "--rank-tls", read_once);
  if (!credentials.ok()) return credentials.status();
  std::unique_ptr<FollowerLink> link(new FollowerLink);
  grpc::ChannelArguments arguments = internal_channel_arguments();
  if (!tls.server_name.empty()) arguments.SetSslTargetNameOverride(tls.server_name);
  const auto channel = grpc::CreateCustomChannel(
      leader, *credentials == nullptr ? grpc::InsecureChannelCredentials() : *credentials,
      arguments);
  if (!channel->WaitForConnected(absl::ToChronoTime(deadline))) {
    return absl::DeadlineExceededError(
        absl::StrCat("there is no leader at ", leader,
                     tls.files.ca.empty() ? " (--leader)" : " (--leader) that TLS lets speak"));
  }
  link->stub_ = internal::v1::Ranks::NewStub(channel);
  link->stream_ = link->stub_->Join(&link->call_);
  RankFrame frame;
  write_identity(identity, *frame.mutable_join());
  if (absl::Status status = link->write(frame); !status.ok()) return status;
  auto welcome = link->read();
  if (!welcome.ok()) return welcome.status();
  if (welcome->has_end()) return absl::UnavailableError("the replica ends");
  if (!welcome->has_welcome()) return unexpected();
  link->life_ = welcome->welcome().life();
  return link;
}

FollowerLink::~FollowerLink() {
  if (stream_ == nullptr || ended_.has_value()) return;
  call_.TryCancel();
  [[maybe_unused]] const absl::Status status = why();
}

RendezvousStore FollowerLink::store() {
  return {
      .set =
          [this](const std::string& key, std::string bytes) {
            RankFrame frame;
            frame.mutable_store_set()->set_key(key);
            frame.mutable_store_set()->set_value(std::move(bytes));
            return write(frame);
          },
      .get = [this](const std::string& key, absl::Time deadline) { return get(key, deadline); }};
}

absl::StatusOr<std::string> FollowerLink::get(const std::string& key, absl::Time deadline) {
  RankFrame frame;
  frame.mutable_store_get()->set_key(key);
  for (;;) {
    if (absl::Status status = write(frame); !status.ok()) return status;
    auto answer = read();
    if (!answer.ok()) return answer.status();
    if (!answer->has_store_value()) return unexpected();
    if (answer->store_value().found()) return answer->store_value().value();
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("nobody set ", key));
    }
    absl::SleepFor(kAskAgain);
  }
}

absl::Status FollowerLink::ready() {
  RankFrame frame;
  frame.mutable_ready();
  return write(frame);
}

absl::StatusOr<LeaderTurn> FollowerLink::next() {
  if (has_told_end_) return LeaderTurn{.end = true};
  auto frame = read();
  if (!frame.ok()) return frame.status();
  LeaderTurn turn;
  switch (frame->frame_case()) {
    case LeaderFrame::kPlan: {
      auto plan = read_plan(frame->plan());
      if (!plan.ok()) return plan.status();
      turn.plan = *std::move(plan);
      break;
    }
    case LeaderFrame::kHold:
      turn.holds = true;
      break;
    case LeaderFrame::kIdle:
      break;
    case LeaderFrame::kEnd:
      turn.end = true;
      break;
    default:
      return unexpected();
  }
  return turn;
}

absl::Status FollowerLink::done(uint64_t step, uint64_t digest) {
  RankFrame frame;
  frame.mutable_step_done()->set_step(step);
  frame.mutable_step_done()->set_digest(digest);
  return write(frame);
}

void FollowerLink::say_failed(const RankFailure& failure) {
  RankFrame frame;
  frame.mutable_failed()->set_step(failure.step);
  frame.mutable_failed()->set_operation(failure.operation);
  frame.mutable_failed()->set_why(failure.why);
  // Reading is the loop's: whether this arrives is left open.
  const std::lock_guard lock(writing_);
  if (!ended_.has_value()) stream_->Write(frame);
}

absl::Status FollowerLink::write(const RankFrame& frame) {
  {
    const std::lock_guard lock(writing_);
    if (!ended_.has_value() && stream_->Write(frame)) return absl::OkStatus();
  }
  // The reading side knows why. A leader that ends in order waits for nobody's last words.
  for (;;) {
    const auto last = read();
    if (!last.ok()) return last.status();
    if (last->has_end()) break;
  }
  has_told_end_ = true;
  return absl::OkStatus();
}

absl::StatusOr<LeaderFrame> FollowerLink::read() {
  LeaderFrame frame;
  if (!ended_.has_value() && stream_->Read(&frame)) return frame;
  return why();
}

absl::Status FollowerLink::why() {
  const std::lock_guard lock(writing_);
  if (!ended_.has_value()) {
    ended_ = to_absl_status(stream_->Finish());
    if (ended_->ok()) ended_ = absl::UnavailableError("it ended the connection");
    if (absl::IsUnavailable(*ended_)) {
      ended_ = absl::UnavailableError(absl::StrCat("lost the leader: ", ended_->message()));
    }
  }
  return *ended_;
}

}  // namespace lckv
