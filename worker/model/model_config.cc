#include "worker/model/model_config.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/model/model_config_json.h"

namespace lckv {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxVocabulary = 1 << 22;
constexpr int64_t kMaxHidden = 1 << 17;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxPositions = 1 << 24;
constexpr int64_t kMaxPasses = 1024;
constexpr int64_t kDefaultWindow = 4096;

// How a family writes its layer map.
enum class MapNotation : uint8_t {
  kNone,         // every layer reads itself
  kSources,      // "0_6_6s_7"
  kTargetCodes,  // 0/1/2 around one target
  kClaCodes,     // 0/1/2, downward
  kGroups,       // as kSources, and no layer sees its own position
};

struct Family {
  absl::string_view architecture;
  absl::string_view model_type;
  MapNotation notation = MapNotation::kNone;
  bool window_everywhere = false;
  int64_t default_positions = 2048;
  std::optional<int64_t> default_kv_heads;  // none: num_attention_heads
};

// The first release named its classes like the ones they were derived from: `model_type` tells.
constexpr Family kFamilies[] = {
    {.architecture = "LlamaForCausalLM", .model_type = "llama"},
    {.architecture = "LCKVLlamaForCausalLM",
     .model_type = "lckv-llama",
     .notation = MapNotation::kSources},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .window_everywhere = true,
     .default_positions = 131072,
     .default_kv_heads = 8},
    {.architecture = "LlamaForCausalLM",
     .model_type = "opt-llama",
     .notation = MapNotation::kTargetCodes},
    {.architecture = "LlamaForCausalLM",
     .model_type = "group-opt-llama",
     .notation = MapNotation::kGroups},
    {.architecture = "LlamaForCausalLM",
     .model_type = "cla-llama",
     .notation = MapNotation::kClaCodes},
};

// Each value once, in the table's order.
std::string listed(absl::string_view Family::*name) {
  std::vector<absl::string_view> seen;
  std::string list;
  for (const Family& family : kFamilies) {
    bool known = false;
    for (const absl::string_view value : seen) known = known || value == family.*name;
    if (known) continue;
    seen.push_back(family.*name);
    absl::StrAppend(&list, list.empty() ? "" : ", ", family.*name);
  }
  return list;
}

// The family, or null and a failed `fields`.
const Family* find_family(JsonFields& fields) {
  const std::string model_type = fields.text("model_type", "");
  std::string architecture;
  if (const nlohmann::json* names = fields.find("architectures"); names != nullptr) {
    if (!names->is_array() || names->size() != 1 || !(*names)[0].is_string()) {
      fields.fail("architectures", "must be a list of one name");
      return nullptr;
    }
    architecture = (*names)[0].get<std::string>();
  }
  bool architecture_known = architecture.empty();
  for (const Family& family : kFamilies) {
    if (!architecture.empty() && family.architecture != architecture) continue;
    architecture_known = true;
    if (family.model_type == model_type) return &family;
  }
  if (!architecture_known) {
    fields.fail("architectures", absl::StrCat(quote(architecture), " is not supported; supported: ",
                                              listed(&Family::architecture)));
  } else {
    fields.fail("model_type",
                absl::StrCat(quote(model_type), " is not supported",
                             architecture.empty() ? "" : absl::StrCat(" for ", architecture),
                             "; supported: ", listed(&Family::model_type)));
  }
  return nullptr;
}

void read_shapes(JsonFields& fields, const Family& family, ModelConfig& config) {
  const auto integer = [&fields](absl::string_view key, int64_t max,
                                 std::optional<int64_t> fallback = std::nullopt) {
    return static_cast<int32_t>(
        fields.integer({.key = key, .min = 1, .max = max, .fallback = fallback}));
  };
  config.vocabulary_size = integer("vocab_size", kMaxVocabulary);
  config.hidden_size = integer("hidden_size", kMaxHidden);
  config.intermediate_size = integer("intermediate_size", kMaxIntermediate);
  config.num_layers = integer("num_hidden_layers", kMaxLayers);
  config.num_heads = integer("num_attention_heads", kMaxHeads);
  config.num_kv_heads =
      integer("num_key_value_heads", kMaxHeads, family.default_kv_heads.value_or(config.num_heads));
  config.max_position_embeddings =
      integer("max_position_embeddings", kMaxPositions, family.default_positions);
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.fail("num_key_value_heads",
                absl::StrCat(config.num_kv_heads, " does not divide num_attention_heads ",
                             config.num_heads));
  }
  if (fields.find("head_dim") == nullptr && config.hidden_size % config.num_heads != 0) {
    fields.fail("num_attention_heads",
                absl::StrCat(config.num_heads, " does not divide hidden_size ", config.hidden_size,
                             " and there is no head_dim"));
  }
  config.head_dim = integer("head_dim", 256, config.hidden_size / config.num_heads);
  if (config.head_dim % 16 != 0 || config.head_dim < 16 || config.head_dim > 256) {
    fields.fail("head_dim",
                absl::StrCat(config.head_dim, " is not a multiple of 16 within 16 to 256"));
  }
}

