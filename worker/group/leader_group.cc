#include "worker/group/leader_group.h"

#include <algorithm>
#include <iterator>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "rpc/server_options.h"
#include "worker/group/plan_frames.h"

namespace lckv {
namespace {

using internal::v1::LeaderFrame;
using internal::v1::RankFrame;

// For a rank to hear why it was refused, before the leader ends too.
constexpr absl::Duration kRefusalPatience = absl::Seconds(2);
constexpr absl::Duration kLook = absl::Milliseconds(5);
// A rank writes its Join as soon as it has a stream.
constexpr absl::Duration kJoinTimeout = absl::Seconds(5);
// Far more than ranks come at once; whoever else reaches the port must not fill the memory.
constexpr size_t kMaxVisitors = 256;

std::string random_life() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

void wait_until_done(const RankStream& stream, absl::Time deadline) {
  while (!stream.is_done() && absl::Now() < deadline) absl::SleepFor(kLook);
}

}  // namespace

LeaderGroup::LeaderGroup(OnFailure on_failure)
    : on_failure_(std::move(on_failure)), life_(random_life()) {}

absl::StatusOr<std::unique_ptr<LeaderGroup>> LeaderGroup::open(const std::string& address,
                                                               const TlsPeerFiles& tls,
                                                               OnFailure on_failure) {
  TlsReload read_once;  // as ranks join once
  auto credentials = make_server_credentials(tls.as_server(), read_once);
  if (!credentials.ok()) return credentials.status();
  std::unique_ptr<LeaderGroup> group(new LeaderGroup(std::move(on_failure)));
  grpc::ServerBuilder builder;
  configure_internal_server(builder);
  int bound_port = 0;
  builder.AddListeningPort(address, *credentials, &bound_port);
  builder.RegisterService(group.get());
  group->server_ = builder.BuildAndStart();
  if (group->server_ == nullptr || bound_port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve ranks on ", address, " (--leader): is another leader there?"));
  }
  group->port_ = static_cast<uint16_t>(bound_port);
  return group;
}

LeaderGroup::~LeaderGroup() { end(absl::Now()); }

absl::Status LeaderGroup::admit(const RankIdentity& leader, absl::Time deadline) {
  std::vector<Visitor> visitors;
  {
    const std::lock_guard lock(mutex_);
    leader_ = leader;
    members_.resize(leader.world_size);
    admitting_ = true;
    const auto joined = std::partition(visitors_.begin(), visitors_.end(),
                                       [](const Visitor& visitor) { return !visitor.identity; });
    visitors.assign(std::move_iterator(joined), std::move_iterator(visitors_.end()));
    visitors_.erase(joined, visitors_.end());
  }
  for (const Visitor& visitor : visitors) {
    if (absl::Status status = decide(visitor.stream, *visitor.identity); !status.ok()) {
      visitor.stream->end(status);
    }
  }
  std::unique_lock lock(mutex_);
  const auto decided = [this] { return running_ || !misfit_.ok(); };
  changed_.wait_for(lock, absl::ToChronoMilliseconds(deadline - absl::Now()), decided);
  if (!misfit_.ok()) {
    const Stream refused = refused_;
    lock.unlock();
    wait_until_done(*refused, absl::Now() + kRefusalPatience);
    return misfit_;
  }
  if (running_) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(missing(/*ready=*/false), " did not join"));
}

absl::Status LeaderGroup::wait_ready(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  const auto all_ready = [this] {
    return std::all_of(members_.begin() + 1, members_.end(),
                       [](const Member& member) { return member.ready; });
  };
  if (changed_.wait_for(lock, absl::ToChronoMilliseconds(deadline - absl::Now()), all_ready)) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(absl::StrCat(missing(/*ready=*/true), " did not get ready"));
}

