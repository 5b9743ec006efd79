// lckv_tls_not_after_seconds: when the certificates that a process shows expire, read from their
// files at each scrape; 0 where a file holds none.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"

namespace lckv {

// Label and path of a PEM file, leaf first. Those without a path are left out.
using CertificateFiles = std::vector<std::pair<std::string, std::string>>;

// Owner: the MetricsServer. Called on the exposer's threads.
class CertificateMetrics final : public prometheus::Collectable {
 public:
  explicit CertificateMetrics(const CertificateFiles& files);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  CertificateFiles files_;
};

}  // namespace lckv
