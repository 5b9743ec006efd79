// LayerPlan: which layer reads whose keys and values, and how. Pure data from the checkpoint's
// config.
//
// The notations are those of the official LCKV code: `layer_types` as "0_6_6s_7" (entry l is the
// layer whose KV layer l reads, "s" marks a sliding window), and the older 0/1/2 codes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/kv/ids.h"

namespace lckv {

struct LayerSpec {
  int32_t source = 0;           // the layer whose KV this one reads
  int32_t window = 0;           // sees j > t - window; 0: everything
  int32_t num_sinks = 0;        // positions below are seen whatever the window
  bool self_excluding = false;  // sees j < t only
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

struct LayerPlan {
  std::vector<LayerSpec> layers;
  int32_t num_passes = 1;  // of an iterated prefill, as the checkpoint was trained

  int32_t num_layers() const { return static_cast<int32_t>(layers.size()); }
  bool is_cyclic(int32_t layer) const { return layers[layer].source > layer; }
  bool has_cycles() const;
  // Layers that some layer reads, ascending; unit u is entry u.
  std::vector<int32_t> cached_layers() const;
  bool is_cached(int32_t layer) const;
};

// What the notations leave open.
struct LayerMapOptions {
  int32_t num_layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t sliding_window = 0;      // of entries marked `s`
  bool window_everywhere = false;  // Mistral: every layer has the window
  bool force_nodiag = false;
  int32_t num_passes = 1;
};

// Errors of all three: InvalidArgument naming `layer_types`, the entry and what would be right.

// "0_6_6s_7"; empty: every layer reads itself.
absl::StatusOr<LayerPlan> parse_layer_map(absl::string_view layer_types,
                                          const LayerMapOptions& options);
// The first release's codes: 0 own KV, 1 reads the target's, 2 is the target (exactly one where a 1
// occurs). No layer sees its own position.
absl::StatusOr<LayerPlan> parse_target_codes(absl::string_view layer_types, int32_t target_layer,
                                             const LayerMapOptions& options);
// CLA codes: 0 and 2 own KV, 1 reads the nearest lower layer that owns some.
absl::StatusOr<LayerPlan> parse_cla_codes(absl::string_view layer_types,
                                          const LayerMapOptions& options);

}  // namespace lckv