std::string LeaderGroup::missing(bool ready) const {
  std::vector<int> ranks;
  for (int rank = 1; rank < static_cast<int>(members_.size()); ++rank) {
    const Member& member = members_[rank];
    if (ready ? !member.ready : member.stream == nullptr) ranks.push_back(rank);
  }
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

void LeaderGroup::send(const StepPlan& plan) {
  auto frame = std::make_shared<LeaderFrame>();
  write_plan(plan, *frame->mutable_plan());
  broadcast(frame);
}

void LeaderGroup::hold() {
  auto frame = std::make_shared<LeaderFrame>();
  frame->mutable_hold();
  broadcast(frame);
}

void LeaderGroup::idle() {
  auto frame = std::make_shared<LeaderFrame>();
  frame->mutable_idle();
  broadcast(frame);
}

void LeaderGroup::broadcast(const RankStream::Frame& frame) {
  std::vector<Stream> streams;
  {
    const std::lock_guard lock(mutex_);
    for (const Member& member : members_) streams.push_back(member.stream);
  }
  for (size_t rank = 1; rank < streams.size(); ++rank) {
    if (streams[rank] == nullptr) continue;
    if (absl::Status status = streams[rank]->send(frame); !status.ok()) {
      report({.rank = static_cast<int>(rank),
              .operation = "send",
              .why = std::string(status.message())});
    }
  }
}

void LeaderGroup::done(uint64_t step, uint64_t digest) { count(0, step, digest); }

void LeaderGroup::count(int rank, uint64_t step, uint64_t digest) {
  RankFailure failure{.step = step, .operation = "report"};
  {
    const std::lock_guard lock(mutex_);
    if (rank > 0) members_[rank].step = step;
    Tally& tally =
        tallies_.try_emplace(step, Tally{.first_rank = rank, .digest = digest}).first->second;
    ++tally.count;
    if (tally.digest == digest) {
      if (tally.count == leader_.world_size) tallies_.erase(step);
      return;
    }
    failure.rank = std::max(rank, tally.first_rank);
    failure.why =
        absl::StrCat("ranks ", tally.first_rank, " and ", rank, " came to different results");
  }
  report(failure);
}

void LeaderGroup::report(const RankFailure& failure) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
  }
  on_failure_(failure);
}

void LeaderGroup::look(absl::Time now) {
  std::vector<Stream> silent;
  {
    const std::lock_guard lock(mutex_);
    for (const Visitor& visitor : visitors_) {
      if (now >= visitor.deadline) silent.push_back(visitor.stream);
    }
    std::erase_if(visitors_, [now](const Visitor& visitor) { return now >= visitor.deadline; });
  }
  for (const Stream& stream : silent) {
    stream->end(absl::DeadlineExceededError("no Join came"));
  }
}

void LeaderGroup::end(absl::Time deadline) {
  std::vector<Stream> streams;
  {
    const std::lock_guard lock(mutex_);
    if (server_ == nullptr) return;
    ending_ = true;
    for (const Member& member : members_) {
      if (member.stream != nullptr) streams.push_back(member.stream);
    }
    for (Visitor& visitor : visitors_) streams.push_back(std::move(visitor.stream));
    visitors_.clear();
  }
  auto frame = std::make_shared<LeaderFrame>();
  frame->mutable_end();
  for (const Stream& stream : streams) {
    [[maybe_unused]] const absl::Status sent = stream->send(frame);
    stream->end(absl::OkStatus());
  }
  for (const Stream& stream : streams) wait_until_done(*stream, deadline);
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_.reset();
}

grpc::ServerBidiReactor<RankFrame, LeaderFrame>* LeaderGroup::Join(grpc::CallbackServerContext*) {
  const Stream stream = RankStream::open(
      [this](const Stream& from, const RankFrame& frame) { return take(from, frame); },
      [this](const Stream& ended) { forget(ended); });
  bool is_one_too_many = false;
  {
    const std::lock_guard lock(mutex_);
    is_one_too_many = visitors_.size() >= kMaxVisitors;
    if (!ending_ && !is_one_too_many) {
      visitors_.push_back({.stream = stream, .deadline = absl::Now() + kJoinTimeout});
    }
  }
  if (is_one_too_many) {
    stream->end(absl::ResourceExhaustedError("too many ranks wait to join"));
  } else {
    stream->read();
  }
  return stream.get();
}

