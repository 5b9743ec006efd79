// Keeps reflection, a service of gRPC's own, behind the right "admin".
#pragma once

#include "grpcpp/security/auth_metadata_processor.h"
#include "router/access.h"

namespace lckv {

// Owner: the credentials of the public port. gRPC's threads. Lets every other service's calls
// through: they ask for the caller's rights themselves, also without TLS.
class ReflectionGuard final : public grpc::AuthMetadataProcessor {
 public:
  explicit ReflectionGuard(const Access& access) : access_(access) {}

  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context,
                       OutputMetadata* consumed, OutputMetadata* response) override;

 private:
  const Access& access_;
};

}  // namespace lckv
