#include "worker/model/load_progress.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_format.h"

namespace lckv {
namespace {

constexpr int32_t kBarWidth = 40;
constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

}  // namespace

LoadProgress LoadProgress::to_stderr(std::string title, uint64_t total_bytes) {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  return LoadProgress({.title = std::move(title),
                       .total_bytes = total_bytes,
                       .terminal = terminal,
                       .write = [terminal](std::string_view text) {
                         if (terminal) {
                           std::fwrite(text.data(), 1, text.size(), stderr);
                         } else {
                           spdlog::info("{}", std::string(text));
                         }
                       }});
}

void LoadProgress::update(uint64_t done_bytes) {
  const uint64_t done = std::min(done_bytes, options_.total_bytes);
  const double share = options_.total_bytes == 0
                           ? 1.0
                           : static_cast<double>(done) / static_cast<double>(options_.total_bytes);
  const auto steps = static_cast<int32_t>(share * (options_.terminal ? 100 : 10));
  if (steps <= shown_) return;
  shown_ = steps;
  const double done_gib = static_cast<double>(done) / kGiB;
  const double total_gib = static_cast<double>(options_.total_bytes) / kGiB;
  if (!options_.terminal) {
    options_.write(absl::StrFormat("%s: %d %% of %.2f GiB", options_.title, steps * 10, total_gib));
    return;
  }
  std::string bar(kBarWidth, ' ');
  std::fill_n(bar.begin(), static_cast<int32_t>(share * kBarWidth), '=');
  options_.write(absl::StrFormat("\r%s [%s] %3d %% %.2f/%.2f GiB%s", options_.title, bar, steps,
                                 done_gib, total_gib, steps == 100 ? "\n" : ""));
}

}  // namespace lckv
