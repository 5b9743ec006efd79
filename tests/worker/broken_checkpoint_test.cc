// Checkpoints that are broken in one place: each is refused in one line that names the file and
// what is wrong in it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "tests/worker/checkpoint_writer.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_store.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

ModelConfig config_of(const Json& config) {
  auto parsed = parse_model_config(config.dump(), "");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return *std::move(parsed);
}

HeaderOfTensors tiny_header() { return header_of(expected_tensors(config_of(tiny_config()))); }

void expect_refused(const TemporaryFolder& folder, const std::string& file,
                    const std::string& message) {
  const auto store = WeightStore::open(folder.path(), config_of(tiny_config()));
  ASSERT_FALSE(store.ok()) << message;
  const std::string text(store.status().message());
  EXPECT_THAT(text, HasSubstr(folder.file(file) + ": " + message));
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
}

constexpr char kNorm[] = "model.norm.weight";

struct BrokenHeader {
  std::string message;
  std::function<void(Json&)> spoil;
};

TEST(BrokenCheckpoint, EveryWrongEntryIsNamed) {
  const std::string norm = "tensor \"model.norm.weight\": ";
  const std::vector<BrokenHeader> cases = {
      {norm + "missing", [](Json& h) { h.erase(kNorm); }},
      {norm + "unknown dtype \"F31\"", [](Json& h) { h[kNorm]["dtype"] = "F31"; }},
      {norm + "dtype I32; supported: F32, BF16, F16", [](Json& h) { h[kNorm]["dtype"] = "I32"; }},
      {norm + "shape [4, 8] where config.json needs [32]",
       [](Json& h) {
         h[kNorm]["shape"] = {4, 8};
       }},
      {norm + "data_offsets hold 128 bytes, dtype and shape need 132",
       [](Json& h) { h[kNorm]["shape"] = {33}; }},
      {norm + "its shape overflows",
       [](Json& h) {
         h[kNorm]["shape"] = {uint64_t{1} << 40, uint64_t{1} << 40};
       }},
      {norm + "its shape overflows",
       [](Json& h) {
         h[kNorm]["shape"] = {0, UINT64_MAX};
       }},
      {norm + "data_offsets 200 to 72 run backwards",
       [](Json& h) {
         h[kNorm]["data_offsets"] = {200, 72};
       }},
      {norm + "data_offsets end at 1152921504606846976 but the file has",
       [](Json& h) {
         h[kNorm]["data_offsets"] = {0, uint64_t{1} << 60};
       }},
      {norm + "data_offsets must be two numbers", [](Json& h) { h[kNorm]["data_offsets"] = {0}; }},
      {norm + "needs dtype, shape and data_offsets", [](Json& h) { h[kNorm].erase("shape"); }},
      {norm + "unknown key \"extra\"", [](Json& h) { h[kNorm]["extra"] = 1; }},
      {norm + "unexpected a negative number", [](Json& h) { h[kNorm]["shape"] = {-32}; }},
      {norm + "unexpected a fraction", [](Json& h) { h[kNorm]["shape"] = {32.5}; }},
      {norm + "unexpected a string", [](Json& h) { h[kNorm]["shape"] = "32"; }},
      {norm + "unexpected an object", [](Json& h) { h[kNorm]["shape"] = Json::object(); }},
      {norm + "unexpected a list", [](Json& h) { h[kNorm]["shape"] = {{32}}; }},
      {norm + "unexpected too long a list",
       [](Json& h) { h[kNorm]["shape"] = std::vector<int>(9, 1); }},
      {norm + "unexpected null", [](Json& h) { h[kNorm]["dtype"] = nullptr; }},
      {norm + "unexpected a boolean", [](Json& h) { h[kNorm]["dtype"] = true; }},
      {norm + "unexpected a list", [](Json& h) { h[kNorm]["dtype"] = {1}; }},
      {norm + "unexpected a number", [](Json& h) { h[kNorm] = 4; }},
      {"tensor \"model.norm.weight\": overlaps \"model.layers.1.self_attn.v_proj.weight\"",
       [](Json& h) {
         h[kNorm]["data_offsets"] = h["model.layers.1.self_attn.v_proj.weight"]["data_offsets"];
         const uint64_t begin = h[kNorm]["data_offsets"][0];
         h[kNorm]["data_offsets"] = {begin + 4, begin + 132};
       }},
  };
  for (const BrokenHeader& broken : cases) {
    SCOPED_TRACE(broken.message);
    TemporaryFolder folder;
    HeaderOfTensors good = tiny_header();
    broken.spoil(good.header);
    folder.write("model.safetensors", safetensors_bytes(good.header.dump(), good.data_bytes));
    expect_refused(folder, "model.safetensors", broken.message);
  }
}

