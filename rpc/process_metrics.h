// What Prometheus expects every process to tell of itself, read from /proc at each scrape:
// process_start_time_seconds, process_cpu_seconds_total, process_resident_memory_bytes,
// process_open_fds, process_max_fds, process_threads.
#pragma once

#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"

namespace lckv {

// Owner: the MetricsServer. Called on the exposer's threads. What cannot be read is left out.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace lckv
