// Where a session link delivers what a replica says about one sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "lckv/internal/v1/engine.pb.h"

namespace lckv {

// All that one frame says about one sequence, in this order. Points into the frame.
struct SequenceUpdate {
  const internal::v1::Started* started = nullptr;
  std::vector<const internal::v1::PromptLogprobs*> prompt_logprobs;
  std::vector<uint32_t> tokens;
  std::vector<const internal::v1::Logprobs*> logprobs;  // empty, or as many as tokens
  const internal::v1::Finished* finished = nullptr;
};

// Implemented by calls. Called on gRPC's threads, for one sequence by one thread at a time, never
// while the link's lock is held. After on_refused, on_lost or an update with `finished` nothing
// follows for that choice.
class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  virtual void on_update(uint32_t choice, const SequenceUpdate& update) = 0;
  virtual void on_refused(uint32_t choice, const internal::v1::Refused& refused) = 0;
  virtual void on_lost(uint32_t choice, const absl::Status& why) = 0;
};

}  // namespace lckv