TEST(BrokenCheckpoint, HeadersThatLie) {
  const HeaderOfTensors good = tiny_header();
  const std::string whole = safetensors_bytes(good.header.dump(), good.data_bytes);
  const auto length = [](uint64_t bytes) {
    return std::string(reinterpret_cast<const char*>(&bytes), sizeof(bytes));
  };
  const std::string norm = R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]})";
  const struct {
    std::string bytes;
    std::string message;
  } cases[] = {
      {"", "too short for a safetensors file"},
      {"1234567", "too short for a safetensors file"},
      {length(uint64_t{1} << 60) + whole.substr(8), "header of 1152921504606846976 bytes; at most"},
      {length(UINT64_MAX) + whole.substr(8), "header of 18446744073709551615 bytes; at most"},
      {length(90'000'000) + whole.substr(8), "header of 90000000 bytes in a file of"},
      {whole.substr(0, 100), "(truncated?)"},
      {length(0), "header is not valid JSON"},
      {safetensors_bytes("[]", 0), "header: unexpected a list"},
      {safetensors_bytes("4", 0), "header: unexpected a number"},
      {safetensors_bytes("\"4\"", 0), "header: unexpected a string"},
      {safetensors_bytes("{} {}", 0), "header is not valid JSON at byte"},
      {safetensors_bytes("{\"\xff\":4}", 0), "header is not valid JSON at byte"},
      {safetensors_bytes("{" + norm + "," + norm + "}", 4), "tensor \"a\" occurs twice"},
      {safetensors_bytes(R"({"a":{"dtype":"F32","dtype":"F32"}})", 4),
       "tensor \"a\": key dtype occurs twice"},
      {safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})", 4),
       "header: __metadata__ occurs twice"},
      {safetensors_bytes(R"({"__metadata__":{"format":1}})", 4), "header: unexpected a number"},
      {safetensors_bytes(R"({"__metadata__":{"format":{}}})", 4), "header: unexpected an object"},
      {safetensors_bytes("{\"" + std::string(1025, 'n') + "\":{}}", 4), "name is too long"},
      {safetensors_bytes("{\"a\\nb\":{}}", 4), "tensor \"a\\nb\": needs dtype"},
  };
  for (const auto& broken : cases) {
    SCOPED_TRACE(broken.message);
    TemporaryFolder folder;
    folder.write("model.safetensors", broken.bytes);
    const auto store = WeightStore::open(folder.path(), config_of(tiny_config()));
    ASSERT_FALSE(store.ok());
    const std::string text(store.status().message());
    EXPECT_THAT(text, HasSubstr(folder.file("model.safetensors") + ": "));
    EXPECT_THAT(text, HasSubstr(broken.message));
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

TEST(BrokenCheckpoint, TruncatedAnywhereIsRefused) {
  const HeaderOfTensors good = tiny_header();
  const std::string whole = safetensors_bytes(good.header.dump(), good.data_bytes);
  for (size_t size = 0; size < whole.size(); size += 1 + whole.size() / 200) {
    const auto bytes = std::as_bytes(std::span(whole).first(size));
    const auto entries = parse_safetensors(bytes, "f.safetensors");
    ASSERT_FALSE(entries.ok()) << size;
    EXPECT_THAT(std::string(entries.status().message()), HasSubstr("f.safetensors: "));
  }
  EXPECT_TRUE(parse_safetensors(std::as_bytes(std::span(whole)), "f.safetensors").ok());
}

TEST(BrokenCheckpoint, MisalignedTensorIsRefused) {
  TemporaryFolder folder;
  const HeaderOfTensors good = tiny_header();
  std::string header = good.header.dump();
  while (header.size() % 8 != 1) header.push_back(' ');
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) {
    bytes.push_back(static_cast<char>(uint64_t{header.size()} >> shift));
  }
  folder.write("model.safetensors", bytes + header + std::string(good.data_bytes, '\0'));
  expect_refused(folder, "model.safetensors",
                 "tensor \"model.embed_tokens.weight\": not aligned to its dtype");
}

TEST(BrokenCheckpoint, NoWeightsAtAll) {
  TemporaryFolder folder;
  expect_refused(folder, "model.safetensors", "No such file or directory");
  std::filesystem::create_directory(folder.file("model.safetensors"));
  expect_refused(folder, "model.safetensors", "not a regular file");
}

TEST(BrokenCheckpoint, ShardIndexes) {
  const HeaderOfTensors good = tiny_header();
  Json index;
  for (const auto& [name, entry] : good.header.items()) index["weight_map"][name] = "a.safetensors";
  const auto refuses = [&](const Json& written, const std::string& file,
                           const std::string& message) {
    SCOPED_TRACE(message);
    TemporaryFolder folder;
    folder.write("model.safetensors.index.json", written.dump());
    HeaderOfTensors partial = good;
    partial.header.erase(kNorm);
    folder.write("a.safetensors", safetensors_bytes(partial.header.dump(), good.data_bytes));
    expect_refused(folder, file, message);
  };
  const std::string in_index = "model.safetensors.index.json";
  refuses(index, "a.safetensors", "tensor \"model.norm.weight\": missing");
  refuses(Json::array(), in_index, "not a JSON object");
  refuses({{"weight_map", 4}}, in_index, "weight_map: must be an object");
  for (const std::string name : {"../a.safetensors", "/etc/passwd", "..", ".", "x/y"}) {
    index["weight_map"][kNorm] = name;
    refuses(index, in_index, "tensor \"model.norm.weight\": must name a file in the same folder");
  }
  index["weight_map"][kNorm] = 4;
  refuses(index, in_index, "tensor \"model.norm.weight\": must name a file in the same folder");
  index["weight_map"][kNorm] = "b.safetensors";
  refuses(index, "b.safetensors", "No such file or directory");
  index["weight_map"].erase(kNorm);
  refuses(index, in_index, "tensor \"model.norm.weight\": missing");
}

}  // namespace
}  // namespace lckv
