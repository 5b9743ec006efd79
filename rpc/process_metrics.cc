#include "rpc/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace lckv {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

std::string content(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The fields of /proc/self/stat after the program's name, which may hold spaces; numbered as in
// proc(5), from 3 on.
double stat_field(const std::vector<std::string>& fields, size_t number) {
  double value = 0;
  if (number - 3 < fields.size() && absl::SimpleAtod(fields[number - 3], &value)) return value;
  return 0;
}

// Seconds since the epoch.
double boot_time() {
  for (const absl::string_view line : absl::StrSplit(content("/proc/stat"), '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    double value = 0;
    if (words[0] == "btime" && words.size() > 1 && absl::SimpleAtod(words[1], &value)) {
      return value;
    }
  }
  return 0;
}

MetricFamily family(const char* name, const char* help, MetricType type, double value) {
  prometheus::ClientMetric metric;
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return {name, help, type, {metric}};
}

}  // namespace

std::vector<MetricFamily> ProcessMetrics::Collect() const {
  std::vector<MetricFamily> families;
  const auto gauge = [&](const char* name, const char* help, double value) {
    families.push_back(family(name, help, MetricType::Gauge, value));
  };
  const std::string stat = content("/proc/self/stat");
  if (const size_t end = stat.rfind(") "); end != std::string::npos) {
    const std::vector<std::string> fields = absl::StrSplit(stat.substr(end + 2), ' ');
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    const auto page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
    families.push_back(family("process_cpu_seconds_total", "CPU time used.", MetricType::Counter,
                              (stat_field(fields, 14) + stat_field(fields, 15)) / ticks));
    gauge("process_threads", "Threads.", stat_field(fields, 20));
    gauge("process_start_time_seconds", "Start of the process since the epoch.",
          boot_time() + stat_field(fields, 22) / ticks);
    gauge("process_resident_memory_bytes", "Resident memory.", stat_field(fields, 24) * page_bytes);
  }
  std::error_code error;
  double open = 0;
  std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
  for (; !error && descriptors != std::filesystem::directory_iterator();
       descriptors.increment(error)) {
    ++open;
  }
  if (!error) gauge("process_open_fds", "Open file descriptors.", open);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    gauge("process_max_fds", "Most file descriptors that may be open.",
          static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace lckv
