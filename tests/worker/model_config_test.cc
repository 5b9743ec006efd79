#include "worker/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/worker/checkpoint_writer.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

ModelConfig parse(const Json& config, const std::string& generation = "") {
  auto parsed = parse_model_config(config.dump(), generation);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *std::move(parsed) : ModelConfig{};
}

std::vector<int32_t> sources(const ModelConfig& config) {
  std::vector<int32_t> result;
  for (const LayerSpec& layer : config.layers.layers) result.push_back(layer.source);
  return result;
}

Json with(Json config, const Json& changes) {
  config.update(changes);
  return config;
}

Json family(const std::string& architecture, const std::string& model_type, int num_layers) {
  return with(tiny_config(), {{"architectures", {architecture}},
                              {"model_type", model_type},
                              {"num_hidden_layers", num_layers}});
}

TEST(ModelConfig, GoldenConfigsReadAsWritten) {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden/cases")) {
    if (!entry.is_directory()) continue;
    SCOPED_TRACE(entry.path().string());
    const std::string text = read_whole_file((entry.path() / "config.json").string());
    const auto config = parse_model_config(text, "");
    ASSERT_TRUE(config.ok()) << config.status();
    ++seen;
    const Json written = Json::parse(text);
    EXPECT_EQ(config->num_layers, 8);
    EXPECT_EQ(config->head_dim, 16);
    EXPECT_EQ(config->layers.num_passes, config->layers.has_cycles() ? 9 : 1);
    EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
    EXPECT_EQ(config->torch_dtype, DType::kFloat32);
    for (int32_t layer = 0; layer < 8; ++layer) {
      const LayerSpec& spec = config->layers.layers[layer];
      EXPECT_EQ(spec.self_excluding, written["force_nodiag"] == true || spec.source > layer);
      EXPECT_EQ(spec.kv_heads, 2);
    }
  }
  EXPECT_EQ(seen, 9);
}

