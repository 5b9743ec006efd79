#include "rpc/status_mapping.h"

#include <algorithm>
#include <array>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/any.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/server_context.h"

namespace lckv {
namespace {

constexpr absl::string_view kTypePrefix = "type.googleapis.com/";
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxTextBytes = 256;  // of a field's path or reason inside a detail

struct CodePair {
  absl::StatusCode absl_code;
  grpc::StatusCode grpc_code;
  absl::string_view name;
};

constexpr std::array<CodePair, 17> kCodes = {{
    {absl::StatusCode::kOk, grpc::StatusCode::OK, "OK"},
    {absl::StatusCode::kCancelled, grpc::StatusCode::CANCELLED, "CANCELLED"},
    {absl::StatusCode::kUnknown, grpc::StatusCode::UNKNOWN, "UNKNOWN"},
    {absl::StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT, "INVALID_ARGUMENT"},
    {absl::StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"},
    {absl::StatusCode::kNotFound, grpc::StatusCode::NOT_FOUND, "NOT_FOUND"},
    {absl::StatusCode::kAlreadyExists, grpc::StatusCode::ALREADY_EXISTS, "ALREADY_EXISTS"},
    {absl::StatusCode::kPermissionDenied, grpc::StatusCode::PERMISSION_DENIED, "PERMISSION_DENIED"},
    {absl::StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED,
     "RESOURCE_EXHAUSTED"},
    {absl::StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION,
     "FAILED_PRECONDITION"},
    {absl::StatusCode::kAborted, grpc::StatusCode::ABORTED, "ABORTED"},
    {absl::StatusCode::kOutOfRange, grpc::StatusCode::OUT_OF_RANGE, "OUT_OF_RANGE"},
    {absl::StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED, "UNIMPLEMENTED"},
    {absl::StatusCode::kInternal, grpc::StatusCode::INTERNAL, "INTERNAL"},
    {absl::StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE, "UNAVAILABLE"},
    {absl::StatusCode::kDataLoss, grpc::StatusCode::DATA_LOSS, "DATA_LOSS"},
    {absl::StatusCode::kUnauthenticated, grpc::StatusCode::UNAUTHENTICATED, "UNAUTHENTICATED"},
}};

// At most `limit` bytes of `text`, cut where no UTF-8 sequence is split.
std::string cut(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), "...");
}

template <typename Message>
std::string type_url() {
  return absl::StrCat(kTypePrefix, std::string(Message::descriptor()->full_name()));
}

template <typename Message>
absl::Status with_detail(absl::Status status, const Message& detail) {
  status.SetPayload(type_url<Message>(), absl::Cord(detail.SerializeAsString()));
  return status;
}

template <typename Message>
std::optional<Message> detail_of(const absl::Status& status) {
  const auto payload = status.GetPayload(type_url<Message>());
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

}  // namespace

grpc::StatusCode to_grpc_code(absl::StatusCode code) {
  for (const CodePair& pair : kCodes) {
    if (pair.absl_code == code) return pair.grpc_code;
  }
  return grpc::StatusCode::UNKNOWN;
}

absl::StatusCode to_absl_code(grpc::StatusCode code) {
  for (const CodePair& pair : kCodes) {
    if (pair.grpc_code == code) return pair.absl_code;
  }
  return absl::StatusCode::kUnknown;
}

absl::string_view code_name(absl::StatusCode code) {
  for (const CodePair& pair : kCodes) {
    if (pair.absl_code == code) return pair.name;
  }
  return "UNKNOWN";
}

absl::Status with_field(absl::Status status, absl::string_view field, absl::string_view why) {
  google::rpc::BadRequest detail;
  auto* violation = detail.add_field_violations();
  violation->set_field(cut(field, kMaxTextBytes));
  violation->set_description(cut(why, kMaxTextBytes));
  return with_detail(std::move(status), detail);
}

absl::Status invalid_field(absl::string_view field, absl::string_view why) {
  return with_field(absl::InvalidArgumentError(absl::StrCat(field, ": ", why)), field, why);
}

absl::Status unserved_field(absl::string_view field, absl::string_view why) {
  return with_field(absl::UnimplementedError(absl::StrCat(field, ": ", why)), field, why);
}

absl::Status with_retry(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo detail;
  const int64_t nanos = absl::ToInt64Nanoseconds(std::max(delay, absl::ZeroDuration()));
  detail.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  detail.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return with_detail(std::move(status), detail);
}

absl::Status with_reason(absl::Status status, absl::string_view reason) {
  google::rpc::ErrorInfo detail;
  detail.set_domain("lckv");
  detail.set_reason(cut(reason, kMaxTextBytes));
  return with_detail(std::move(status), detail);
}

absl::Status with_interrupted(absl::Status status, const v1::Interrupted& interrupted) {
  return with_detail(std::move(status), interrupted);
}

std::optional<std::string> violated_field(const absl::Status& status) {
  const auto detail = detail_of<google::rpc::BadRequest>(status);
  if (!detail || detail->field_violations().empty()) return std::nullopt;
  return detail->field_violations(0).field();
}

std::optional<absl::Duration> retry_delay(const absl::Status& status) {
  const auto detail = detail_of<google::rpc::RetryInfo>(status);
  if (!detail) return std::nullopt;
  return absl::Seconds(detail->retry_delay().seconds()) +
         absl::Nanoseconds(detail->retry_delay().nanos());
}

std::optional<std::string> error_reason(const absl::Status& status) {
  const auto detail = detail_of<google::rpc::ErrorInfo>(status);
  if (!detail) return std::nullopt;
  return detail->reason();
}

std::optional<v1::Interrupted> interrupted_progress(const absl::Status& status) {
  return detail_of<v1::Interrupted>(status);
}

grpc::Status to_grpc_status(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = cut(status.message(), kMaxMessageBytes);
  google::rpc::Status details;
  details.set_code(static_cast<int>(to_grpc_code(status.code())));
  details.set_message(message);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& value) {
    // 16 bytes cover the tags and lengths around one detail.
    if (details.ByteSizeLong() + url.size() + value.size() + 16 >= kMaxDetailBytes) return;
    google::protobuf::Any* detail = details.add_details();
    detail->set_type_url(std::string(url));
    detail->set_value(std::string(value));
  });
  if (details.details().empty()) return grpc::Status(to_grpc_code(status.code()), message);
  return grpc::Status(to_grpc_code(status.code()), message, details.SerializeAsString());
}

absl::Status to_absl_status(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(to_absl_code(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
    }
  }
  return result;
}

void add_retry_trailer(const absl::Status& status, grpc::ServerContextBase& call) {
  if (const auto delay = retry_delay(status)) {
    call.AddTrailingMetadata("grpc-retry-pushback-ms",
                             absl::StrCat(absl::ToInt64Milliseconds(*delay)));
  }
}

}  // namespace lckv
