// StepFrames: what one turn of the engine means to one session, as frames of bounded size.
//
// Built and emptied within one report, on the engine's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lckv/internal/v1/engine.pb.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {

class StepFrames {
 public:
  explicit StepFrames(uint64_t step) : step_(step) {}

  void seated(uint64_t handle);
  // `scored`: logprobs of the prompt were asked for; its first token has none.
  void started(uint64_t handle, const SequenceEvent& event, absl::Duration queued, bool scored);
  void token(uint64_t handle, const SequenceEvent& event);
  void prompt_logprob(uint64_t handle, const SequenceEvent& event);
  void finished(uint64_t handle, const SequenceEvent& event);
  void refused(uint64_t handle, const absl::Status& status);

  // In order. One frame holds the whole step unless its logprobs are large.
  std::vector<internal::v1::WorkerFrame> take();

 private:
  // The step to add about `bytes` to: the newest one, or another where that one is full.
  internal::v1::Step& step_for(size_t bytes);

  const uint64_t step_;
  std::optional<internal::v1::WorkerFrame> seats_;
  size_t bytes_ = 0;  // of the newest step, about
  std::vector<internal::v1::WorkerFrame> refusals_;
  std::vector<internal::v1::WorkerFrame> steps_;
};

}  // namespace lckv
