#include "tests/support/tensor_file.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"

namespace lckv {

absl::StatusOr<TensorFile> TensorFile::open(const std::string& path) {
  auto memory = MappedMemory::map_file(path);
  if (!memory.ok()) return memory.status();
  auto entries = parse_safetensors(memory->bytes(), path);
  if (!entries.ok()) return entries.status();
  return TensorFile(*std::move(memory), *std::move(entries));
}

bool TensorFile::has(const std::string& name) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&name](const SafetensorsEntry& entry) { return entry.name == name; });
}

const SafetensorsEntry& TensorFile::entry(const std::string& name) const {
  const auto found =
      std::find_if(entries_.begin(), entries_.end(),
                   [&name](const SafetensorsEntry& entry) { return entry.name == name; });
  LCKV_CHECK(found != entries_.end());
  return *found;
}

std::vector<float> TensorFile::floats(const std::string& name) const {
  const SafetensorsEntry& tensor = entry(name);
  LCKV_CHECK(tensor.dtype_name == "F32");
  std::vector<float> values((tensor.end - tensor.begin) / sizeof(float));
  std::memcpy(values.data(), memory_.bytes().data() + tensor.begin, tensor.end - tensor.begin);
  return values;
}

std::vector<int64_t> TensorFile::integers(const std::string& name) const {
  const SafetensorsEntry& tensor = entry(name);
  LCKV_CHECK(tensor.dtype_name == "I64");
  std::vector<int64_t> values((tensor.end - tensor.begin) / sizeof(int64_t));
  std::memcpy(values.data(), memory_.bytes().data() + tensor.begin, tensor.end - tensor.begin);
  return values;
}

}  // namespace lckv
