// From "host:port" to the addresses behind it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lckv {

// "host:port" as its two parts, without the brackets of an IPv6 address.
struct HostAndPort {
  std::string host;
  std::string port;
};
HostAndPort split_address(const std::string& address);
bool is_literal_address(const std::string& host);

// Numeric addresses of all records of "host:port", each once, sorted; none where there is no such
// name. Blocks as long as the system does. Errors: Unavailable where nobody could be asked.
using ResolveFunction = std::function<absl::StatusOr<std::vector<std::string>>(const std::string&)>;
absl::StatusOr<std::vector<std::string>> resolve_with_system(const std::string& address);

}  // namespace lckv
