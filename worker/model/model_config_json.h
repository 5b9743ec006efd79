// JsonFields: typed, bounded reading of one JSON object. Private to worker/model.
//
// The first thing wrong is kept and everything read after it has its fallback value, so that a
// caller reads all fields and looks at status() once. A value, on one thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lckv {

// What a file says, quoted for an error's one line.
std::string quote(absl::string_view text);

// InvalidArgument "file: why" where `text` is no JSON object.
absl::StatusOr<nlohmann::json> parse_json_object(absl::string_view text, absl::string_view file);

struct IntegerField {
  absl::string_view key;
  int64_t min = 0;
  int64_t max = 0;
  std::optional<int64_t> fallback;  // none: the key must be there
};

struct NumberField {
  absl::string_view key;
  double min = 0.0;
  double max = 0.0;
  bool min_allowed = true;
  std::optional<double> fallback;
};

class JsonFields {
 public:
  // Errors begin with `prefix`: "config.json: ". `object` must outlive this.
  JsonFields(const nlohmann::json& object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  // The value, or null where it is absent or JSON's null.
  const nlohmann::json* find(absl::string_view key) const;
  bool has_key(absl::string_view key) const { return object_.contains(std::string(key)); }
  int64_t integer(const IntegerField& field);
  double number(const NumberField& field);
  bool boolean(absl::string_view key, bool fallback);
  std::string text(absl::string_view key, absl::string_view fallback);
  // One integer or a list of them; absent: empty.
  std::vector<int32_t> integers(const IntegerField& field);

  void fail(absl::string_view key, absl::string_view why);
  // The fields of an object within this one: errors name "key.inner".
  JsonFields within(absl::string_view key, const nlohmann::json& object) const;
  // What went wrong in an object within this one, went wrong here.
  void adopt(const JsonFields& inner) {
    if (status_.ok()) status_ = inner.status_;
  }
  const absl::Status& status() const { return status_; }

 private:
  bool checked_integer(const nlohmann::json& value, const IntegerField& field, int64_t& result);

  const nlohmann::json& object_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace lckv
