// Writes small checkpoints, whole or broken, into folders of their own.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker/model/model_config.h"

namespace lckv {

// A new folder below the system's temporary one; removed with all that is in it when dropped.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  void write(const std::string& name, const std::string& bytes) const;
  std::string read(const std::string& name) const;

 private:
  std::string path_;
};

std::string read_whole_file(const std::string& path);

// A config.json of a Llama of two layers, hidden size 32, 2 heads of 16, vocabulary 11.
nlohmann::json tiny_config();

// The header's JSON for `tensors` in float32, one behind the other, and the bytes they take.
struct HeaderOfTensors {
  nlohmann::json header;
  uint64_t data_bytes = 0;
};
HeaderOfTensors header_of(const std::vector<TensorSpec>& tensors);

// Length, header, then `data_bytes` bytes that count up.
std::string safetensors_bytes(const std::string& header, uint64_t data_bytes);

// config.json and model.safetensors of `config`.
void write_checkpoint(const TemporaryFolder& folder, const nlohmann::json& config);

}  // namespace lckv
