#include "client/kv_plan.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/check.h"

namespace lckv {

KvPlan plan_kv(const LayerPlan& layers, const KvPlanOptions& options) {
  LCKV_CHECK(options.block_size > 0 && options.length > 0);
  std::vector<int64_t> slot_bytes;
  for (const int32_t layer : layers.cached_layers()) {
    const LayerSpec& spec = layers.layers[layer];
    slot_bytes.push_back(int64_t{2} * spec.kv_heads * spec.head_dim *
                         static_cast<int64_t>(dtype_bytes(options.dtype)));
  }
  const int64_t largest = *std::max_element(slot_bytes.begin(), slot_bytes.end());
  const int64_t block_bytes = largest * options.block_size;

  KvPlan plan{.num_cached_layers = static_cast<int64_t>(slot_bytes.size()),
              .num_blocks = static_cast<int64_t>(options.kv_cache_bytes) / block_bytes};
  double blocks_per_token = 0;
  int64_t blocks_per_sequence = 0;
  for (const int64_t bytes : slot_bytes) {
    const auto slots =
        static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(block_bytes / bytes)));
    plan.bytes_per_token += bytes;
    blocks_per_token += 1.0 / static_cast<double>(slots);
    blocks_per_sequence += (options.length + slots - 1) / slots;
  }
  plan.capacity_tokens =
      static_cast<int64_t>(static_cast<double>(plan.num_blocks) / blocks_per_token);
  plan.batch = plan.num_blocks / blocks_per_sequence;
  return plan;
}

LayerPlan ordinary_layers(const LayerPlan& layers) {
  LayerPlan ordinary = layers;
  ordinary.num_passes = 1;
  for (int32_t layer = 0; layer < ordinary.num_layers(); ++layer) {
    LayerSpec& spec = ordinary.layers[layer];
    spec.source = layer;
    spec.self_excluding = false;
  }
  return ordinary;
}

}  // namespace lckv