absl::Status LeaderGroup::take(const Stream& stream, const RankFrame& frame) {
  if (frame.has_join()) return join(stream, read_identity(frame.join()));
  int rank = -1;
  {
    const std::lock_guard lock(mutex_);
    rank = rank_of(stream);
    if (rank < 0) return absl::FailedPreconditionError("the first frame is Join");
    if (frame.has_ready()) members_[rank].ready = true;
  }
  switch (frame.frame_case()) {
    case RankFrame::kStoreSet:
      return store_.set(frame.store_set().key(), frame.store_set().value());
    case RankFrame::kStoreGet:
      return answer(stream, frame.store_get().key());
    case RankFrame::kReady:
      changed_.notify_all();
      break;
    case RankFrame::kStepDone:
      count(rank, frame.step_done().step(), frame.step_done().digest());
      break;
    case RankFrame::kFailed:
      report({.rank = rank,
              .step = frame.failed().step(),
              .operation = frame.failed().operation(),
              .why = frame.failed().why()});
      break;
    default:
      return absl::InvalidArgumentError("an empty frame");
  }
  return absl::OkStatus();
}

absl::Status LeaderGroup::join(const Stream& stream, RankIdentity identity) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return absl::UnavailableError("the replica ends");
    const auto visitor = std::find_if(visitors_.begin(), visitors_.end(),
                                      [&](const Visitor& v) { return v.stream == stream; });
    if (visitor == visitors_.end() || visitor->identity) {
      return absl::FailedPreconditionError("Join comes once, and in time");
    }
    if (!admitting_) {
      visitor->identity = std::move(identity);
      visitor->deadline = absl::InfiniteFuture();
      return absl::OkStatus();
    }
    visitors_.erase(visitor);
  }
  return decide(stream, identity);
}

absl::Status LeaderGroup::decide(const Stream& stream, const RankIdentity& identity) {
  RankStream::Frame welcome;
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return absl::UnavailableError("the replica ends");
    if (absl::Status status = admit_one(stream, identity); !status.ok()) return status;
    running_ = std::all_of(members_.begin() + 1, members_.end(),
                           [](const Member& member) { return member.stream != nullptr; });
    auto frame = std::make_shared<LeaderFrame>();
    frame->mutable_welcome()->set_life(life_);
    welcome = std::move(frame);
  }
  changed_.notify_all();
  return stream->send(welcome);
}

absl::Status LeaderGroup::admit_one(const Stream& stream, const RankIdentity& identity) {
  absl::Status status = compare_identities(leader_, identity);
  if (absl::IsFailedPrecondition(status) && !running_ && misfit_.ok()) {
    misfit_ = status;
    refused_ = stream;
    changed_.notify_all();
  }
  if (!status.ok()) return status;
  if (identity.rank <= 0 || identity.rank >= leader_.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", identity.rank, " is not one of 1 to ", leader_.world_size - 1));
  }
  Member& member = members_[identity.rank];
  if (member.stream != nullptr) {
    return absl::AlreadyExistsError(absl::StrCat("rank ", identity.rank, " has joined already"));
  }
  member.stream = stream;
  return absl::OkStatus();
}

absl::Status LeaderGroup::answer(const Stream& stream, const std::string& key) {
  const auto value = store_.get(key, absl::Now());
  if (!value.ok() && !absl::IsDeadlineExceeded(value.status())) return value.status();
  auto frame = std::make_shared<LeaderFrame>();
  frame->mutable_store_value()->set_found(value.ok());
  if (value.ok()) frame->mutable_store_value()->set_value(*value);
  return stream->send(frame);
}

int LeaderGroup::rank_of(const Stream& stream) const {
  const auto it = std::find_if(members_.begin(), members_.end(),
                               [&stream](const Member& member) { return member.stream == stream; });
  return it == members_.end() ? -1 : static_cast<int>(it - members_.begin());
}

void LeaderGroup::forget(const Stream& stream) {
  RankFailure failure{
      .operation = "run", .why = "its connection to the leader broke", .second_hand = true};
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(visitors_, [&](const Visitor& visitor) { return visitor.stream == stream; });
    failure.rank = rank_of(stream);
    if (failure.rank < 0) return;
    failure.step = members_[failure.rank].step;
  }
  report(failure);
}

}  // namespace lckv
