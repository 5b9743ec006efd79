// Errors at the edges: absl::Status inside the processes, grpc::Status with google.rpc details
// between them.
//
// A detail travels inside an absl::Status as a payload whose key is its type URL, so code that has
// never heard of gRPC can carry one. Pure functions, any thread.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "lckv/v1/inference.pb.h"

namespace grpc {
class ServerContextBase;
}

namespace lckv {

// Serialized google.rpc.Status in the trailers stays below this, as the public API promises.
inline constexpr size_t kMaxDetailBytes = 8192;

// The one table; the two enumerations have equal meanings value by value.
grpc::StatusCode to_grpc_code(absl::StatusCode code);
// A code that no canonical code stands for is kUnknown.
absl::StatusCode to_absl_code(grpc::StatusCode code);
// "INVALID_ARGUMENT" and so on; "UNKNOWN" for a number that is no code.
absl::string_view code_name(absl::StatusCode code);

// InvalidArgument with BadRequest; `field` is the path in the request ("sampling.top_p"). The
// message reads "field: why".
absl::Status invalid_field(absl::string_view field, absl::string_view why);
// Unimplemented with BadRequest, for a field or call that this version does not serve.
absl::Status unserved_field(absl::string_view field, absl::string_view why);
// `status` with the field that is to blame (BadRequest).
absl::Status with_field(absl::Status status, absl::string_view field, absl::string_view why);
// `status` with RetryInfo, which also becomes the trailer grpc-retry-pushback-ms.
absl::Status with_retry(absl::Status status, absl::Duration delay);
// `status` with ErrorInfo{domain: "lckv", reason}.
absl::Status with_reason(absl::Status status, absl::string_view reason);
// `status` with what the call had delivered.
absl::Status with_interrupted(absl::Status status, const v1::Interrupted& interrupted);

// Reading them back; empty where the detail is absent or malformed.
std::optional<std::string> violated_field(const absl::Status& status);
std::optional<absl::Duration> retry_delay(const absl::Status& status);
std::optional<std::string> error_reason(const absl::Status& status);
std::optional<v1::Interrupted> interrupted_progress(const absl::Status& status);

// Long messages are cut and details that would exceed kMaxDetailBytes are left out.
grpc::Status to_grpc_status(const absl::Status& status);
absl::Status to_absl_status(const grpc::Status& status);

// Adds the trailer that goes with RetryInfo. Call before the status is sent.
void add_retry_trailer(const absl::Status& status, grpc::ServerContextBase& call);

}  // namespace lckv
