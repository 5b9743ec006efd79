// What a session with a leader holds, as a state machine without I/O: which handle is whose, what
// the leader's load leaves to submit, how long it has been silent.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "lckv/internal/v1/engine.pb.h"
#include "router/fleet/sequence_sink.h"

namespace lckv {

// Owner: its session link, under the link's lock. Time is an argument.
class SessionState {
 public:
  struct Route {
    std::shared_ptr<SequenceSink> sink;
    ChoiceAttempt attempt;
    bool paused = false;
  };
  struct Delivery {
    Route route;
    SequenceUpdate update;
  };
  // What a frame means to the sequences of this session, in this order. Points into the frame.
  struct Received {
    std::vector<Route> seated;
    std::vector<Delivery> deliveries;
    std::optional<Route> refused;
  };

  explicit SessionState(absl::Time now) : frame_time_(now), step_time_(now) {}

  Received on_frame(const internal::v1::WorkerFrame& frame, absl::Time now);
  // The leader's Hello was accepted: submits may follow.
  void greet(absl::Time now);
  bool greeted() const { return greeted_; }

  // Gives the submits handles from `first_handle` on. False, and nothing is changed, where the
  // leader drains, has not said Hello or lacks credit for all.
  bool submit(const std::shared_ptr<SequenceSink>& sink, uint64_t first_handle,
              std::vector<internal::v1::Submit>& submits, absl::Time now);
  // Empty, and false, where the handle is not (or no longer) known.
  std::optional<Route> take(uint64_t handle);
  bool set_paused(uint64_t handle, bool paused, absl::Time now);
  // All that is left here, which then is nothing.
  std::vector<std::pair<uint64_t, Route>> take_all();
  bool empty() const { return routes_.empty(); }

  // Since the last frame.
  absl::Duration silence(absl::Time now) const { return now - frame_time_; }
  // Since the step counter moved, while work of this session could run; else zero.
  absl::Duration standstill(absl::Time now) const;
  // The longest of the newest times between two frames: a leader that lives lets no more pass than
  // a layer of its step takes.
  absl::Duration long_gap() const { return long_gap_; }
  const internal::v1::Load& load() const { return load_; }
  absl::Time step_time() const { return step_time_; }
  // Submits that the load does not count yet.
  uint32_t num_in_flight() const;

 private:
  Route* find(uint64_t handle);
  std::vector<Delivery> sort_step(const internal::v1::Step& step);
  void note_load(const internal::v1::Load& load, absl::Time now);
  bool has_work() const;

  bool greeted_ = false;
  internal::v1::Load load_;
  uint64_t num_submitted_ = 0;
  std::unordered_map<uint64_t, Route> routes_;
  absl::Time frame_time_;
  absl::Time step_time_;  // the step counter last moved, or work first came
  absl::Duration long_gap_;
};

}  // namespace lckv
