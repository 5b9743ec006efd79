// How much KV memory a device of its own memory has room for: what --gpu-memory-utilization leaves
// beside the weights and the fullest step, which is run to see.
#pragma once

#include "absl/status/status.h"
#include "worker/config.h"
#include "worker/startup.h"

namespace lckv {

// After load_weights() and before make_runner(), on every rank at the same time: where the flags
// leave the size of the KV memory open, sets it in `config` to what every rank has room for, and
// plans again. Nothing to do for devices whose memory is the host's.
//
// Errors: ResourceExhausted naming --gpu-memory-utilization where nothing is left; what a step
// says.
absl::Status fit_memory(WorkerConfig& config, LoadedModel& loaded);

}  // namespace lckv