TEST(ModelConfig, DemoModel) {
  const auto config =
      parse_model_config(read_whole_file("deploy/models/demo/config.json"),
                         read_whole_file("deploy/models/demo/generation_config.json"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_THAT(config->layers.cached_layers(), ElementsAre(0, 6, 7));
  EXPECT_FLOAT_EQ(config->generation.temperature.value_or(-1), 0.7F);
  EXPECT_FLOAT_EQ(config->generation.top_p.value_or(-1), 0.9F);
  EXPECT_FALSE(config->generation.top_k.has_value());
  EXPECT_EQ(config->bos_token_id, 1);
}

TEST(ModelConfig, TinyLlamaSizesAreThePublishedOnes) {
  Json config =
      with(family("LCKVLlamaForCausalLM", "lckv-llama", 22), {{"vocab_size", 32000},
                                                              {"hidden_size", 2048},
                                                              {"intermediate_size", 5632},
                                                              {"num_attention_heads", 32},
                                                              {"num_key_value_heads", 4}});
  std::string w2 = "0";
  for (int i = 0; i < 20; ++i) w2 += "_20";
  config["layer_types"] = w2 + "_21";
  const ModelConfig parsed = parse(config);
  EXPECT_EQ(num_parameters(parsed), 1'080'125'440);
  EXPECT_EQ(expected_tensors(parsed).size(), 163U);
  EXPECT_EQ(weight_bytes(parsed, DType::kBFloat16), 2'160'250'880);
  EXPECT_EQ(kv_bytes_per_token(parsed.layers, DType::kBFloat16), 3 * 1024);
  config["layer_types"] = "0_1_2_3_4_16_16_16_16_16_16_16_16_16_16_16_16_17_18_19_20_21";
  EXPECT_EQ(num_parameters(parse(config)), 1'088'514'048);
  EXPECT_EQ(expected_tensors(parse(config)).size(), 179U);
}

TEST(ModelConfig, OldFormsAreNormalised) {
  const Json old_form = with(family("LlamaForCausalLM", "opt-llama", 5),
                             {{"layer_types", "0_1_1_2_0"}, {"target_layer", -2}});
  const ModelConfig opt = parse(old_form);
  EXPECT_THAT(sources(opt), ElementsAre(0, 3, 3, 3, 4));
  EXPECT_EQ(opt.layers.num_passes, 9);
  EXPECT_TRUE(opt.layers.layers[4].self_excluding);
  EXPECT_EQ(parse(with(old_form, {{"num_encoders", 0}})).layers.num_passes, 1);

  const ModelConfig warm =
      parse(with(family("LlamaForCausalLM", "opt-llama", 5), {{"num_warmup_layers", 2}}));
  EXPECT_THAT(sources(warm), ElementsAre(0, 1, 4, 4, 4));

  const ModelConfig cla =
      parse(with(family("LlamaForCausalLM", "cla-llama", 4), {{"layer_types", "0_1_2_1"}}));
  EXPECT_THAT(sources(cla), ElementsAre(0, 0, 2, 2));
  EXPECT_FALSE(cla.layers.layers[1].self_excluding);
  EXPECT_EQ(cla.layers.num_passes, 1);

  const ModelConfig group =
      parse(with(family("LlamaForCausalLM", "group-opt-llama", 4),
                 {{"layer_types", "1_1_3_3"}, {"num_encoders", 4}, {"use_new_kv", false}}));
  EXPECT_THAT(sources(group), ElementsAre(1, 1, 3, 3));
  EXPECT_TRUE(group.layers.layers[1].self_excluding);
  EXPECT_EQ(group.layers.num_passes, 5);
}

TEST(ModelConfig, MistralWindowsEveryLayer) {
  const Json mistral = family("MistralForCausalLM", "mistral", 2);
  EXPECT_EQ(parse(with(mistral, {{"sliding_window", 10}})).layers.layers[1].window, 10);
  EXPECT_EQ(parse(with(mistral, {{"sliding_window", nullptr}})).layers.layers[1].window, 0);
  EXPECT_EQ(parse(mistral).layers.layers[0].window, 4096);
  EXPECT_EQ(parse(with(tiny_config(), {{"sliding_window", 10}})).layers.layers[0].window, 0);
}

TEST(ModelConfig, RopeInAllItsSpellings) {
  using Scaling = RopeOptions::Scaling;
  EXPECT_EQ(parse(with(tiny_config(), {{"rope_scaling", nullptr}})).rope.scaling, Scaling::kNone);
  for (const char* key : {"type", "rope_type"}) {
    const ModelConfig linear =
        parse(with(tiny_config(), {{"rope_scaling", {{key, "linear"}, {"factor", 4}}}}));
    EXPECT_EQ(linear.rope.scaling, Scaling::kLinear);
    EXPECT_EQ(linear.rope.factor, 4.0);
  }
  const ModelConfig llama3 =
      parse(with(tiny_config(), {{"rope_theta", 500000.0},
                                 {"rope_scaling",
                                  {{"rope_type", "llama3"},
                                   {"factor", 8.0},
                                   {"low_freq_factor", 1.0},
                                   {"high_freq_factor", 4.0},
                                   {"original_max_position_embeddings", 8192}}}}));
  EXPECT_EQ(llama3.rope.scaling, Scaling::kLlama3);
  EXPECT_EQ(llama3.rope.theta, 500000.0);
  EXPECT_EQ(llama3.rope.original_max_position, 8192);
  EXPECT_EQ(llama3.rope.head_dim, 16);
  const ModelConfig newest = parse(
      with(tiny_config(), {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 7}}}}));
  EXPECT_EQ(newest.rope.theta, 7.0);
}

TEST(ModelConfig, GenerationConfigOverridesAndDefaults) {
  const Json config = with(tiny_config(), {{"eos_token_id", {1, 2}}});
  EXPECT_THAT(parse(config).eos_token_ids, ElementsAre(1, 2));
  const ModelConfig parsed =
      parse(config, R"({"eos_token_id": [3, 4, 5], "do_sample": false, "temperature": 0.6,
                        "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.1,
                        "max_new_tokens": 12})");
  EXPECT_THAT(parsed.eos_token_ids, ElementsAre(3, 4, 5));
  EXPECT_EQ(parsed.generation.temperature, 0.0F);
  EXPECT_EQ(parsed.generation.top_k, 50U);
  EXPECT_EQ(parsed.generation.max_new_tokens, 12U);
  EXPECT_FALSE(parsed.generation.top_p.has_value());
}

TEST(ModelConfig, TensorsFollowTheConfig) {
  const auto names = [](const ModelConfig& config) {
    std::string all = " ";
    for (const TensorSpec& tensor : expected_tensors(config)) all += tensor.name + " ";
    return all;
  };
  const ModelConfig biased = parse(
      with(family("LCKVLlamaForCausalLM", "lckv-llama", 2),
           {{"layer_types", "1_1"}, {"attention_bias", true}, {"tie_word_embeddings", true}}));
  EXPECT_THAT(names(biased), HasSubstr(" model.layers.0.self_attn.o_proj.bias "));
  EXPECT_THAT(names(biased), HasSubstr(" model.layers.1.self_attn.k_proj.bias "));
  EXPECT_THAT(names(biased), Not(HasSubstr("layers.0.self_attn.k_proj")));
  EXPECT_THAT(names(biased), Not(HasSubstr("lm_head")));
  EXPECT_THAT(names(parse(tiny_config())), HasSubstr(" lm_head.weight "));
}

struct BadConfig {
  Json changes;
  std::string message;
};

TEST(ModelConfig, EveryErrorIsOneLineThatNamesTheKey) {
  const std::vector<BadConfig> cases = {
      {{{"architectures", {"GPT2LMHeadModel"}}},
       "architectures: \"GPT2LMHeadModel\" is not supported; supported: LlamaForCausalLM, "
       "LCKVLlamaForCausalLM, MistralForCausalLM"},
      {{{"architectures", {"a\nb"}}}, "architectures: \"a\\nb\" is not supported"},
      {{{"architectures", "LlamaForCausalLM"}}, "architectures: must be a list of one name"},
      {{{"model_type", "gpt2"}}, "model_type: \"gpt2\" is not supported for LlamaForCausalLM"},
      {{{"model_type", 3}}, "model_type: must be a string, not 3"},
      {{{"num_hidden_layers", 5000}}, "num_hidden_layers: 5000 is not within 1 to 1024"},
      {{{"num_hidden_layers", 0}}, "num_hidden_layers: 0 is not within"},
      {{{"num_hidden_layers", 2.0}}, "num_hidden_layers: must be an integer, not 2.0"},
      {{{"num_hidden_layers", UINT64_MAX}}, "num_hidden_layers: 18446744073709551615 is not"},
      {{{"vocab_size", nullptr}}, "vocab_size: missing"},
      {{{"vocab_size", (1 << 22) + 1}}, "vocab_size: 4194305 is not within 1 to 4194304"},
      {{{"hidden_size", "32"}}, "hidden_size: must be an integer, not \"32\""},
      {{{"num_key_value_heads", 3}}, "num_key_value_heads: 3 does not divide"},
      {{{"hidden_size", 33}}, "num_attention_heads: 2 does not divide hidden_size 33"},
      {{{"hidden_size", 40}}, "head_dim: 20 is not a multiple of 16"},
      {{{"head_dim", 512}}, "head_dim: 512 is not within"},
      {{{"hidden_act", "gelu"}}, "hidden_act: \"gelu\" is not supported; supported: silu"},
      {{{"mlp_bias", true}}, "mlp_bias: true is not supported"},
      {{{"attention_bias", "no"}}, "attention_bias: must be true or false, not \"no\""},
      {{{"rms_norm_eps", 0}}, "rms_norm_eps: 0 is not within"},
      {{{"rms_norm_eps", {1}}}, "rms_norm_eps: must be a number, not a list"},
      {{{"rope_theta", -1}}, "rope_theta: -1 is not within"},
      {{{"rope_scaling", 4}}, "rope_scaling: must be an object"},
      {{{"rope_scaling", {{"type", "yarn"}}}},
       "rope_scaling.rope_type: \"yarn\" is not supported; supported: default, linear, llama3"},
      {{{"rope_scaling", {{"type", "linear"}}}}, "rope_scaling.factor: missing"},
      {{{"rope_scaling",
         {{"type", "llama3"},
          {"factor", 2},
          {"low_freq_factor", 4},
          {"high_freq_factor", 4},
          {"original_max_position_embeddings", 8}}}},
       "rope_scaling.high_freq_factor: must be greater"},
      {{{"torch_dtype", "int8"}}, "torch_dtype: \"int8\" is not supported"},
      {{{"quantization_config", Json::object()}}, "quantization_config: quantized"},
      {{{"eos_token_id", {1, 11}}}, "eos_token_id: 11 is not within 0 to 10"},
      {{{"eos_token_id", std::vector<int>(65)}}, "eos_token_id: 65 entries; at most 64"},
      {{{"bos_token_id", -1}}, "bos_token_id: -1 is not within"},
      {{{"layer_types", "0_1"}}, "layer_types: not a key of model_type llama"},
      {{{"architectures", nullptr}, {"model_type", "bert"}}, "model_type: \"bert\" is not"},
  };
  for (const BadConfig& bad : cases) {
    const auto config = parse_model_config(with(tiny_config(), bad.changes).dump(), "");
    ASSERT_FALSE(config.ok()) << bad.message;
    const std::string message(config.status().message());
    EXPECT_THAT(message, HasSubstr("config.json: " + bad.message));
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(ModelConfig, LayerMapErrorsNameTheFile) {
  const auto message = [](const Json& config) {
    return std::string(parse_model_config(config.dump(), "").status().message());
  };
  const Json lckv = family("LCKVLlamaForCausalLM", "lckv-llama", 3);
  const Json old_form = family("LlamaForCausalLM", "opt-llama", 3);
  EXPECT_EQ(message(with(lckv, {{"layer_types", "0_3_2"}})),
            "config.json: layer_types: entry 1 \"3\" names an absent layer: there are 3");
  EXPECT_EQ(message(with(lckv, {{"layer_types", {0, 1, 2}}})),
            "config.json: layer_types: must be a string, not a list");
  EXPECT_EQ(message(with(lckv, {{"forward_passes", 0}, {"backward_passes", 0}})),
            "config.json: forward_passes + backward_passes: 0 is not within 1 to 1024");
  EXPECT_EQ(message(with(old_form, {{"layer_types", "0_1_0"}})),
            "config.json: layer_types: 0 targets (code 2); layers of code 1 need exactly one");
  EXPECT_EQ(message(with(old_form, {{"num_encoders", 5000}})),
            "config.json: num_encoders: 5000 is not within 0 to 1023");
  EXPECT_EQ(message(with(old_form, {{"layer_types", "0_1_2"}, {"num_warmup_layers", 1}})),
            "config.json: num_warmup_layers: not together with layer_types");
  EXPECT_EQ(message(with(old_form, {{"num_warmup_layers", 3}})),
            "config.json: num_warmup_layers: 3 is not within 0 to 2");
}

TEST(ModelConfig, RefusesWhatIsNoObject) {
  for (const std::string text : {"", "{", "[]", "3", "{\"a\":1e999}", "\xff"}) {
    const auto config = parse_model_config(text, "");
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("config.json: not "));
  }
  EXPECT_FALSE(parse_model_config(std::string((1 << 20) + 1, ' '), "").ok());
  EXPECT_FALSE(parse_model_config(std::string(1 << 19, '['), "").ok());
  const auto generation = parse_model_config(tiny_config().dump(), R"({"top_p": 2})");
  ASSERT_FALSE(generation.ok());
  EXPECT_THAT(std::string(generation.status().message()),
              HasSubstr("generation_config.json: top_p: 2 is not within 0 to 1"));
}

}  // namespace
}  // namespace lckv
