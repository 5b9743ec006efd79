#include "worker/model/checkpoint_files.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/model/bounded_file.h"
#include "worker/model/model_config_json.h"
#include "worker/model/weight_store.h"

namespace lckv {
namespace {

constexpr size_t kMaxConfigBytes = size_t{1} << 20;
constexpr size_t kMaxTokenizerBytes = size_t{32} << 20;

struct FileSlot {
  absl::string_view name;
  std::string CheckpointFiles::*text;
  size_t max_bytes = kMaxConfigBytes;
  bool required = false;
};

constexpr FileSlot kSlots[] = {
    {.name = "config.json", .text = &CheckpointFiles::config, .required = true},
    {.name = "generation_config.json", .text = &CheckpointFiles::generation_config},
    {.name = "tokenizer.model",
     .text = &CheckpointFiles::tokenizer_model,
     .max_bytes = kMaxTokenizerBytes},
    {.name = "tokenizer_config.json",
     .text = &CheckpointFiles::tokenizer_config,
     .max_bytes = kMaxTokenizerBytes},
    {.name = "chat_template.jinja", .text = &CheckpointFiles::chat_template},
};

// Of several named templates the one called "default".
std::string template_of(const nlohmann::json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  for (const nlohmann::json& entry : *found) {
    if (!entry.is_object() || !entry.contains("name") || entry["name"] != "default") continue;
    const auto text = entry.find("template");
    if (text != entry.end() && text->is_string()) return text->get<std::string>();
  }
  return "";
}

// FNV-1a with 128 bits (Fowler, Noll and Vo). Parts are set off by their lengths.
class Fingerprint {
 public:
  void add(absl::string_view part) {
    add_number(part.size());
    for (const char byte : part) add_byte(static_cast<unsigned char>(byte));
  }
  void add_number(uint64_t number) {
    for (int shift = 0; shift < 64; shift += 8) add_byte(static_cast<uint8_t>(number >> shift));
  }
  std::string hex() const {
    return absl::StrFormat("%016x%016x", static_cast<uint64_t>(state_ >> 64),
                           static_cast<uint64_t>(state_));
  }

 private:
  using Wide = unsigned __int128;
  static constexpr Wide kOffset =
      (static_cast<Wide>(0x6c62272e07bb0142ULL) << 64) | 0x62b821756295c58dULL;
  static constexpr Wide kPrime = (static_cast<Wide>(1) << 88) | 0x13b;

  void add_byte(uint8_t byte) { state_ = (state_ ^ byte) * kPrime; }

  Wide state_ = kOffset;
};

void add_tensor(const TensorView& tensor, Fingerprint& fingerprint) {
  fingerprint.add(tensor.name);
  fingerprint.add(dtype_name(tensor.dtype));
  for (const int64_t size : tensor.shape) fingerprint.add_number(static_cast<uint64_t>(size));
  for (const auto& [begin, end] : fingerprint_samples(tensor.bytes)) {
    fingerprint.add({reinterpret_cast<const char*>(tensor.data) + begin, end - begin});
  }
}

}  // namespace

absl::StatusOr<CheckpointFiles> read_checkpoint_files(const std::string& path) {
  if (!file_exists(path)) return absl::NotFoundError(absl::StrCat(path, ": no such folder"));
  CheckpointFiles files;
  for (const FileSlot& slot : kSlots) {
    const std::string file = absl::StrCat(path, "/", slot.name);
    if (!slot.required && !file_exists(file)) continue;
    auto text = read_bounded_file(file, slot.max_bytes);
    if (!text.ok()) return text.status();
    files.*slot.text = *std::move(text);
  }
  if (!files.tokenizer_config.empty()) {
    auto config =
        parse_json_object(files.tokenizer_config, absl::StrCat(path, "/tokenizer_config.json"));
    if (!config.ok()) return config.status();
    if (files.chat_template.empty()) files.chat_template = template_of(*config);
  }
  return files;
}

std::vector<std::pair<uint64_t, uint64_t>> fingerprint_samples(uint64_t bytes) {
  constexpr uint64_t kSample = 1024;
  const uint64_t length = std::min(kSample, bytes);
  const uint64_t last = bytes - length;
  std::vector<std::pair<uint64_t, uint64_t>> samples;
  for (const uint64_t begin : {uint64_t{0}, last / 3, last / 3 * 2, last}) {
    samples.emplace_back(begin, begin + length);
  }
  return samples;
}

std::string content_fingerprint(const CheckpointFiles& files, const WeightStore& weights) {
  Fingerprint fingerprint;
  for (const FileSlot& slot : kSlots) fingerprint.add(files.*slot.text);
  for (const TensorView& tensor : weights.tensors()) add_tensor(tensor, fingerprint);
  return fingerprint.hex();
}

}  // namespace lckv
