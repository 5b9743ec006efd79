#include "worker/sim/step_cost.h"

#include <algorithm>

namespace lckv {
namespace {

// How far back a row at `position` looks.
double context_of(int64_t position, int32_t window, int32_t num_sinks) {
  const int64_t seen = position + 1;
  return static_cast<double>(window > 0 ? std::min<int64_t>(seen, window + num_sinks) : seen);
}

}  // namespace

StepCost::StepCost(const DeviceProfile& device, const ModelConfig& model, const PassPlan& passes,
                   const StepCostOptions& options)
    : device_(device),
      options_(options),
      bytes_per_number_(static_cast<double>(dtype_bytes(options.dtype))),
      hidden_size_(model.hidden_size),
      head_parameters_(static_cast<double>(model.vocabulary_size) * model.hidden_size /
                       options.num_ranks),
      logit_bytes_(static_cast<double>(model.vocabulary_size) * sizeof(float)) {
  for (int32_t group = 0; group <= passes.num_groups(); ++group) {
    ranges_.push_back(layers_of(model, passes.layers, passes.ordinary[group]));
    if (group == passes.num_groups()) break;
    ranges_.push_back(layers_of(model, passes.layers, passes.groups[group].layers));
  }
  double parameters = head_parameters_ * (model.tie_word_embeddings ? 1 : 2);
  for (const std::vector<Layers>& range : ranges_) {
    for (const Layers& layers : range) parameters += layers.num_layers * layers.parameters;
  }
  weight_bytes_ = parameters * bytes_per_number_;
}

std::vector<StepCost::Layers> StepCost::layers_of(const ModelConfig& model, const LayerPlan& plan,
                                                  LayerRange range) const {
  const double heads = static_cast<double>(model.num_heads) / options_.num_ranks;
  const double inner = static_cast<double>(model.intermediate_size) / options_.num_ranks;
  std::vector<Layers> found;
  for (int32_t layer = range.begin; layer < range.end; ++layer) {
    const LayerSpec& spec = plan.layers[layer];
    const double kv_width = plan.is_cached(layer) ? 2.0 * spec.kv_heads * spec.head_dim : 0;
    const Layers cost{
        .num_layers = 1,
        .parameters = hidden_size_ * (2 * heads * spec.head_dim + kv_width + 3 * inner),
        .window = spec.window,
        .num_sinks = spec.num_sinks,
        .kv_bytes_per_token = 2.0 * spec.kv_heads * spec.head_dim * bytes_per_number_,
        .flops_per_row_and_token = 4 * heads * spec.head_dim};
    const auto same = std::find_if(found.begin(), found.end(), [&cost](const Layers& other) {
      return other.parameters == cost.parameters && other.window == cost.window &&
             other.num_sinks == cost.num_sinks;
    });
    if (same == found.end()) {
      found.push_back(cost);
    } else {
      ++same->num_layers;
    }
  }
  return found;
}

double StepCost::seconds(double bytes, double flops) const {
  // Tensor cores are as fast in float16 as in bfloat16.
  const double peak = options_.dtype == DType::kFloat32 ? device_.float32_flops_per_second
                                                        : device_.bfloat16_flops_per_second;
  return std::max(bytes / (device_.memory_bytes_per_second * device_.memory_share),
                  flops / (peak * device_.flops_share));
}

// A ring's traffic, all at once.
absl::Duration StepCost::collective(double bytes) const {
  if (options_.num_ranks == 1) return absl::ZeroDuration();
  const double share = 2.0 * (options_.num_ranks - 1) / options_.num_ranks;
  return device_.peer_latency + absl::Seconds(bytes * share / device_.peer_bytes_per_second);
}

absl::Duration StepCost::time_of(const Layers& layers, const std::vector<Rows>& rows) const {
  double num_rows = 0;
  double tokens_read = 0;  // once per sequence
  double pairs = 0;        // of a row and a token that it sees
  for (const Rows& sequence : rows) {
    const int64_t last = sequence.first_position + sequence.count - 1;
    const double first = context_of(sequence.first_position, layers.window, layers.num_sinks);
    const double longest = context_of(last, layers.window, layers.num_sinks);
    const auto count = static_cast<double>(sequence.count);
    num_rows += count;
    // A window moves with the rows.
    tokens_read += std::min(static_cast<double>(last + 1), first + count);
    pairs += count * (first + longest) / 2;
  }
  const double hidden_bytes = num_rows * hidden_size_ * bytes_per_number_;
  // The residual stream comes and goes with attention and with the MLP.
  const double bytes = layers.parameters * bytes_per_number_ +
                       tokens_read * layers.kv_bytes_per_token + 4 * hidden_bytes;
  const double flops = 2 * layers.parameters * num_rows + pairs * layers.flops_per_row_and_token;
  const absl::Duration one =
      absl::Seconds(seconds(bytes, flops)) + device_.layer_overhead + 2 * collective(hidden_bytes);
  return one * layers.num_layers;
}

absl::Duration StepCost::time_of(const std::vector<Layers>& range,
                                 const std::vector<Rows>& rows) const {
  absl::Duration total;
  if (rows.empty()) return total;
  for (const Layers& layers : range) total += time_of(layers, rows);
  return total;
}

void StepCost::add(const StepPlan& plan, StepTimes& times) const {
  const auto num_copies = static_cast<double>(plan.to_host.size() + plan.to_device.size());
  times.copies += absl::Seconds(num_copies * static_cast<double>(options_.block_bytes) /
                                device_.host_bytes_per_second);
  std::vector<Rows> rows;
  for (size_t index = 0; index < plan.ordinary.size(); ++index) {
    rows.clear();
    for (const OrdinarySegment& segment : plan.ordinary[index].segments) {
      rows.push_back({segment.first_position, segment.num_rows});
    }
    times.ordinary += time_of(ranges_[2 * index], rows);
    if (index == plan.groups.size()) break;
    rows.clear();
    for (const WalkSegment& segment : plan.groups[index].segments) {
      rows.push_back({segment.first_position, segment.num_rows});
    }
    times.walks += time_of(ranges_[2 * index + 1], rows);
  }
  if (!plan.samples.empty()) {
    const auto num_samples = static_cast<double>(plan.samples.size());
    times.logits += absl::Seconds(seconds(head_parameters_ * bytes_per_number_,
                                          2 * head_parameters_ * num_samples)) +
                    collective(num_samples * logit_bytes_);
  }
  times.sample += device_.step_overhead;
}

}  // namespace lckv
