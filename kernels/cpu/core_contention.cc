#include "kernels/cpu/core_contention.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace lckv {
namespace {

constexpr std::chrono::milliseconds kInterval(100);
constexpr std::chrono::seconds kCalm(1);
// Of the threads' time.
constexpr double kHigh = 0.2;
constexpr double kLow = 0.05;

}  // namespace

CoreContention::~CoreContention() {
  for (const int file : files_) close(file);
}

void CoreContention::watch_this_thread() {
  const std::string path = "/proc/self/task/" + std::to_string(syscall(SYS_gettid)) + "/schedstat";
  files_.push_back(open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

int64_t CoreContention::waited() const {
  int64_t total = 0;
  for (const int file : files_) {
    char text[128] = {};
    long long ran = 0;
    long long waited = 0;
    if (file < 0 || pread(file, text, sizeof(text) - 1, 0) <= 0 ||
        std::sscanf(text, "%lld %lld", &ran, &waited) != 2) {
      return -1;
    }
    total += waited;
  }
  return total;
}

bool CoreContention::is_high() {
  const auto now = std::chrono::steady_clock::now();
  const auto passed = now - looked_;
  if (passed < kInterval) return high_;
  const int64_t total = waited();
  const double share = static_cast<double>(total - waited_before_) /
                       (std::chrono::duration<double, std::nano>(passed).count() *
                        static_cast<double>(files_.size()));
  looked_ = now;
  waited_before_ = total;
  if (total < 0 || share > (high_ ? kLow : kHigh)) high_until_ = now + kCalm;
  high_ = now < high_until_;
  return high_;
}

}  // namespace lckv
