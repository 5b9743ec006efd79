#include "worker/sim/device_profile.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "worker/model/bounded_file.h"

namespace lckv {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFileBytes = 64 << 10;
// Beyond any device; what is computed from such numbers still fits a double and a duration.
constexpr double kMaxNumber = 1e18;
constexpr double kMaxMicroseconds = 1e6;

// Reads one number after the other, up to the first that is not what it has to be.
class Reader {
 public:
  Reader(const Json& object, const std::string& file) : object_(object), file_(file) {}

  double number(const char* key, double most) {
    const auto found = object_.find(key);
    const bool valid = found != object_.end() && found->is_number() && found->get<double>() > 0 &&
                       found->get<double>() <= most;
    if (valid) return found->get<double>();
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(file_, ": ", key, " must be a number above 0 and at most ", most));
    }
    return 1;
  }
  absl::Duration microseconds(const char* key) {
    return absl::Microseconds(number(key, kMaxMicroseconds));
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json& object_;
  const std::string& file_;
  absl::Status status_;
};

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

absl::StatusOr<DeviceProfile> parse_device_profile(absl::string_view json,
                                                   const std::string& file) {
  const Json object = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  }
  DeviceProfile profile;
  const auto name = object.find("name");
  if (name == object.end() || !name->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": name must be a string"));
  }
  profile.name = name->get<std::string>();
  Reader reader(object, file);
  profile.memory_bytes = reader.number("memory_bytes", kMaxNumber);
  profile.memory_bytes_per_second = reader.number("memory_bytes_per_second", kMaxNumber);
  profile.bfloat16_flops_per_second = reader.number("bfloat16_flops_per_second", kMaxNumber);
  profile.float32_flops_per_second = reader.number("float32_flops_per_second", kMaxNumber);
  profile.host_bytes_per_second = reader.number("host_bytes_per_second", kMaxNumber);
  profile.peer_bytes_per_second = reader.number("peer_bytes_per_second", kMaxNumber);
  profile.memory_share = reader.number("memory_share", 1);
  profile.flops_share = reader.number("flops_share", 1);
  profile.step_overhead = reader.microseconds("step_overhead_us");
  profile.layer_overhead = reader.microseconds("layer_overhead_us");
  profile.peer_latency = reader.microseconds("peer_latency_us");
  if (!reader.status().ok()) return reader.status();
  return profile;
}

absl::StatusOr<DeviceProfile> read_device_profile(const std::string& device,
                                                  const std::string& folder) {
  const bool is_path = absl::EndsWith(device, ".json");
  const std::string path = is_path ? device : absl::StrCat(folder, "/", device, ".json");
  const auto text = read_bounded_file(path, kMaxFileBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(
        "--sim-device ", device, ": no such device; known: ", absl::StrJoin(names_in(folder), ", "),
        ", or the path of a .json file"));
  }
  if (!text.ok()) return text.status();
  return parse_device_profile(*text, path);
}

}  // namespace lckv
