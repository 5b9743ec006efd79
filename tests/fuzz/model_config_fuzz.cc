// A config.json, and behind the first zero byte a generation_config.json. What is accepted must be
// usable: its tensors can be listed and its layers cut into ranges.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "kernels/check.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  const absl::string_view generation =
      cut == absl::string_view::npos ? absl::string_view() : text.substr(cut + 1);
  const auto config = lckv::parse_model_config(text.substr(0, cut), generation);
  if (!config.ok()) {
    LCKV_CHECK(!absl::string_view(config.status().message()).empty());
    LCKV_CHECK(config.status().message().find('\n') == absl::string_view::npos);
    return 0;
  }
  LCKV_CHECK(config->layers.num_layers() == config->num_layers);
  LCKV_CHECK(lckv::num_parameters(*config) > 0);
  LCKV_CHECK(lckv::kv_bytes_per_token(config->layers, lckv::DType::kBFloat16) > 0);
  const lckv::PassPlan plan = lckv::make_pass_plan(config->layers);
  LCKV_CHECK(plan.num_units() > 0);
  return 0;
}
