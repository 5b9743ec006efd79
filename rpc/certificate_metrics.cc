#include "rpc/certificate_metrics.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <ctime>
#include <iterator>
#include <memory>

#include "rpc/watched_file.h"

namespace lckv {
namespace {

double not_after(const std::string& path) {
  const auto content = read_small_file(path);
  if (!content.ok()) return 0;
  const std::unique_ptr<BIO, decltype(&BIO_free)> bytes(
      BIO_new_mem_buf(content->data(), static_cast<int>(content->size())), &BIO_free);
  const std::unique_ptr<X509, decltype(&X509_free)> leaf(
      PEM_read_bio_X509(bytes.get(), nullptr, nullptr, nullptr), &X509_free);
  ERR_clear_error();
  std::tm time{};
  if (leaf == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(leaf.get()), &time) != 1) return 0;
  return static_cast<double>(timegm(&time));
}

}  // namespace

CertificateMetrics::CertificateMetrics(const CertificateFiles& files) {
  std::copy_if(files.begin(), files.end(), std::back_inserter(files_),
               [](const auto& file) { return !file.second.empty(); });
}

std::vector<prometheus::MetricFamily> CertificateMetrics::Collect() const {
  if (files_.empty()) return {};
  prometheus::MetricFamily family{
      .name = "lckv_tls_not_after_seconds",
      .help = "End of a certificate's validity since the epoch; 0: the file holds none.",
      .type = prometheus::MetricType::Gauge,
      .metric = {}};
  for (const auto& [name, path] : files_) {
    prometheus::ClientMetric metric;
    metric.label = {{"certificate", name}};
    metric.gauge.value = not_after(path);
    family.metric.push_back(std::move(metric));
  }
  return {std::move(family)};
}

}  // namespace lckv
