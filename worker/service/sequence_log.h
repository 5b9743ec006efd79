// The line that a leader logs of each sequence that leaves it, however it ends.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "rpc/logging.h"
#include "worker/scheduler/scheduler.h"
#include "worker/service/worker_metrics.h"

namespace lckv {

struct SequenceEnd {
  const SequenceSpec& spec;
  const SequenceTimes& times;
  absl::string_view reason;  // name_of(), "cancelled", "session_ended" or "refused"
  absl::Time now;
  int32_t num_prefill_walks = 0;
  int32_t num_preemptions = 0;
};

absl::string_view name_of(FinishReason reason);
LogFields describe(const SequenceEnd& end);

}  // namespace lckv
