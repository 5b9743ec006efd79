#include "tests/worker/checkpoint_writer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/check.h"

namespace lckv {

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "lckv_loading_XXXXXX").string();
  LCKV_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TemporaryFolder::write(const std::string& name, const std::string& bytes) const {
  std::ofstream out(file(name), std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  LCKV_CHECK(out.good());
}

std::string TemporaryFolder::read(const std::string& name) const {
  return read_whole_file(file(name));
}

std::string read_whole_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  LCKV_CHECK(in.good());
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

nlohmann::json tiny_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", 11},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"torch_dtype", "float32"}};
}

HeaderOfTensors header_of(const std::vector<TensorSpec>& tensors) {
  HeaderOfTensors result;
  for (const TensorSpec& tensor : tensors) {
    const uint64_t end = result.data_bytes + 4 * static_cast<uint64_t>(tensor.num_elements());
    result.header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {result.data_bytes, end}}};
    result.data_bytes = end;
  }
  return result;
}

std::string safetensors_bytes(const std::string& header, uint64_t data_bytes) {
  std::string bytes;
  std::string padded = header;
  while (padded.size() % 8 != 0) padded.push_back(' ');
  for (int shift = 0; shift < 64; shift += 8) {
    bytes.push_back(static_cast<char>(uint64_t{padded.size()} >> shift));
  }
  bytes += padded;
  for (uint64_t i = 0; i < data_bytes; ++i) bytes.push_back(static_cast<char>(i % 61));
  return bytes;
}

void write_checkpoint(const TemporaryFolder& folder, const nlohmann::json& config) {
  const std::string text = config.dump();
  const auto parsed = parse_model_config(text, "");
  LCKV_CHECK(parsed.ok());
  const auto [header, data_bytes] = header_of(expected_tensors(*parsed));
  folder.write("config.json", text);
  folder.write("model.safetensors", safetensors_bytes(header.dump(), data_bytes));
}

}  // namespace lckv
