#include "router/fleet/session_state.h"

#include <algorithm>

#include "kernels/check.h"

namespace lckv {
namespace {

// What a frame takes off the memory of a long gap: a replica that was stopped once must not be
// waited for much longer for ever.
constexpr double kGapMemory = 0.98;

}  // namespace

SessionState::Received SessionState::on_frame(const internal::v1::WorkerFrame& frame,
                                              absl::Time now) {
  Received received;
  if (greeted_) long_gap_ = std::max(now - frame_time_, kGapMemory * long_gap_);
  frame_time_ = now;
  if (frame.has_load()) note_load(frame.load(), now);
  for (const uint64_t handle : frame.seated().handle()) {
    if (const Route* route = find(handle)) received.seated.push_back(*route);
  }
  if (frame.has_step()) received.deliveries = sort_step(frame.step());
  if (frame.has_refused()) received.refused = take(frame.refused().handle());
  return received;
}

void SessionState::greet(absl::Time now) {
  greeted_ = true;
  step_time_ = now;
}

bool SessionState::submit(const std::shared_ptr<SequenceSink>& sink, uint64_t first_handle,
                          std::vector<internal::v1::Submit>& submits, absl::Time now) {
  if (!greeted_ || load_.draining() || load_.credit() < num_in_flight() + submits.size()) {
    return false;
  }
  if (!has_work()) step_time_ = now;
  uint64_t handle = first_handle;
  for (internal::v1::Submit& submit : submits) {
    submit.set_handle(handle);
    const bool is_new =
        routes_
            .emplace(handle++, Route{.sink = sink, .attempt = {submit.choice(), submit.attempt()}})
            .second;
    LCKV_CHECK(is_new);
  }
  num_submitted_ += submits.size();
  return true;
}

std::optional<SessionState::Route> SessionState::take(uint64_t handle) {
  const auto it = routes_.find(handle);
  if (it == routes_.end()) return std::nullopt;
  std::optional<Route> route = std::move(it->second);
  routes_.erase(it);
  return route;
}

bool SessionState::set_paused(uint64_t handle, bool paused, absl::Time now) {
  Route* route = find(handle);
  if (route == nullptr) return false;
  if (!paused && !has_work()) step_time_ = now;
  route->paused = paused;
  return true;
}

std::vector<std::pair<uint64_t, SessionState::Route>> SessionState::take_all() {
  std::vector<std::pair<uint64_t, Route>> all;
  all.reserve(routes_.size());
  for (auto& [handle, route] : routes_) all.emplace_back(handle, std::move(route));
  routes_.clear();
  // The oldest goes on first.
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return all;
}

absl::Duration SessionState::standstill(absl::Time now) const {
  return has_work() ? now - step_time_ : absl::ZeroDuration();
}

uint32_t SessionState::num_in_flight() const {
  return static_cast<uint32_t>(num_submitted_ -
                               std::min<uint64_t>(num_submitted_, load_.num_taken()));
}

SessionState::Route* SessionState::find(uint64_t handle) {
  const auto it = routes_.find(handle);
  return it == routes_.end() ? nullptr : &it->second;
}

void SessionState::note_load(const internal::v1::Load& load, absl::Time now) {
  if (load.step() != load_.step() || load.num_layers() != load_.num_layers()) step_time_ = now;
  load_ = load;
}

bool SessionState::has_work() const {
  return std::any_of(routes_.begin(), routes_.end(),
                     [](const auto& entry) { return !entry.second.paused; });
}

std::vector<SessionState::Delivery> SessionState::sort_step(const internal::v1::Step& step) {
  std::vector<Delivery> deliveries;
  std::unordered_map<uint64_t, size_t> index;
  auto update_of = [&](uint64_t handle) -> SequenceUpdate* {
    const auto [it, is_new] = index.try_emplace(handle, deliveries.size());
    if (is_new) {
      Route* route = find(handle);
      if (route == nullptr) {  // cancelled: its tokens may still be under way
        index.erase(it);
        return nullptr;
      }
      deliveries.push_back({.route = *route, .update = {}});
    }
    return &deliveries[it->second].update;
  };
  for (const auto& started : step.started()) {
    if (auto* update = update_of(started.handle())) update->started = &started;
  }
  for (const auto& prompt : step.prompt_logprobs()) {
    if (auto* update = update_of(prompt.handle())) update->prompt_logprobs.push_back(&prompt);
  }
  const int num_tokens = std::min(step.handle_size(), step.token_size());
  const bool has_logprobs = step.logprobs_size() == num_tokens;
  for (int i = 0; i < num_tokens; ++i) {
    SequenceUpdate* update = update_of(step.handle(i));
    if (update == nullptr) continue;
    update->tokens.push_back(step.token(i));
    if (has_logprobs) update->logprobs.push_back(&step.logprobs(i));
  }
  for (const auto& finished : step.finished()) {
    if (auto* update = update_of(finished.handle())) {
      update->finished = &finished;
      routes_.erase(finished.handle());
    }
  }
  return deliveries;
}

}  // namespace lckv
