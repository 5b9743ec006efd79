// RankMetrics: lckv_rank_*, what every rank tells Prometheus of itself.
//
// Owner: main, whose thread calls observe(). Scrapes read the registry.
#pragma once

#include <memory>
#include <string>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/registry.h"
#include "worker/engine/rank_progress.h"

namespace lckv {

class RankMetrics {
 public:
  RankMetrics(prometheus::Registry& registry, const std::string& model_name, int rank);
  void observe(const RankProgress::View& view);

 private:
  prometheus::Gauge* step_;
  prometheus::Gauge* turn_age_;
  prometheus::Counter* waiting_;
  prometheus::Counter* collectives_;
  prometheus::Counter* num_collectives_;
  RankProgress::View last_;
};

}  // namespace lckv
