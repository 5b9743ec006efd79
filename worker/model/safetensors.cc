#include "worker/model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTensors = 1 << 20;
constexpr size_t kMaxDims = 8;
constexpr size_t kMaxNameBytes = 1024;

struct FormatType {
  absl::string_view name;
  uint64_t bytes = 0;
  std::optional<DType> dtype;
};

constexpr FormatType kFormatTypes[] = {
    {"F32", 4, DType::kFloat32},
    {"BF16", 2, DType::kBFloat16},
    {"F16", 2, DType::kFloat16},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"I32", 4, {}},
    {"I16", 2, {}},
    {"I8", 1, {}},
    {"U64", 8, {}},
    {"U32", 4, {}},
    {"U16", 2, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
    {"F8_E4M3", 1, {}},
    {"F8_E5M2", 1, {}},
};

const FormatType* find_type(absl::string_view name) {
  for (const FormatType& type : kFormatTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

std::string shown(absl::string_view name) {
  return absl::StrCat("\"", absl::CHexEscape(name.substr(0, 120)), "\"");
}

// What one tensor's object said; offsets count from the data section's start.
struct RawEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Takes the header's events as they come: memory is spent on what the format allows and nothing
// else, and a name that occurs twice is seen. Every event returns whether to go on.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  std::vector<RawEntry> entries;
  std::string error;

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return unexpected("a fraction"); }
  bool binary(binary_t&) override { return unexpected("bytes"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (numbers_ == nullptr) return unexpected("a number");
    if (numbers_->size() >= kMaxDims) return unexpected("too long a list");
    numbers_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) return true;
    if (depth_ != 2 || field_ != "dtype") return unexpected("a string");
    entries.back().dtype = std::move(value);
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ >= 2 || numbers_ != nullptr) return unexpected("an object");
    ++depth_;
    return true;
  }

  bool end_object() override {
    if (depth_ == 2) in_metadata_ = false;
    --depth_;
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || numbers_ != nullptr) return unexpected("a list");
    if (field_ == "shape") numbers_ = &entries.back().shape;
    if (field_ == "data_offsets") numbers_ = &entries.back().offsets;
    return numbers_ != nullptr || unexpected("a list");
  }

  bool end_array() override {
    numbers_ = nullptr;
    return true;
  }

  bool key(string_t& name) override {
    if (depth_ == 1) return begin_tensor(name);
    if (in_metadata_) return true;
    field_ = name;
    RawEntry& entry = entries.back();
    bool* seen = field_ == "dtype"          ? &entry.has_dtype
                 : field_ == "shape"        ? &entry.has_shape
                 : field_ == "data_offsets" ? &entry.has_offsets
                                            : nullptr;
    if (seen == nullptr) return fail(absl::StrCat("unknown key ", shown(field_)));
    if (std::exchange(*seen, true)) return fail(absl::StrCat("key ", field_, " occurs twice"));
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    if (error.empty()) error = absl::StrCat("header is not valid JSON at byte ", position);
    return false;
  }

 private:
  bool begin_tensor(std::string& name) {
    if (name == "__metadata__") {
      if (std::exchange(metadata_seen_, true)) return fail("__metadata__ occurs twice");
      in_metadata_ = true;
      return true;
    }
    if (name.size() > kMaxNameBytes) return fail("a tensor's name is too long");
    if (entries.size() >= kMaxTensors) return fail("too many tensors");
    if (!names_.insert(name).second) {
      error = absl::StrCat("tensor ", shown(name), " occurs twice");
      return false;
    }
    entries.push_back({.name = std::move(name)});
    field_.clear();
    return true;
  }

  bool unexpected(absl::string_view what) { return fail(absl::StrCat("unexpected ", what)); }

  bool fail(absl::string_view why) {
    const bool in_tensor = depth_ > 0 && !in_metadata_ && !entries.empty();
    error = absl::StrCat(
        in_tensor ? absl::StrCat("tensor ", shown(entries.back().name), ": ") : "header: ", why);
    return false;
  }

  absl::flat_hash_set<std::string> names_;
  std::vector<uint64_t>* numbers_ = nullptr;  // the list that is open
  std::string field_;
  int32_t depth_ = 0;
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
};

struct DataSection {
  uint64_t begin = 0;
  uint64_t size = 0;
};

// Empty where `raw` is sound; fills `entry`.
std::string check_entry(RawEntry& raw, const DataSection& data, SafetensorsEntry& entry) {
  if (!raw.has_dtype || !raw.has_shape || !raw.has_offsets) {
    return "needs dtype, shape and data_offsets";
  }
  const FormatType* type = find_type(raw.dtype);
  if (type == nullptr) return absl::StrCat("unknown dtype ", shown(raw.dtype));
  uint64_t bytes = type->bytes;
  for (const uint64_t size : raw.shape) {
    if (size > INT64_MAX || __builtin_mul_overflow(bytes, size, &bytes)) {
      return "its shape overflows";
    }
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  if (raw.offsets.size() != 2) return "data_offsets must be two numbers";
  const uint64_t begin = raw.offsets[0];
  const uint64_t end = raw.offsets[1];
  if (begin > end) return absl::StrCat("data_offsets ", begin, " to ", end, " run backwards");
  if (end > data.size) {
    return absl::StrCat("data_offsets end at ", end, " but the file has ", data.size,
                        " bytes of data (truncated?)");
  }
  if (end - begin != bytes) {
    return absl::StrCat("data_offsets hold ", end - begin, " bytes, dtype and shape need ", bytes);
  }
  entry.name = std::move(raw.name);
  entry.dtype_name = std::move(raw.dtype);
  entry.dtype = type->dtype;
  entry.begin = data.begin + begin;
  entry.end = data.begin + end;
  return "";
}

uint64_t read_little_endian(std::span<const std::byte, 8> bytes) {
  uint64_t value = 0;
  for (size_t i = 8; i-- > 0;) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file,
                                                                absl::string_view file_name) {
  const auto broken = [file_name](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ": ", why));
  };
  if (file.size() < 8) return broken("too short for a safetensors file");
  const uint64_t header_bytes = read_little_endian(file.first<8>());
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return broken(
        absl::StrCat("header of ", header_bytes, " bytes; at most ", kMaxSafetensorsHeaderBytes));
  }
  if (header_bytes > file.size() - 8) {
    return broken(absl::StrCat("header of ", header_bytes, " bytes in a file of ", file.size(),
                               " bytes (truncated?)"));
  }
  const char* text = reinterpret_cast<const char*>(file.data()) + 8;
  HeaderReader reader;
  if (!Json::sax_parse(text, text + header_bytes, &reader)) return broken(reader.error);
  if (header_bytes == 0 || text[0] != '{') return broken("header is not a JSON object");

  const DataSection data{.begin = 8 + header_bytes, .size = file.size() - 8 - header_bytes};
  std::vector<SafetensorsEntry> entries(reader.entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    RawEntry& raw = reader.entries[i];
    if (const std::string why = check_entry(raw, data, entries[i]); !why.empty()) {
      return broken(absl::StrCat("tensor ", shown(raw.name), ": ", why));
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].begin < entries[i - 1].end) {
      return broken(absl::StrCat("tensor ", shown(entries[i].name), ": overlaps ",
                                 shown(entries[i - 1].name)));
    }
  }
  return entries;
}

}  // namespace lckv
