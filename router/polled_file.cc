#include "router/polled_file.h"

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(1);

}  // namespace

absl::Status PolledFile::load() {
  const auto content = file_.poll();
  if (!content) return absl::OkStatus();
  absl::Status status = take_over(*content);
  stale_ = !status.ok();
  return status;
}

absl::Status PolledFile::take_over(const absl::StatusOr<std::string>& content) {
  if (!content.ok()) return content.status();
  if (absl::Status status = take_(*content); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(file_.path(), ": ", status.message()));
  }
  return absl::OkStatus();
}

void PolledFile::poll(absl::Time now) {
  if (now < due_) return;
  due_ = now + kInterval;
  if (absl::Status status = load(); !status.ok()) {
    spdlog::error("{}; what it said before still holds", std::string(status.message()));
  }
}

}  // namespace lckv
