#include "kernels/device_failure.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

struct Listener {
  std::mutex mutex;
  std::function<void(const std::string&)> report;
};
// Never destroyed: devices fail at the end of the process too.
Listener& listener() {
  static Listener& listener = *new Listener();
  return listener;
}

}  // namespace

void on_device_failure(std::function<void(const std::string& line)> report) {
  const std::lock_guard lock(listener().mutex);
  listener().report = std::move(report);
}

void end_on_device_failure(absl::string_view library, absl::string_view operation,
                           absl::string_view why) {
  const std::string line = absl::StrCat(library, " error in ", operation, ": ", why);
  std::function<void(const std::string&)> report;
  {
    const std::lock_guard lock(listener().mutex);
    report = listener().report;
  }
  if (report) {
    report(line);
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::_Exit(1);
}

}  // namespace lckv
