#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tests/worker/checkpoint_writer.h"
#include "worker/model/checkpoint_files.h"
#include "worker/model/load_progress.h"
#include "worker/model/weight_store.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

ModelConfig tiny() { return parse_model_config(tiny_config().dump(), "").value(); }

std::string bytes_of(const TensorView& tensor) {
  return {reinterpret_cast<const char*>(tensor.data), tensor.bytes};
}

TEST(WeightStore, ServesEveryTensorOfASingleFile) {
  TemporaryFolder folder;
  write_checkpoint(folder, tiny_config());
  const auto store = WeightStore::open(folder.path(), tiny());
  ASSERT_TRUE(store.ok()) << store.status();
  const std::string file = folder.read("model.safetensors");
  const auto specs = expected_tensors(tiny());
  ASSERT_EQ((*store)->tensors().size(), specs.size());
  uint64_t total = 0;
  size_t at = file.size();
  for (auto spec = specs.rbegin(); spec != specs.rend(); ++spec) {
    const TensorView* tensor = (*store)->find(spec->name);
    ASSERT_NE(tensor, nullptr) << spec->name;
    EXPECT_EQ(tensor->shape, spec->shape);
    at -= tensor->bytes;
    EXPECT_EQ(bytes_of(*tensor), file.substr(at, tensor->bytes)) << spec->name;
    total += tensor->bytes;
  }
  EXPECT_EQ((*store)->total_bytes(), total);
  EXPECT_EQ((*store)->find("model.layers.9.mlp.up_proj.weight"), nullptr);
}

TEST(WeightStore, IgnoresWhatTheConfigDoesNotAskFor) {
  TemporaryFolder folder;
  write_checkpoint(folder, tiny_config());
  Json sharing = tiny_config();
  sharing.update({{"architectures", {"LCKVLlamaForCausalLM"}},
                  {"model_type", "lckv-llama"},
                  {"layer_types", "1_1"}});
  const auto store =
      WeightStore::open(folder.path(), parse_model_config(sharing.dump(), "").value());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->find("model.layers.0.self_attn.k_proj.weight"), nullptr);
  EXPECT_NE((*store)->find("model.layers.1.self_attn.k_proj.weight"), nullptr);
}

TEST(WeightStore, ReadsShards) {
  TemporaryFolder folder;
  Json index;
  HeaderOfTensors shards[2];
  std::vector<TensorSpec> parts[2];
  for (const TensorSpec& spec : expected_tensors(tiny())) {
    const size_t part = spec.name.find("mlp") == std::string::npos ? 0 : 1;
    parts[part].push_back(spec);
    index["weight_map"][spec.name] = "part" + std::to_string(part) + ".safetensors";
  }
  for (size_t part = 0; part < 2; ++part) {
    shards[part] = header_of(parts[part]);
    folder.write("part" + std::to_string(part) + ".safetensors",
                 safetensors_bytes(shards[part].header.dump(), shards[part].data_bytes));
  }
  folder.write("model.safetensors.index.json", index.dump());
  const auto store = WeightStore::open(folder.path(), tiny());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->total_bytes(), shards[0].data_bytes + shards[1].data_bytes);
  const TensorView* up = (*store)->find("model.layers.0.mlp.up_proj.weight");
  ASSERT_NE(up, nullptr);
  const uint64_t begin = shards[1].header["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0];
  EXPECT_EQ(static_cast<uint64_t>(bytes_of(*up)[0]), begin % 61);
}

TEST(WeightStore, ForgottenTensorsAreReadAgain) {
  const auto config =
      parse_model_config(read_whole_file("deploy/models/demo/config.json"), "").value();
  const auto store = WeightStore::open("deploy/models/demo", config);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->total_bytes(), static_cast<uint64_t>(weight_bytes(config, DType::kBFloat16)));
  for (const TensorView& tensor : (*store)->tensors()) {
    const std::string before = bytes_of(tensor);
    (*store)->forget(tensor);
    EXPECT_EQ(bytes_of(tensor), before) << tensor.name;
  }
}

TEST(DummyWeights, SameValuesWhateverTheThreads) {
  Json config = tiny_config();
  config["vocab_size"] = 40001;  // several pieces and an odd tail
  config["attention_bias"] = true;
  const ModelConfig parsed = parse_model_config(config.dump(), "").value();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const auto one = WeightStore::dummy(parsed, {.dtype = dtype, .seed = 3, .num_threads = 1});
    const auto two = WeightStore::dummy(parsed, {.dtype = dtype, .seed = 3, .num_threads = 2});
    const auto other = WeightStore::dummy(parsed, {.dtype = dtype, .seed = 4, .num_threads = 2});
    ASSERT_TRUE(one.ok() && two.ok() && other.ok());
    for (const TensorView& tensor : (*one)->tensors()) {
      EXPECT_EQ(tensor.dtype, dtype);
      EXPECT_EQ(bytes_of(tensor), bytes_of(*(*two)->find(tensor.name))) << tensor.name;
    }
    const std::string embedding = "model.embed_tokens.weight";
    EXPECT_NE(bytes_of(*(*one)->find(embedding)), bytes_of(*(*other)->find(embedding)));
    EXPECT_NE(bytes_of(*(*one)->find("model.layers.0.mlp.up_proj.weight")),
              bytes_of(*(*one)->find("model.layers.1.mlp.up_proj.weight")));
  }
}

