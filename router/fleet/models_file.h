// The file given by --models: which models are expected, and where their replicas are.
//
//   {"models": [{"name": "demo", "workers": ["10.0.0.7:50061", "demo.serving.svc:50061"]}]}
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lckv {

struct ExpectedModel {
  std::string name;
  std::vector<std::string> workers;  // host:port; may be empty: expected, nowhere yet
};

// InvalidArgument naming the key, also where a model or an address occurs twice.
absl::StatusOr<std::vector<ExpectedModel>> parse_models(absl::string_view text);

// "10.0.0.7:50061", "[::1]:50061" or "name:50061" with a port from 1 on.
bool is_worker_address(absl::string_view address);

}  // namespace lckv
