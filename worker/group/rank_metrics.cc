#include "worker/group/rank_metrics.h"

#include "absl/strings/str_cat.h"

namespace lckv {

RankMetrics::RankMetrics(prometheus::Registry& registry, const std::string& model_name, int rank) {
  const prometheus::Labels labels = {{"model_name", model_name}, {"rank", absl::StrCat(rank)}};
  const auto gauge = [&](const char* name, const char* help) {
    return &prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  };
  const auto counter = [&](const char* name, const char* help) {
    return &prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  };
  step_ = gauge("lckv_rank_step", "The step in progress, or the last one.");
  turn_age_ = gauge("lckv_rank_step_age_seconds",
                    "Since the rank's loop began its turn; idle loops turn too.");
  waiting_ = counter("lckv_rank_wait_seconds_total",
                     "Time without a step: for work on a leader, else for the leader's plans.");
  collectives_ = counter("lckv_rank_collective_seconds_total",
                         "Time in collectives, which includes waiting for other ranks.");
  num_collectives_ = counter("lckv_rank_collectives_total", "Collectives that were called.");
}

void RankMetrics::observe(const RankProgress::View& view) {
  step_->Set(static_cast<double>(view.step));
  turn_age_->Set(absl::ToDoubleSeconds(view.turn_age));
  waiting_->Increment(absl::ToDoubleSeconds(view.waiting - last_.waiting));
  collectives_->Increment(absl::ToDoubleSeconds(view.collectives - last_.collectives));
  num_collectives_->Increment(static_cast<double>(view.num_collectives - last_.num_collectives));
  last_ = view;
}

}  // namespace lckv
