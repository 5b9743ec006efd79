#include "router/fleet/fleet.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "router/fleet/name_resolver.h"
#include "rpc/tls_flags.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

const std::string& id_of(const ReplicaView& view) { return view.model->hello.replica_id(); }

}  // namespace

Fleet::Fleet(const FleetOptions& options, std::function<void()> on_change,
             std::function<void(bool received)> on_frame_moved)
    : options_(options),
      on_change_(std::move(on_change)),
      on_frame_moved_(std::move(on_frame_moved)),
      snapshot_(std::make_shared<const ReplicaSet>()) {}

std::shared_ptr<SessionLink> Fleet::make_link(const Candidate& candidate) {
  LinkOptions link = options_.link;
  link.address = candidate.address;
  // The certificate is held against the name that was configured, not against what it led to.
  const std::string host = split_address(candidate.origin).host;
  if (link.server_name.empty() && !is_literal_address(host)) link.server_name = host;
  return std::make_shared<SessionLink>(
      std::move(link),
      LinkHandlers{
          .on_change =
              [this] {
                refresh();
                on_change_();
              },
          .on_hello = [this, model = candidate.model](
                          const internal::v1::Hello& hello) { return model_of(hello, model); },
          .on_frame_moved = on_frame_moved_});
}

void Fleet::set_candidates(Candidates candidates) {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    expected_models_ = std::move(candidates.models);
    for (Place& place : places_) place.withdrawn = true;
    for (const Candidate& candidate : candidates.replicas) {
      // The same address for another model is another link.
      const auto known = std::find_if(places_.begin(), places_.end(), [&](const Place& place) {
        return place.candidate.address == candidate.address &&
               place.candidate.model == candidate.model;
      });
      if (known != places_.end()) {
        known->withdrawn = false;
        continue;
      }
      const bool local = is_loopback(split_address(candidate.address).host);
      if (!local && !options_.allow_plaintext && options_.link.credentials == nullptr) {
        spdlog::error(
            "worker {} is left out: plaintext beyond this machine needs --allow-plaintext, TLS "
            "needs --worker-tls-ca",
            candidate.address);
        continue;
      }
      places_.push_back({.candidate = candidate, .link = make_link(candidate)});
    }
  }
  refresh();
  on_change_();
}

std::shared_ptr<const ReplicaSet> Fleet::snapshot() {
  std::lock_guard lock(mutex_);
  renew();
  return snapshot_;
}

// Built under the lock, so that a set never replaces a newer one.
void Fleet::renew() {
  if (stopped_ || !stale_.exchange(false)) return;
  std::vector<ReplicaView> views;
  views.reserve(places_.size());
  for (const Place& place : places_) {
    if (place.link == nullptr) continue;
    views.push_back(place.link->view());
    views.back().origin = place.candidate.origin;
    views.back().expected_model = place.candidate.model;
  }
  choice_.settle(views);
  auto set = std::make_shared<ReplicaSet>();
  set->expected_models = expected_models_;
  for (ReplicaView& view : views) {
    // A replica is listed once: by the link it is reached by, or as lost where it is not reached.
    if (choice_.is_superfluous(view)) continue;
    set->replicas.push_back(std::move(view));
  }
  snapshot_ = std::move(set);
}

// Takes away the links that lead to a replica a second time, and those of withdrawn candidates that
// have no session; opens those again whose replica is not reached any more.
std::vector<std::shared_ptr<SessionLink>> Fleet::close_superfluous() {
  std::vector<std::shared_ptr<SessionLink>> closed;
  for (Place& place : places_) {
    if (place.link == nullptr) {
      if (!place.withdrawn && !choice_.reaches(place.replica_id)) {
        place.link = make_link(place.candidate);
      }
      continue;
    }
    const ReplicaView view = place.link->view();
    const bool live = is_live(view);
    const bool again = live && choice_.is_superfluous(view);
    if (!again && (live || !place.withdrawn)) continue;
    if (again) {
      spdlog::info("{} leads to replica {}, which is reached already", place.candidate.address,
                   id_of(view));
      place.replica_id = id_of(view);
    }
    closed.push_back(std::move(place.link));
    place.link = nullptr;
  }
  std::erase_if(places_, [](const Place& p) { return p.withdrawn && p.link == nullptr; });
  closing_.insert(closing_.end(), closed.begin(), closed.end());
  return closed;
}

void Fleet::tick(absl::Time now) {
  std::vector<std::shared_ptr<SessionLink>> links;
  std::vector<std::shared_ptr<SessionLink>> closed;
  std::vector<std::shared_ptr<SessionLink>> unused;  // go without the lock
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    renew();
    closed = close_superfluous();
    const auto used = std::partition(closing_.begin(), closing_.end(), [](const auto& link) {
      return link.use_count() > 1 || !link->is_idle();
    });
    unused.assign(std::move_iterator(used), std::move_iterator(closing_.end()));
    closing_.erase(used, closing_.end());
    for (const Place& place : places_) {
      if (place.link) links.push_back(place.link);
    }
  }
  for (const auto& link : closed) {
    // An older session than the one that was looked at may still have streams: they go on
    // elsewhere.
    link->stop(LossKind::kMoved,
               absl::UnavailableError("the replica is not used by this address any more"));
  }
  if (!closed.empty()) refresh();
  for (const auto& link : links) link->tick(now);
  move_streams();
}

void Fleet::move_streams() {
  const auto set = snapshot();
  for (const ReplicaView& from : set->replicas) {
    if (!from.load.moving() || from.model == nullptr) continue;
    const bool has_equal =
        std::any_of(set->replicas.begin(), set->replicas.end(), [&from](const ReplicaView& to) {
          return to.state == ReplicaState::kReady && to.available_credit() > 0 &&
                 to.model->hello.fingerprint() == from.model->hello.fingerprint() &&
                 takes_same_requests(*to.model, *from.model);
        });
    if (has_equal) from.link->move_streams();
  }
}

bool Fleet::stop(absl::Duration timeout) {
  std::vector<std::shared_ptr<SessionLink>> links;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    links = std::exchange(closing_, {});
    for (const Place& place : std::exchange(places_, {})) {
      if (place.link) links.push_back(place.link);
    }
    snapshot_ = std::make_shared<const ReplicaSet>();
  }
  for (const auto& link : links) {
    link->stop(LossKind::kStopped, absl::UnavailableError("the router shuts down"));
  }
  const absl::Time deadline = absl::Now() + timeout;
  for (const auto& link : links) {
    // What gRPC's threads hold goes a moment after the sessions; the links' channels must go here.
    while (link.use_count() > 1 || !link->is_idle()) {
      if (absl::Now() >= deadline) return false;
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return true;
}

absl::StatusOr<std::shared_ptr<const ModelInfo>> Fleet::model_of(
    const internal::v1::Hello& hello, const std::string& expected_model) {
  if (!expected_model.empty() && hello.model() != expected_model) {
    return absl::FailedPreconditionError(
        absl::StrCat("it serves ", hello.model(), " where ", expected_model, " is expected"));
  }
  const auto set = snapshot();
  const ModelInfo* known = nullptr;
  for (const ReplicaView& replica : set->replicas) {
    if (replica.model && replica.model->hello.model() == hello.model()) known = replica.model.get();
  }
  return make_model_info(hello, known);
}

}  // namespace lckv
