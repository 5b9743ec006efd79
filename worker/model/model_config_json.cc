#include "worker/model/model_config_json.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

constexpr size_t kMaxQuoted = 80;
constexpr size_t kMaxIntegers = 64;

std::string shown(const nlohmann::json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  return value.dump();
}

}  // namespace

std::string quote(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxQuoted)),
                      text.size() > kMaxQuoted ? "..." : "", "\"");
}

absl::StatusOr<nlohmann::json> parse_json_object(absl::string_view text, absl::string_view file) {
  nlohmann::json parsed = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not valid JSON"));
  }
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  }
  return parsed;
}

const nlohmann::json* JsonFields::find(absl::string_view key) const {
  const auto found = object_.find(std::string(key));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::checked_integer(const nlohmann::json& value, const IntegerField& field,
                                 int64_t& result) {
  if (!value.is_number_integer()) {
    fail(field.key, absl::StrCat("must be an integer, not ", shown(value)));
    return false;
  }
  // Above the signed range only an unsigned number can be, and `max` is below it.
  const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX};
  result = huge ? INT64_MAX : value.get<int64_t>();
  if (huge || result < field.min || result > field.max) {
    fail(field.key, absl::StrCat(value.dump(), " is not within ", field.min, " to ", field.max));
    return false;
  }
  return true;
}

int64_t JsonFields::integer(const IntegerField& field) {
  const int64_t fallback = field.fallback.value_or(field.min);
  const nlohmann::json* value = find(field.key);
  if (value == nullptr) {
    if (!field.fallback) fail(field.key, "missing");
    return fallback;
  }
  int64_t result = 0;
  return checked_integer(*value, field, result) ? result : fallback;
}

double JsonFields::number(const NumberField& field) {
  const double fallback = field.fallback.value_or(field.max);
  const nlohmann::json* value = find(field.key);
  if (value == nullptr) {
    if (!field.fallback) fail(field.key, "missing");
    return fallback;
  }
  if (!value->is_number()) {
    fail(field.key, absl::StrCat("must be a number, not ", shown(*value)));
    return fallback;
  }
  const double result = value->get<double>();
  if (!(result >= field.min && result <= field.max) ||
      (result == field.min && !field.min_allowed)) {
    fail(field.key, absl::StrCat(value->dump(), " is not within ", field.min, " to ", field.max,
                                 field.min_allowed ? "" : ", without the first"));
    return fallback;
  }
  return result;
}

bool JsonFields::boolean(absl::string_view key, bool fallback) {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    fail(key, absl::StrCat("must be true or false, not ", shown(*value)));
    return fallback;
  }
  return value->get<bool>();
}

std::string JsonFields::text(absl::string_view key, absl::string_view fallback) {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    fail(key, absl::StrCat("must be a string, not ", shown(*value)));
    return std::string(fallback);
  }
  return value->get<std::string>();
}

std::vector<int32_t> JsonFields::integers(const IntegerField& field) {
  const nlohmann::json* value = find(field.key);
  if (value == nullptr) return {};
  std::vector<int32_t> results;
  int64_t result = 0;
  if (!value->is_array()) {
    if (checked_integer(*value, field, result)) results.push_back(static_cast<int32_t>(result));
    return results;
  }
  if (value->size() > kMaxIntegers) {
    fail(field.key, absl::StrCat(value->size(), " entries; at most ", kMaxIntegers));
    return results;
  }
  for (const nlohmann::json& entry : *value) {
    if (!checked_integer(entry, field, result)) return {};
    results.push_back(static_cast<int32_t>(result));
  }
  return results;
}

JsonFields JsonFields::within(absl::string_view key, const nlohmann::json& object) const {
  return JsonFields(object, absl::StrCat(prefix_, key, "."));
}

void JsonFields::fail(absl::string_view key, absl::string_view why) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(prefix_, key, ": ", why));
}

}  // namespace lckv
