// LlamaWeights: a Llama's matrices and vectors, or one rank's slices of them, packed for a device.
// Private to worker/model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model_config.h"
#include "worker/model/offload_plan.h"
#include "worker/model/offloaded_layers.h"
#include "worker/model/weight_store.h"

namespace lckv {

struct LlamaLayer {
  std::unique_ptr<DeviceBuffer> attention_norm;
  std::unique_ptr<PackedWeight> q;
  std::unique_ptr<PackedWeight> kv;  // [k; v], apart from q: a warm guess needs them alone; or null
  std::unique_ptr<PackedWeight> o;
  std::unique_ptr<DeviceBuffer> q_bias;  // null where there is none, as the next two
  std::unique_ptr<DeviceBuffer> kv_bias;
  std::unique_ptr<DeviceBuffer> o_bias;
  std::unique_ptr<DeviceBuffer> mlp_norm;
  std::unique_ptr<PackedWeight> gate_up;
  std::unique_ptr<PackedWeight> down;
};

struct LlamaWeights {
  std::unique_ptr<WeightStore> store;  // the embedding may be read where it lies
  std::vector<LlamaLayer> layers;
  std::unique_ptr<DeviceBuffer> final_norm;
  std::unique_ptr<PackedWeight> head;  // as many rows on every rank, those beyond the vocabulary 0
  std::unique_ptr<EmbeddingTable> embedding;  // the rank's ids
  std::vector<OffloadedLayer> offloaded;      // what of `layers` is in host memory
  size_t bytes = 0;                           // on the device, without slots
};

struct PackOptions {
  Ops& ops;
  const OffloadPlan& offload;
  std::function<void(uint64_t done_bytes)> progress;  // may be empty
};

// Whether the layer's K and V projections are asked for where it does not run: a walk's first guess
// is theirs (Model::guess). They stay on the device.
bool is_guessed(const PassPlan& passes, int32_t layer);

// What the store's shard holds. Mapped tensors leave memory as they are packed.
LlamaWeights pack_llama(const ModelConfig& config, const PassPlan& passes,
                        std::unique_ptr<WeightStore> store, const PackOptions& options);

}  // namespace lckv
