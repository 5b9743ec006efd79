#include "router/fleet/fleet.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace lckv {

Fleet::Fleet(const FleetOptions& options, std::function<void()> on_change,
             std::function<void(bool received)> on_frame_moved)
    : on_change_(std::move(on_change)), snapshot_(std::make_shared<const ReplicaSet>()) {
  for (const std::string& address : options.addresses) {
    LinkOptions link = options.link;
    link.address = address;
    links_.push_back(std::make_shared<SessionLink>(
        std::move(link),
        LinkHandlers{.on_change =
                         [this] {
                           refresh();
                           on_change_();
                         },
                     .on_hello = [this](const internal::v1::Hello& h) { return model_of(h); },
                     .on_frame_moved = on_frame_moved}));
  }
  refresh();
}

std::shared_ptr<const ReplicaSet> Fleet::snapshot() {
  std::lock_guard lock(mutex_);
  return snapshot_;
}

void Fleet::refresh() {
  // Built under the lock, so that a set never replaces a newer one.
  std::lock_guard lock(mutex_);
  auto set = std::make_shared<ReplicaSet>();
  set->replicas.reserve(links_.size());
  for (const auto& link : links_) set->replicas.push_back(link->view());
  snapshot_ = std::move(set);
}

void Fleet::tick(absl::Time now) {
  for (const auto& link : links_) link->tick(now);
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
  for (const auto& link : links_) link->stop(absl::UnavailableError("the router shuts down"));
  const absl::Time deadline = absl::Now() + timeout;
  for (const auto& link : links_) {
    while (!link->is_idle()) {
      if (absl::Now() >= deadline) return false;
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return true;
}

absl::StatusOr<std::shared_ptr<const ModelInfo>> Fleet::model_of(const internal::v1::Hello& hello) {
  const auto set = snapshot();
  const ModelInfo* known = nullptr;
  for (const ReplicaView& replica : set->replicas) {
    if (replica.model && replica.model->hello.model() == hello.model()) known = replica.model.get();
  }
  return make_model_info(hello, known);
}

}  // namespace lckv
