// Reading configuration files in JSON, with errors that name the key.
//
// `path` is the place inside the file, empty for the whole: "models[0]". Errors are
// InvalidArgument: "models[0].workers: must be a list".
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace lckv {

// Names line and column of what is no JSON.
absl::StatusOr<nlohmann::json> parse_json(absl::string_view text);

absl::Status wrong_key(absl::string_view path, absl::string_view key, absl::string_view why);

// An object that has no keys but `known`.
absl::Status check_object(const nlohmann::json& value, absl::string_view path,
                          std::initializer_list<const char*> known);
// A string that is not empty.
absl::StatusOr<std::string> needed_string(const nlohmann::json& object, absl::string_view path,
                                          const char* key);
// A list, empty or not.
absl::StatusOr<const nlohmann::json*> needed_list(const nlohmann::json& object,
                                                  absl::string_view path, const char* key);
// An integer in [min, max]; empty where the key is absent.
absl::StatusOr<std::optional<int64_t>> integer(const nlohmann::json& object, absl::string_view path,
                                               const char* key, int64_t min, int64_t max);

}  // namespace lckv