void refuse_unsupported(JsonFields& fields) {
  if (const std::string act = fields.text("hidden_act", "silu"); act != "silu") {
    fields.fail("hidden_act", absl::StrCat(quote(act), " is not supported; supported: silu"));
  }
  if (fields.boolean("mlp_bias", false)) fields.fail("mlp_bias", "true is not supported");
  if (fields.find("quantization_config") != nullptr) {
    fields.fail("quantization_config", "quantized checkpoints are not supported");
  }
}

// Hugging Face wrote `rope_scaling` with `type`, then with `rope_type`, then `rope_parameters` with
// theta.
RopeOptions read_rope(JsonFields& fields, int32_t head_dim) {
  constexpr double kMaxTheta = 1e12;
  RopeOptions rope{.head_dim = head_dim};
  const auto theta = [](JsonFields& from, double fallback) {
    return from.number({.key = "rope_theta",
                        .min = 0,
                        .max = kMaxTheta,
                        .min_allowed = false,
                        .fallback = fallback});
  };
  rope.theta = theta(fields, rope.theta);
  const absl::string_view key =
      fields.find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
  const nlohmann::json* value = fields.find(key);
  if (value == nullptr) return rope;
  if (!value->is_object()) {
    fields.fail(key, "must be an object");
    return rope;
  }
  JsonFields scaling = fields.within(key, *value);
  rope.theta = theta(scaling, rope.theta);
  const std::string type = scaling.text("rope_type", scaling.text("type", "default"));
  const auto positive = [&scaling](absl::string_view name) {
    return scaling.number({.key = name, .min = 0, .max = 1e6, .min_allowed = false});
  };
  if (type == "linear" || type == "llama3") {
    rope.factor = positive("factor");
    rope.scaling = RopeOptions::Scaling::kLinear;
  } else if (type != "default") {
    scaling.fail(
        "rope_type",
        absl::StrCat(quote(type), " is not supported; supported: default, linear, llama3"));
  }
  if (type == "llama3") {
    rope.scaling = RopeOptions::Scaling::kLlama3;
    rope.low_freq_factor = positive("low_freq_factor");
    rope.high_freq_factor = positive("high_freq_factor");
    rope.original_max_position = scaling.integer(
        {.key = "original_max_position_embeddings", .min = 1, .max = kMaxPositions});
    if (scaling.status().ok() && rope.high_freq_factor <= rope.low_freq_factor) {
      scaling.fail("high_freq_factor", "must be greater than low_freq_factor");
    }
  }
  fields.adopt(scaling);
  return rope;
}

std::optional<DType> read_dtype(JsonFields& fields) {
  const absl::string_view key = fields.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = fields.text(key, "");
  if (name.empty()) return std::nullopt;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fields.fail(
      key, absl::StrCat(quote(name), " is not supported; supported: float32, bfloat16, float16"));
  return std::nullopt;
}

// The first release gave the passes before the last as `num_encoders`.
int32_t read_encoder_passes(JsonFields& fields) {
  return static_cast<int32_t>(fields.integer(
             {.key = "num_encoders", .min = 0, .max = kMaxPasses - 1, .fallback = 8})) +
         1;
}

int32_t read_trained_passes(JsonFields& fields) {
  const int64_t forward =
      fields.integer({.key = "forward_passes", .min = 0, .max = kMaxPasses, .fallback = 7});
  const int64_t backward =
      fields.integer({.key = "backward_passes", .min = 0, .max = kMaxPasses, .fallback = 2});
  return static_cast<int32_t>(forward + backward);
}

absl::StatusOr<LayerPlan> parse_target_map(JsonFields& fields, const LayerMapOptions& options) {
  std::string codes = fields.text("layer_types", "");
  int64_t target =
      fields.integer({.key = "target_layer", .min = INT32_MIN, .max = INT32_MAX, .fallback = -1});
  if (fields.find("num_warmup_layers") != nullptr) {
    // Deprecated there already: warm-up layers at the bottom, the target on top.
    const int64_t warmup = fields.integer(
        {.key = "num_warmup_layers", .min = 0, .max = options.num_layers - 1, .fallback = 0});
    if (!codes.empty()) fields.fail("num_warmup_layers", "not together with layer_types");
    codes.clear();
    for (int32_t layer = 0; layer < options.num_layers; ++layer) {
      const bool last = layer == options.num_layers - 1;
      absl::StrAppend(&codes, layer > 0 ? "_" : "", last ? "2" : layer < warmup ? "0" : "1");
    }
    target = -1;
  }
  if (!fields.status().ok()) return fields.status();
  return parse_target_codes(codes, static_cast<int32_t>(target), options);
}

