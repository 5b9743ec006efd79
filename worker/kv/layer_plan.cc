#include "worker/kv/layer_plan.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace lckv {
namespace {

constexpr int32_t kMaxPasses = 1024;

absl::Status bad_entry(size_t index, absl::string_view entry, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(
      "layer_types: entry ", index, " \"", absl::CHexEscape(entry.substr(0, 32)), "\" ", why));
}

// The entries, as many as there are layers.
absl::StatusOr<std::vector<absl::string_view>> split_entries(absl::string_view text,
                                                             const LayerMapOptions& options) {
  std::vector<absl::string_view> entries = absl::StrSplit(text, '_');
  if (static_cast<int64_t>(entries.size()) != options.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer_types: ", entries.size(), " entries for num_hidden_layers ", options.num_layers));
  }
  return entries;
}

// Digits only: no sign, no space.
bool parse_index(absl::string_view text, int32_t& value) {
  const bool digits =
      !text.empty() && text.size() <= 9 &&
      std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digits && absl::SimpleAtoi(text, &value);
}

absl::StatusOr<LayerPlan> make_plan(const std::vector<int32_t>& sources,
                                    const std::vector<bool>& windowed,
                                    const LayerMapOptions& options) {
  if (options.num_passes < 1 || options.num_passes > kMaxPasses) {
    return absl::InvalidArgumentError(
        absl::StrCat("forward_passes + backward_passes: ", options.num_passes,
                     " is not within 1 to ", kMaxPasses));
  }
  LayerPlan plan;
  for (int32_t layer = 0; layer < options.num_layers; ++layer) {
    const bool window = options.window_everywhere || windowed[layer];
    if (window && options.sliding_window < 1) {
      return absl::InvalidArgumentError("sliding_window: must be at least 1 for a sliding layer");
    }
    plan.layers.push_back({.source = sources[layer],
                           .window = window ? options.sliding_window : 0,
                           .self_excluding = options.force_nodiag || sources[layer] > layer,
                           .kv_heads = options.kv_heads,
                           .head_dim = options.head_dim});
  }
  plan.num_passes = plan.has_cycles() ? options.num_passes : 1;
  return plan;
}

// Codes of one digit, 0 to 2.
absl::StatusOr<std::vector<int32_t>> parse_codes(absl::string_view layer_types,
                                                 const LayerMapOptions& options) {
  auto entries = split_entries(layer_types, options);
  if (!entries.ok()) return entries.status();
  std::vector<int32_t> codes;
  for (size_t i = 0; i < entries->size(); ++i) {
    int32_t code = 0;
    if (!parse_index((*entries)[i], code) || code > 2) {
      return bad_entry(i, (*entries)[i], "is not one of 0, 1, 2");
    }
    codes.push_back(code);
  }
  return codes;
}

}  // namespace

bool LayerPlan::has_cycles() const {
  for (int32_t layer = 0; layer < num_layers(); ++layer) {
    if (is_cyclic(layer)) return true;
  }
  return false;
}

bool LayerPlan::is_cached(int32_t layer) const {
  return std::any_of(layers.begin(), layers.end(),
                     [layer](const LayerSpec& spec) { return spec.source == layer; });
}

std::vector<int32_t> LayerPlan::cached_layers() const {
  std::vector<int32_t> cached;
  for (const LayerSpec& spec : layers) cached.push_back(spec.source);
  std::sort(cached.begin(), cached.end());
  cached.erase(std::unique(cached.begin(), cached.end()), cached.end());
  return cached;
}

absl::StatusOr<LayerPlan> parse_layer_map(absl::string_view layer_types,
                                          const LayerMapOptions& options) {
  std::vector<int32_t> sources(options.num_layers);
  std::vector<bool> windowed(options.num_layers);
  for (int32_t layer = 0; layer < options.num_layers; ++layer) sources[layer] = layer;
  if (!layer_types.empty()) {
    auto entries = split_entries(layer_types, options);
    if (!entries.ok()) return entries.status();
    for (size_t i = 0; i < entries->size(); ++i) {
      absl::string_view entry = (*entries)[i];
      windowed[i] = absl::ConsumeSuffix(&entry, "s");
      if (!parse_index(entry, sources[i])) {
        return bad_entry(i, (*entries)[i], "is not a layer index, with `s` for a sliding window");
      }
      if (sources[i] >= options.num_layers) {
        return bad_entry(i, (*entries)[i],
                         absl::StrCat("names an absent layer: there are ", options.num_layers));
      }
    }
  }
  return make_plan(sources, windowed, options);
}

absl::StatusOr<LayerPlan> parse_target_codes(absl::string_view layer_types, int32_t target_layer,
                                             const LayerMapOptions& options) {
  std::vector<int32_t> sources(options.num_layers);
  for (int32_t layer = 0; layer < options.num_layers; ++layer) sources[layer] = layer;
  LayerMapOptions nodiag = options;
  nodiag.force_nodiag = true;
  if (!layer_types.empty()) {
    auto codes = parse_codes(layer_types, options);
    if (!codes.ok()) return codes.status();
    const auto targets = std::count(codes->begin(), codes->end(), 2);
    const auto readers = std::count(codes->begin(), codes->end(), 1);
    if (targets > 1 || (targets == 0 && readers > 0)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layer_types: ", targets, " targets (code 2); layers of code 1 need exactly one"));
    }
    if (target_layer < -options.num_layers || target_layer >= options.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat(
          "target_layer: ", target_layer, " is absent: there are ", options.num_layers, " layers"));
    }
    const int32_t target = (target_layer + options.num_layers) % options.num_layers;
    if (targets == 1 && (*codes)[target] != 2) {
      return absl::InvalidArgumentError(absl::StrCat("target_layer: layer ", target, " has code ",
                                                     (*codes)[target],
                                                     " in layer_types; the target has code 2"));
    }
    for (int32_t layer = 0; layer < options.num_layers; ++layer) {
      if ((*codes)[layer] != 0) sources[layer] = target;
    }
  }
  return make_plan(sources, std::vector<bool>(options.num_layers), nodiag);
}

absl::StatusOr<LayerPlan> parse_cla_codes(absl::string_view layer_types,
                                          const LayerMapOptions& options) {
  std::vector<int32_t> sources(options.num_layers);
  for (int32_t layer = 0; layer < options.num_layers; ++layer) sources[layer] = layer;
  if (!layer_types.empty()) {
    auto codes = parse_codes(layer_types, options);
    if (!codes.ok()) return codes.status();
    for (int32_t layer = 0; layer < options.num_layers; ++layer) {
      if ((*codes)[layer] != 1) continue;
      if (layer == 0) return bad_entry(0, "1", "has no lower layer to read");
      sources[layer] = (*codes)[layer - 1] == 1 ? sources[layer - 1] : layer - 1;
    }
  }
  return make_plan(sources, std::vector<bool>(options.num_layers), options);
}

}  // namespace lckv
