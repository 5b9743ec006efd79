// A layer map in each notation. The first byte chooses the notation, the next three the options.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "kernels/check.h"
#include "worker/kv/layer_plan.h"
#include "worker/kv/pass_plan.h"

namespace {

absl::StatusOr<lckv::LayerPlan> parse(uint8_t notation, int8_t target, absl::string_view text,
                                      const lckv::LayerMapOptions& options) {
  switch (notation % 3) {
    case 0:
      return lckv::parse_layer_map(text, options);
    case 1:
      return lckv::parse_target_codes(text, target, options);
    default:
      return lckv::parse_cla_codes(text, options);
  }
}

void check_ranges(const lckv::PassPlan& plan) {
  int32_t next = 0;
  for (int32_t range = 0; range <= 2 * plan.num_groups(); ++range) {
    const lckv::LayerRange cut =
        range % 2 == 0 ? plan.ordinary[range / 2] : plan.groups[range / 2].layers;
    LCKV_CHECK(cut.begin == next && cut.end >= cut.begin);
    next = cut.end;
  }
  LCKV_CHECK(next == plan.layers.num_layers());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kOptions = 4;
  if (size < kOptions) return 0;
  const absl::string_view text(reinterpret_cast<const char*>(data) + kOptions, size - kOptions);
  const lckv::LayerMapOptions options{.num_layers = 1 + data[1] % 64,
                                      .kv_heads = 1,
                                      .head_dim = 16,
                                      .sliding_window = data[2] % 8,
                                      .window_everywhere = (data[0] & 0x40) != 0,
                                      .force_nodiag = (data[0] & 0x80) != 0,
                                      .num_passes = data[2]};
  auto plan = parse(data[0] & 0x3f, static_cast<int8_t>(data[3]), text, options);
  if (!plan.ok()) {
    LCKV_CHECK(plan.status().message().find('\n') == absl::string_view::npos);
    return 0;
  }
  for (const int32_t layer : plan->cached_layers()) LCKV_CHECK(plan->is_cached(layer));
  check_ranges(lckv::make_pass_plan(*std::move(plan)));
  return 0;
}
