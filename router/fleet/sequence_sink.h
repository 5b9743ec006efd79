// Where a session link delivers what a replica says about one sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "lckv/internal/v1/engine.pb.h"

namespace lckv {

// One placement of a choice at a replica. A choice that moves gets the next number, so that what a
// replica it has left still says is told apart.
struct ChoiceAttempt {
  uint32_t choice = 0;
  uint32_t attempt = 0;  // from 1 on
};

// Why a sequence is no longer at its replica.
enum class LossKind : uint8_t {
  kDied,     // the session broke, or fell silent
  kMoved,    // the replica drains: asked to leave, or told so before the session ended
  kStopped,  // this router ends
};

// All that one frame says about one sequence, in this order. Points into the frame.
struct SequenceUpdate {
  const internal::v1::Started* started = nullptr;
  std::vector<const internal::v1::PromptLogprobs*> prompt_logprobs;
  std::vector<uint32_t> tokens;
  std::vector<const internal::v1::Logprobs*> logprobs;  // empty, or as many as tokens
  const internal::v1::Finished* finished = nullptr;
};

// Implemented by calls. Called on gRPC's threads and the router's pulse, never while the link's
// lock is held. Of one attempt, on_seated and on_update come in order; on_refused, on_lost or an
// update with `finished` is the last, except that an update which was being delivered when the
// link gave its session up may come after on_lost.
class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  // It takes part in the step that the replica runs next.
  virtual void on_seated(ChoiceAttempt attempt) = 0;
  virtual void on_update(ChoiceAttempt attempt, const SequenceUpdate& update) = 0;
  virtual void on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused) = 0;
  virtual void on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why) = 0;
};

}  // namespace lckv
