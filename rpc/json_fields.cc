#include "rpc/json_fields.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace lckv {

absl::StatusOr<nlohmann::json> parse_json(absl::string_view text) {
  try {
    return nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 1: ..."
    absl::string_view what = error.what();
    if (const size_t end = what.find("] "); end != absl::string_view::npos) {
      what.remove_prefix(end + 2);
    }
    return absl::InvalidArgumentError(absl::StrCat("no JSON: ", what));
  }
}

absl::Status wrong_key(absl::string_view path, absl::string_view key, absl::string_view why) {
  const absl::string_view dot = path.empty() || key.empty() ? "" : ".";
  const absl::string_view whole = path.empty() && key.empty() ? "the file" : "";
  return absl::InvalidArgumentError(absl::StrCat(whole, path, dot, key, ": ", why));
}

absl::Status check_object(const nlohmann::json& value, absl::string_view path,
                          std::initializer_list<const char*> known) {
  if (!value.is_object()) return wrong_key(path, "", "must be an object");
  for (const auto& [key, ignored] : value.items()) {
    const bool is_known =
        std::any_of(known.begin(), known.end(), [&](const char* name) { return key == name; });
    if (is_known) continue;
    std::string names;
    for (const char* name : known) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    return wrong_key(path, key, absl::StrCat("is no known key; known: ", names));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> needed_string(const nlohmann::json& object, absl::string_view path,
                                          const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string() || it->get_ref<const std::string&>().empty()) {
    return wrong_key(path, key, "must be a string, and not empty");
  }
  return it->get<std::string>();
}

absl::StatusOr<const nlohmann::json*> needed_list(const nlohmann::json& object,
                                                  absl::string_view path, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_array()) return wrong_key(path, key, "must be a list");
  return &*it;
}

absl::StatusOr<std::optional<int64_t>> integer(const nlohmann::json& object, absl::string_view path,
                                               const char* key, int64_t min, int64_t max) {
  const auto it = object.find(key);
  if (it == object.end()) return std::optional<int64_t>();
  const bool too_large =
      it->is_number_unsigned() && it->get<uint64_t>() > static_cast<uint64_t>(max);
  if (!it->is_number_integer() || too_large || it->get<int64_t>() < min ||
      it->get<int64_t>() > max) {
    return wrong_key(path, key, absl::StrCat("must be an integer in [", min, ", ", max, "]"));
  }
  return std::optional<int64_t>(it->get<int64_t>());
}

}  // namespace lckv