absl::StatusOr<LayerPlan> read_layers(JsonFields& fields, const Family& family,
                                      const ModelConfig& config) {
  LayerMapOptions options{.num_layers = config.num_layers,
                          .kv_heads = config.num_kv_heads,
                          .head_dim = config.head_dim};
  // Absent it has a default, null means none; LLaMA's own configs carry the key without meaning it.
  if (family.window_everywhere || family.notation == MapNotation::kSources) {
    options.sliding_window = static_cast<int32_t>(
        fields.integer({.key = "sliding_window",
                        .min = 1,
                        .max = INT32_MAX,
                        .fallback = fields.has_key("sliding_window") ? 0 : kDefaultWindow}));
    options.window_everywhere = family.window_everywhere && options.sliding_window > 0;
  }
  options.force_nodiag = family.notation == MapNotation::kSources
                             ? fields.boolean("force_nodiag", false)
                             : family.notation == MapNotation::kGroups;
  switch (family.notation) {
    case MapNotation::kNone:
      if (fields.find("layer_types") != nullptr) {
        fields.fail("layer_types", absl::StrCat("not a key of model_type ", family.model_type,
                                                "; a layer map needs lckv-llama"));
      }
      if (!fields.status().ok()) return fields.status();
      return parse_layer_map("", options);
    case MapNotation::kTargetCodes:
      options.num_passes = read_encoder_passes(fields);
      return parse_target_map(fields, options);
    case MapNotation::kSources:
      options.num_passes = read_trained_passes(fields);
      break;
    case MapNotation::kGroups:
      options.num_passes = read_encoder_passes(fields);
      break;
    case MapNotation::kClaCodes:
      break;
  }
  const std::string map = fields.text("layer_types", "");
  if (!fields.status().ok()) return fields.status();
  return family.notation == MapNotation::kClaCodes ? parse_cla_codes(map, options)
                                                   : parse_layer_map(map, options);
}

absl::Status read_generation(absl::string_view text, ModelConfig& config) {
  constexpr absl::string_view kFile = "generation_config.json";
  auto object = parse_json_object(text, kFile);
  if (!object.ok()) return object.status();
  JsonFields fields(*object, absl::StrCat(kFile, ": "));
  GenerationDefaults& defaults = config.generation;
  const auto number = [&fields](const NumberField& field, std::optional<float>& value) {
    if (fields.find(field.key) != nullptr) value = static_cast<float>(fields.number(field));
  };
  const auto integer = [&fields](const IntegerField& field, std::optional<uint32_t>& value) {
    if (fields.find(field.key) != nullptr) value = static_cast<uint32_t>(fields.integer(field));
  };
  number({.key = "temperature", .min = 0, .max = 1e6}, defaults.temperature);
  number({.key = "top_p", .min = 0, .max = 1, .min_allowed = false}, defaults.top_p);
  number({.key = "min_p", .min = 0, .max = 1}, defaults.min_p);
  number({.key = "repetition_penalty", .min = 0, .max = 1e6, .min_allowed = false},
         defaults.repetition_penalty);
  integer({.key = "top_k", .min = 0, .max = INT32_MAX}, defaults.top_k);
  integer({.key = "max_new_tokens", .min = 0, .max = INT32_MAX}, defaults.max_new_tokens);
  if (!fields.boolean("do_sample", true)) defaults.temperature = 0.0F;
  const int64_t last_id = config.vocabulary_size - 1;
  auto eos = fields.integers({.key = "eos_token_id", .min = 0, .max = last_id});
  if (!eos.empty()) config.eos_token_ids = std::move(eos);
  return fields.status();
}

}  // namespace

absl::StatusOr<ModelConfig> parse_model_config(absl::string_view config_json,
                                               absl::string_view generation_config) {
  constexpr absl::string_view kFile = "config.json";
  if (config_json.size() > kMaxConfigBytes || generation_config.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(config_json.size() > kMaxConfigBytes ? kFile : "generation_config.json",
                     ": larger than ", kMaxConfigBytes, " bytes"));
  }
  auto object = parse_json_object(config_json, kFile);
  if (!object.ok()) return object.status();
  JsonFields fields(*object, absl::StrCat(kFile, ": "));
  const Family* family = find_family(fields);
  if (family == nullptr || !fields.status().ok()) return fields.status();

  ModelConfig config{.architecture = std::string(family->architecture),
                     .model_type = std::string(family->model_type)};
  read_shapes(fields, *family, config);
  refuse_unsupported(fields);
  config.rms_norm_eps = static_cast<float>(fields.number(
      {.key = "rms_norm_eps", .min = 0, .max = 1, .min_allowed = false, .fallback = 1e-6}));
  config.rope = read_rope(fields, config.head_dim);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.attention_bias = fields.boolean("attention_bias", false);
  config.torch_dtype = read_dtype(fields);
  const int64_t last_id = config.vocabulary_size - 1;
  config.eos_token_ids = fields.integers({.key = "eos_token_id", .min = 0, .max = last_id});
  if (fields.find("bos_token_id") != nullptr) {
    config.bos_token_id =
        static_cast<int32_t>(fields.integer({.key = "bos_token_id", .min = 0, .max = last_id}));
  }
  if (!fields.status().ok()) return fields.status();

  auto layers = read_layers(fields, *family, config);
  if (!fields.status().ok()) return fields.status();
  if (!layers.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(kFile, ": ", layers.status().message()));
  }
  config.layers = *std::move(layers);
  if (!generation_config.empty()) {
    if (absl::Status status = read_generation(generation_config, config); !status.ok())
      return status;
  }
  return config;
}

}  // namespace lckv
