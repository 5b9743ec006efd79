// Start-up in pieces: checkpoint → operations → model → runner, and what a router is told about
// them.
//
// Called by main (and by measurements that leave the network away), each function on one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/collectives.h"
#include "kernels/cuda/cuda_collectives.h"
#include "kernels/ops.h"
#include "lckv/internal/v1/engine.pb.h"
#include "worker/config.h"
#include "worker/engine/model_runner.h"
#include "worker/group/rank_identity.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/checkpoint_files.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/model/offload_plan.h"
#include "worker/model/tensor_shard.h"
#include "worker/model/weight_store.h"
#include "worker/service/submit_check.h"
#include "worker/service/worker_metrics.h"
#include "worker/serving_plan.h"

namespace lckv {

struct LoadedModel {
  TensorShard shard;  // the rank that this is
  ModelConfig config;
  PassPlan passes;  // with the rank's number of KV heads
  ServingPlan plan;
  CheckpointFiles files;
  std::string content;            // fingerprint of the checkpoint
  std::string numerics;           // formats, kernels and modes, as text
  std::string fingerprint;        // of the two above: equal ones give equal tokens
  OffloadPlan offload;            // of this rank's layers
  uint64_t weight_bytes = 0;      // on this rank's device
  uint64_t replicated_bytes = 0;  // of the checkpoint's tensors, what every rank holds
  absl::Duration load_time;
  std::unique_ptr<WeightStore> weights;  // between open_weights() and load_weights()
  std::unique_ptr<Ops> ops;              // outlives the model, as the next
  std::unique_ptr<Collectives> ranks;    // the replica's
  std::unique_ptr<Model> model;
};

// The part of the model that this process is to hold.
TensorShard shard_of(const WorkerConfig& config);

// Config and plan; no weights yet. Errors: what is broken, in one line that names the file and the
// key, or the flags that are in each other's way.
absl::StatusOr<LoadedModel> read_model(const WorkerConfig& config, TensorShard shard = {});

// Plans what read_model() has read, anew where flags have changed. Errors as above.
absl::Status update_plan(const WorkerConfig& config, LoadedModel& loaded);

// What of a rank's device memory is known before it is loaded: weights, as if none were replicated,
// with the slots of those that are offloaded, and, if they were asked for, blocks and staging.
uint64_t known_device_bytes(const WorkerConfig& config, const LoadedModel& loaded);

// What runs the model, kept in `loaded`. Errors: why the device cannot, in one line.
absl::Status open_device(const WorkerConfig& config, LoadedModel& loaded);

// The collectives of an open CUDA device; connect_ranks() asks for them.
absl::StatusOr<std::unique_ptr<Collectives>> connect_gpus(const CudaCollectivesOptions& options,
                                                          Ops& ops);

// Maps the weights for the open device and takes the fingerprints; reads no more than these need.
// Errors: one line that names the file and the tensor.
absl::Status open_weights(const WorkerConfig& config, LoadedModel& loaded);

// What the ranks of a replica compare; after open_weights().
RankIdentity make_identity(const WorkerConfig& config, const LoadedModel& loaded);

// Reads the rank's slices of the weights and packs them; `loaded` keeps `ranks`, the collectives of
// its shard. Errors: one line that names the file and the tensor.
absl::Status load_weights(const WorkerConfig& config, std::unique_ptr<Collectives> ranks,
                          LoadedModel& loaded);

// Allocates all memory of steps. Takes ops, ranks and model out of `loaded`.
absl::StatusOr<std::unique_ptr<ModelRunner>> make_runner(LoadedModel& loaded);

internal::v1::Hello make_hello(const LoadedModel& loaded);
SubmitLimits make_limits(const WorkerConfig& config, const LoadedModel& loaded);
KvGeometry metrics_geometry(const WorkerConfig& config, const LoadedModel& loaded);
// Weights, bytes per token, blocks, capacity: what an operator sizes by.
void log_geometry(const WorkerConfig& config, const LoadedModel& loaded);

}  // namespace lckv
