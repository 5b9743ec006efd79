#include "worker/model/weight_store.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
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

// Values of dummy tensors are functions of (seed, place): the number of threads cannot change them.
struct DummyPiece {
  std::byte* data = nullptr;
  size_t bytes = 0;
  uint64_t first_word = 0;
  enum class Kind : uint8_t { kRandom, kOnes, kZeros } kind = Kind::kRandom;
};

// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over a counter.
uint64_t mix(uint64_t counter) {
  uint64_t x = counter * 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint16_t truncated_bfloat16(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

// Uniform with a standard deviation of 0.02.
const float kDummyHalfWidth = 0.02F * std::sqrt(3.0F);

template <class Element, class Convert>
void fill_random(const DummyPiece& piece, uint64_t seed, Convert convert) {
  constexpr size_t kPerWord = sizeof(uint64_t) / sizeof(Element);
  const size_t count = piece.bytes / sizeof(Element);
  const uint64_t base = mix(seed) + piece.first_word;
  auto* out = reinterpret_cast<Element*>(piece.data);
  size_t done = 0;
  for (; done + kPerWord <= count; done += kPerWord) {
    const uint64_t word = mix(base + done / kPerWord);
    for (size_t lane = 0; lane < kPerWord; ++lane) {
      out[done + lane] = convert(word >> (lane * 8 * sizeof(Element)));
    }
  }
  const uint64_t word = mix(base + done / kPerWord);
  for (size_t lane = 0; done + lane < count; ++lane) {
    out[done + lane] = convert(word >> (lane * 8 * sizeof(Element)));
  }
}

void fill_piece(const DummyPiece& piece, DType dtype, uint64_t seed) {
  if (piece.kind == DummyPiece::Kind::kZeros) return;  // as the memory came
  const bool ones = piece.kind == DummyPiece::Kind::kOnes;
  if (dtype == DType::kFloat32) {
    const float scale = kDummyHalfWidth / 2147483648.0F;
    fill_random<float>(piece, seed, [ones, scale](uint64_t bits) {
      return ones ? 1.0F : static_cast<float>(static_cast<int32_t>(bits)) * scale;
    });
    return;
  }
  const float scale = kDummyHalfWidth / 32768.0F;
  fill_random<uint16_t>(piece, seed, [ones, scale](uint64_t bits) {
    return truncated_bfloat16(ones ? 1.0F : static_cast<float>(static_cast<int16_t>(bits)) * scale);
  });
}

void fill_pieces(const std::vector<DummyPiece>& pieces, const DummyWeights& options) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      fill_piece(pieces[i], options.dtype, options.seed);
    }
  };
  std::vector<std::thread> threads;
  for (int32_t i = 1; i < options.num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

void append_pieces(const TensorView& tensor, std::byte* data, uint64_t first_word,
                   std::vector<DummyPiece>& pieces) {
  constexpr size_t kPieceBytes = size_t{4} << 20;
  const auto kind = absl::EndsWith(tensor.name, "norm.weight") ? DummyPiece::Kind::kOnes
                    : absl::EndsWith(tensor.name, ".bias")     ? DummyPiece::Kind::kZeros
                                                               : DummyPiece::Kind::kRandom;
  for (size_t at = 0; at < tensor.bytes; at += kPieceBytes) {
    pieces.push_back({.data = data + at,
                      .bytes = std::min<size_t>(kPieceBytes, tensor.bytes - at),
                      .first_word = first_word + at / sizeof(uint64_t),
                      .kind = kind});
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightStore>> WeightStore::open(const std::string& folder,
                                                               const ModelConfig& config) {
  const std::string single = absl::StrCat(folder, "/", kSingleFile);
  const std::string index_path = absl::StrCat(folder, "/", kIndexFile);
  const bool is_sharded = !file_exists(single) && file_exists(index_path);
  std::map<std::string, std::string> shards;
  if (is_sharded) {
    auto index = read_index(folder, index_path);
    if (!index.ok()) return index.status();
    shards = *std::move(index);
  }

  auto store = std::unique_ptr<WeightStore>(new WeightStore);
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
                .bytes = entry->second.end - entry->second.begin});
  }
  for (auto& [path, file] : files) store->memory_.push_back(std::move(file.memory));
  return store;
}

absl::StatusOr<std::unique_ptr<WeightStore>> WeightStore::dummy(const ModelConfig& config,
                                                                const DummyWeights& options) {
  constexpr uint64_t kAlignment = 64;
  LCKV_CHECK(options.dtype != DType::kFloat16 && options.num_threads >= 1);
  const std::vector<TensorSpec> specs = expected_tensors(config);
  const auto bytes_of = [&options](const TensorSpec& spec) {
    return static_cast<uint64_t>(spec.num_elements()) * dtype_bytes(options.dtype);
  };
  uint64_t total = 0;
  for (const TensorSpec& spec : specs)
    total += (bytes_of(spec) + kAlignment - 1) & ~(kAlignment - 1);
  auto memory = MappedMemory::allocate(total);
  if (!memory.ok()) return memory.status();

  auto store = std::unique_ptr<WeightStore>(new WeightStore);
  std::vector<DummyPiece> pieces;
  uint64_t offset = 0;
  for (const TensorSpec& spec : specs) {
    std::byte* data = memory->writable() + offset;
    store->add({.name = spec.name,
                .dtype = options.dtype,
                .shape = spec.shape,
                .data = data,
                .bytes = bytes_of(spec)});
    append_pieces(store->tensors_.back(), data, offset / sizeof(uint64_t), pieces);
    offset += (bytes_of(spec) + kAlignment - 1) & ~(kAlignment - 1);
  }
  fill_pieces(pieces, options);
  store->memory_.push_back(*std::move(memory));
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
  for (const TensorView& tensor : tensors_) bytes += tensor.bytes;
  return bytes;
}

void WeightStore::forget(const TensorView& tensor) const {
  for (const MappedMemory& memory : memory_) {
    if (memory.contains(tensor.data)) memory.forget(tensor.data, tensor.bytes);
  }
}

}  // namespace lckv
