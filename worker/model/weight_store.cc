#include "worker/model/weight_store.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "worker/model/bounded_file.h"
#include "worker/model/model_config_json.h"
#include "worker/model/safetensors.h"

namespace lckv {
namespace {

constexpr absl::string_view kSingleFile = "model.safetensors";
constexpr absl::string_view kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{64} << 20;

absl::Status missing(absl::string_view path, absl::string_view tensor) {
  return absl::NotFoundError(absl::StrCat(path, ": tensor ", quote(tensor), ": missing"));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// What `expected` asks of the entry that bears its name.
absl::Status check_tensor(const SafetensorsEntry& entry, const TensorSpec& expected,
                          absl::string_view path) {
  const auto wrong = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": tensor ", quote(expected.name), ": ", why));
  };
  if (!entry.dtype) {
    return wrong(absl::StrCat("dtype ", entry.dtype_name, "; supported: F32, BF16, F16"));
  }
  if (entry.shape != expected.shape) {
    return wrong(absl::StrCat("shape ", shape_text(entry.shape), " where config.json needs ",
                              shape_text(expected.shape)));
  }
  if (entry.begin % dtype_bytes(*entry.dtype) != 0) {
    return wrong("not aligned to its dtype; save it with a newer safetensors");
  }
  return absl::OkStatus();
}

// One mapped file and what its header says.
struct OpenFile {
  std::string path;
  MappedMemory memory;
  absl::flat_hash_map<std::string, SafetensorsEntry> entries;
};

absl::StatusOr<OpenFile> open_file(const std::string& path) {
  auto memory = MappedMemory::map_file(path);
  if (!memory.ok()) return memory.status();
  auto entries = parse_safetensors(memory->bytes(), path);
  if (!entries.ok()) return entries.status();
  OpenFile file{.path = path, .memory = *std::move(memory)};
  for (SafetensorsEntry& entry : *entries) {
    std::string name = entry.name;
    file.entries.emplace(std::move(name), std::move(entry));
  }
  return file;
}

// Tensor name -> the shard that holds it.
absl::StatusOr<std::map<std::string, std::string>> read_index(const std::string& folder,
                                                              const std::string& path) {
  auto text = read_bounded_file(path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  auto index = parse_json_object(*text, path);
  if (!index.ok()) return index.status();
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map: must be an object"));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, file] : weight_map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    // A path would let a checkpoint name files outside of its folder.
    if (name.empty() || name == "." || name == ".." || absl::StrContains(name, '/') ||
        name.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", quote(tensor),
                                                     ": must name a file in the same folder, not ",
                                                     quote(name)));
    }
    shards.emplace(tensor, absl::StrCat(folder, "/", name));
  }
  return shards;
}

// Of a slice of columns nearly every block of the file is touched.
void read_ahead(const TensorView& tensor, const MappedMemory& memory) {
  const uint64_t row_bytes = tensor.bytes / static_cast<uint64_t>(tensor.shape[0]);
  memory.will_need(tensor.data + static_cast<uint64_t>(tensor.slice.row) * row_bytes,
                   static_cast<uint64_t>(tensor.slice.rows) * row_bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightStore>> WeightStore::open(const std::string& folder,
                                                               const ModelConfig& config,
                                                               TensorShard shard) {
  const std::string single = absl::StrCat(folder, "/", kSingleFile);
  const std::string index_path = absl::StrCat(folder, "/", kIndexFile);
  const bool is_sharded = !file_exists(single) && file_exists(index_path);
  std::map<std::string, std::string> shards;
  if (is_sharded) {
    auto index = read_index(folder, index_path);
    if (!index.ok()) return index.status();
    shards = *std::move(index);
  }

  auto store = std::unique_ptr<WeightStore>(new WeightStore(shard));
  std::map<std::string, OpenFile> files;
  for (const TensorSpec& expected : expected_tensors(config)) {
    std::string path = single;
    if (is_sharded) {
      const auto shard = shards.find(expected.name);
      if (shard == shards.end()) return missing(index_path, expected.name);
      path = shard->second;
    }
    if (!files.contains(path)) {
      auto file = open_file(path);
      if (!file.ok()) return file.status();
      files.emplace(path, *std::move(file));
    }
    const OpenFile& file = files.at(path);
    const auto entry = file.entries.find(expected.name);
    if (entry == file.entries.end()) return missing(path, expected.name);
    if (auto status = check_tensor(entry->second, expected, path); !status.ok()) return status;
    store->add({.name = expected.name,
                .dtype = *entry->second.dtype,
                .shape = expected.shape,
                .data = file.memory.bytes().data() + entry->second.begin,
                .bytes = entry->second.end - entry->second.begin,
                .slice = slice_tensor(expected, config, shard)});
    read_ahead(store->tensors_.back(), file.memory);
  }
  for (auto& [path, file] : files) store->memory_.push_back(std::move(file.memory));
  return store;
}

void WeightStore::add(TensorView tensor) {
  index_.emplace(tensor.name, tensors_.size());
  tensors_.push_back(std::move(tensor));
}

const TensorView* WeightStore::find(absl::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

uint64_t WeightStore::total_bytes() const {
  uint64_t bytes = 0;
  for (const TensorView& tensor : tensors_) bytes += tensor.slice_bytes();
  return bytes;
}

uint64_t WeightStore::replicated_bytes() const {
  if (shard_.size == 1) return 0;
  uint64_t bytes = 0;
  for (const TensorView& tensor : tensors_) {
    if (tensor.slice_bytes() == tensor.bytes) bytes += tensor.bytes;
  }
  return bytes;
}

void WeightStore::forget(const TensorView& tensor) const {
  for (const MappedMemory& memory : memory_) {
    if (memory.contains(tensor.data)) memory.forget(tensor.data, tensor.bytes);
  }
}

}  // namespace lckv
