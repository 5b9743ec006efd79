// Asks the router which model a command is about.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "lckv/v1/models.pb.h"

namespace lckv {

// The model of that name; the only one where `name` is empty.
absl::StatusOr<v1::Model> find_model(const std::shared_ptr<grpc::Channel>& channel,
                                     const ConnectionOptions& options, const std::string& name);

}  // namespace lckv
