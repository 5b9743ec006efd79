// TensorFile: a safetensors file of reference values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/mapped_memory.h"
#include "worker/model/safetensors.h"

namespace lckv {

class TensorFile {
 public:
  static absl::StatusOr<TensorFile> open(const std::string& path);

  bool has(const std::string& name) const;
  // The tensor must be there, and of float32 or int64.
  std::vector<float> floats(const std::string& name) const;
  std::vector<int64_t> integers(const std::string& name) const;
  std::vector<int64_t> shape(const std::string& name) const { return entry(name).shape; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

 private:
  TensorFile(MappedMemory memory, std::vector<SafetensorsEntry> entries)
      : memory_(std::move(memory)), entries_(std::move(entries)) {}
  const SafetensorsEntry& entry(const std::string& name) const;

  MappedMemory memory_;
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace lckv
