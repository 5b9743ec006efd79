// LocalRunner: a model, or one rank's shard of it, and its runner in this process, on probed
// memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/collectives.h"
#include "kernels/dtype.h"
#include "tests/support/probed_ops.h"
#include "worker/engine/geometry.h"
#include "worker/engine/model_runner.h"
#include "worker/model/model_config.h"

namespace lckv {

struct LocalOptions {
  std::string model = "tests/golden/cases/llama";  // folder of a checkpoint
  bool dummy = false;                              // weights from its config alone
  DType dtype = DType::kFloat32;
  // What runs the model, of these options; null: the CPU's backend.
  std::function<std::unique_ptr<Ops>(const LocalOptions&)> open_ops;
  int32_t threads = 1;
  bool reproducible = true;
  uint64_t offload_bytes = 0;  // of device memory to be freed by weights in host memory
  int32_t block_size = 16;
  int32_t num_blocks = 512;
  int32_t num_host_blocks = 0;
  int32_t max_context = 512;
  int32_t max_num_seqs = 8;
  int32_t max_batched_rows = 256;
  int32_t staging_rows = 1024;
  uint8_t fill = 0xff;  // memory's bytes before they are written

  // Of the scheduler only.
  bool fixed_windows = true;  // where reproducible: exact prefill walks chunks of `lookahead`
  bool official_decode = false;
  int64_t max_row_layers = 1 << 20;
  int32_t lookahead = 16;  // 0: by cost
  float tolerance = 0.0F;
  int32_t max_uncommitted_plans = 1;
  bool prefix_caching = false;
  // Blocks are filled with garbage when they are given back or, where others may yet take them,
  // before they are written anew.
  bool poison = true;
};

struct LocalRunner {
  ModelConfig config;
  uint64_t checkpoint_bytes = 0;  // of the weights that this rank reads
  uint64_t replicated_bytes = 0;  // of them, what every rank reads
  uint64_t weight_bytes = 0;      // as packed for the device
  PassPlan passes;
  MemoryGeometry geometry;
  ProbedOps* ops = nullptr;  // the runner's
  std::unique_ptr<ModelRunner> runner;
};

// The rank that `ranks` is; null: alone.
absl::StatusOr<LocalRunner> open_local_runner(const LocalOptions& options,
                                              std::unique_ptr<Collectives> ranks = nullptr);

// A row of keys or of values.
std::vector<float> read_slot(const LocalRunner& local, UnitId unit, int32_t block, int32_t slot,
                             bool values);

}  // namespace lckv
