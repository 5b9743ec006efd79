// A file of settings that is taken over whenever it changes and is valid.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/watched_file.h"

namespace lckv {

// Owner: what the settings are of. One thread.
class PolledFile {
 public:
  // `take` parses and keeps a content, or leaves everything as it was and says what is wrong.
  PolledFile(const std::string& path, std::function<absl::Status(const std::string&)> take)
      : file_(path), take_(std::move(take)) {}

  // The first read. Errors name the file.
  absl::Status load();
  // Looks at the file where a second has passed; what is wrong with it is logged, once.
  void poll(absl::Time now);
  // What it says now could not be taken over: an older state holds.
  bool stale() const { return stale_; }

 private:
  absl::Status take_over(const absl::StatusOr<std::string>& content);

  WatchedFile file_;
  const std::function<absl::Status(const std::string&)> take_;
  absl::Time due_ = absl::InfinitePast();
  bool stale_ = false;
};

}  // namespace lckv