TEST(DummyWeights, AreSmallUniformAndNormsAreOne) {
  Json config = tiny_config();
  config["vocab_size"] = 40000;
  config["attention_bias"] = true;
  const auto store = WeightStore::dummy(parse_model_config(config.dump(), "").value(),
                                        {.dtype = DType::kFloat32, .seed = 1, .num_threads = 2});
  ASSERT_TRUE(store.ok());
  const auto floats = [&store](const std::string& name) {
    const TensorView* tensor = (*store)->find(name);
    std::vector<float> values(tensor->bytes / sizeof(float));
    std::memcpy(values.data(), tensor->data, tensor->bytes);
    return values;
  };
  for (const float value : floats("model.norm.weight")) EXPECT_EQ(value, 1.0F);
  for (const float value : floats("model.layers.1.self_attn.k_proj.bias")) EXPECT_EQ(value, 0.0F);
  double sum = 0.0;
  double squares = 0.0;
  const std::vector<float> embedding = floats("model.embed_tokens.weight");
  for (const float value : embedding) {
    sum += value;
    squares += double{value} * value;
  }
  const auto count = static_cast<double>(embedding.size());
  // Six standard errors of a uniform value's mean and second moment.
  EXPECT_NEAR(sum / count, 0.0, 6 * 0.02 / std::sqrt(count));
  EXPECT_NEAR(squares / count, 0.0004, 6 * 0.0004 / std::sqrt(count));
}

TEST(CheckpointFiles, ReadsTheDemoModel) {
  const auto files = read_checkpoint_files("deploy/models/demo");
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->config, read_whole_file("deploy/models/demo/config.json"));
  EXPECT_EQ(files->tokenizer_model, read_whole_file("deploy/models/demo/tokenizer.model"));
  EXPECT_EQ(files->chat_template, "");
}

TEST(CheckpointFiles, FindsTheChatTemplate) {
  TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("tokenizer_config.json",
               R"({"chat_template": [{"name": "tool", "template": "t"}, 4,
                                     {"name": "default", "template": "d"}]})");
  EXPECT_EQ(read_checkpoint_files(folder.path())->chat_template, "d");
  folder.write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(read_checkpoint_files(folder.path())->chat_template, "one");
  folder.write("chat_template.jinja", "file");
  EXPECT_EQ(read_checkpoint_files(folder.path())->chat_template, "file");
}

TEST(CheckpointFiles, ErrorsNameTheFile) {
  TemporaryFolder folder;
  const auto message = [&folder] {
    return std::string(read_checkpoint_files(folder.path()).status().message());
  };
  EXPECT_THAT(message(), HasSubstr(folder.file("config.json") + ": No such file"));
  folder.write("config.json", "{}");
  folder.write("tokenizer_config.json", "{");
  EXPECT_EQ(message(), folder.file("tokenizer_config.json") + ": not valid JSON");
  folder.write("generation_config.json", std::string((1 << 20) + 1, ' '));
  EXPECT_EQ(message(), folder.file("generation_config.json") + ": larger than 1048576 bytes");
  const auto absent = read_checkpoint_files(folder.file("absent"));
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
}

TEST(ContentFingerprint, FollowsTheContentAndNotThePlace) {
  TemporaryFolder one;
  TemporaryFolder two;
  write_checkpoint(one, tiny_config());
  write_checkpoint(two, tiny_config());
  const auto fingerprint = [](const TemporaryFolder& folder) {
    const auto files = read_checkpoint_files(folder.path());
    const auto store = WeightStore::open(folder.path(), tiny());
    EXPECT_TRUE(files.ok() && store.ok());
    return content_fingerprint(*files, **store);
  };
  const std::string first = fingerprint(one);
  EXPECT_EQ(first.size(), 32U);
  EXPECT_EQ(first, fingerprint(two));
  two.write("tokenizer.model", "x");
  EXPECT_NE(first, fingerprint(two));
  std::string weights = one.read("model.safetensors");
  weights.back() = static_cast<char>(weights.back() ^ 1);
  one.write("model.safetensors", weights);
  EXPECT_NE(first, fingerprint(one));
}

TEST(LoadProgress, LogsEachTenthOnceAndDrawsABarOnATerminal) {
  std::vector<std::string> lines;
  const auto write = [&lines](std::string_view text) { lines.emplace_back(text); };
  LoadProgress log({.title = "Loading", .total_bytes = uint64_t{1} << 31, .write = write});
  for (const double share : {0.0, 0.04, 0.1, 0.11, 0.35, 1.0, 1.0}) {
    log.update(static_cast<uint64_t>(share * (uint64_t{1} << 31)));
  }
  EXPECT_THAT(lines, ElementsAre("Loading: 0 % of 2.00 GiB", "Loading: 10 % of 2.00 GiB",
                                 "Loading: 30 % of 2.00 GiB", "Loading: 100 % of 2.00 GiB"));
  lines.clear();
  LoadProgress bar({.title = "Loading", .total_bytes = 100, .terminal = true, .write = write});
  bar.update(50);
  bar.update(100);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_THAT(lines[0], HasSubstr("\rLoading [====================                    ]  50 %"));
  EXPECT_EQ(lines[1].back(), '\n');
}

}  // namespace
}  // namespace lckv
