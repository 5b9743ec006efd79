// LoadProgress: tells how far loading is: a bar on a terminal, else one log line for each tenth.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace lckv {

struct LoadProgressOptions {
  std::string title;  // "Loading weights"
  uint64_t total_bytes = 0;
  bool terminal = false;
  // Takes text as it is to be written on a terminal, and whole lines without their end otherwise.
  std::function<void(std::string_view)> write;
};

// Owner and only thread: whoever loads.
class LoadProgress {
 public:
  explicit LoadProgress(LoadProgressOptions options) : options_(std::move(options)) {}
  // A bar where standard error is a terminal, else the log.
  static LoadProgress to_stderr(std::string title, uint64_t total_bytes);

  // `done_bytes` so far; never falls.
  void update(uint64_t done_bytes);

 private:
  LoadProgressOptions options_;
  int32_t shown_ = -1;  // percent on a terminal, tenths otherwise
};

}  // namespace lckv
