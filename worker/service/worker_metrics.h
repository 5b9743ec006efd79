// WorkerMetrics: what a worker tells Prometheus: vLLM's names, labels and bucket edges for what
// both have (finer edges added below them), so that existing dashboards and autoscalers work, and
// lckv_* for the rest.
//
// Owner: main. observe() and the calls about sequences come from under EngineService's lock;
// set_*() from main. Scrapes read the registry, whose families lock for themselves.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "worker/engine/engine.h"

namespace lckv {

// The times of one sequence's life at this worker.
struct SequenceTimes {
  absl::Time arrived;
  absl::Time started = absl::InfiniteFuture();
  absl::Time first_token;
  absl::Time last_token;
  int32_t num_tokens = 0;  // generated here
  int32_t num_cached = 0;  // prompt tokens that need not run
};

// Fixed once a model is loaded.
struct KvGeometry {
  int32_t block_tokens = 0;
  int64_t capacity_tokens = 0;
  double bytes_per_token = 0;
  int32_t num_layers = 0;
  int32_t num_cached_layers = 0;
  int32_t max_context = 0;     // tokens
  int64_t max_row_layers = 0;  // of a step
  int32_t max_running = 0;     // sequences, as the next
  int32_t max_waiting = 0;
};

class WorkerMetrics {
 public:
  WorkerMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
                const std::string& version);

  void set_geometry(const KvGeometry& geometry);
  void set_weights_load(absl::Duration duration);
  void set_ready(absl::Duration since_start);
  // How long work has waited without a step.
  void set_step_age(absl::Duration age);
  // Whether what the files of --tls-* say now could not be taken over.
  void set_tls_stale(bool stale);

  void observe(const StepReport& report);
  void started(SequenceTimes& times, const SequenceEvent& event, absl::Time now);
  void token(SequenceTimes& times, const SequenceSpec& spec, absl::Time now);
  void finished(const SequenceTimes& times, const SequenceSpec& spec, const SequenceEvent& event,
                absl::Time now);
  void cancelled();

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  using Labels = prometheus::Labels;
  // With the labels that every metric has, and `more`.
  prometheus::Gauge& gauge(const std::string& name, const std::string& help, Labels more = {});
  prometheus::Counter& counter(const std::string& name, const std::string& help, Labels more = {});
  prometheus::Histogram& histogram(const std::string& name, const std::string& help,
                                   const prometheus::Histogram::BucketBoundaries& edges,
                                   Labels more = {});
  void make_request_metrics();
  void make_engine_metrics();
  void observe_prompt(const SequenceTimes& times, const SequenceSpec& spec);

  // kPhases of worker_metrics.cc, in its order.
  static constexpr size_t kNumPhases = 7;

  const std::shared_ptr<prometheus::Registry> registry_;
  const Labels labels_;
  uint64_t last_step_ = 0;
  SchedulerLoad last_load_;

  prometheus::Gauge* running_;
  prometheus::Gauge* waiting_;
  prometheus::Gauge* kv_usage_;
  prometheus::Gauge* free_blocks_;
  prometheus::Gauge* used_blocks_;
  prometheus::Gauge* cached_blocks_;
  prometheus::Gauge* free_host_blocks_;
  prometheus::Gauge* used_host_blocks_;
  prometheus::Gauge* free_staging_rows_;
  prometheus::Gauge* step_age_;
  prometheus::Gauge* tls_stale_;
  prometheus::Counter* preemptions_;
  prometheus::Counter* swapped_out_;
  prometheus::Counter* prompt_tokens_;
  prometheus::Counter* prompt_tokens_computed_;
  prometheus::Counter* prompt_tokens_cached_;
  prometheus::Counter* prefix_queries_;
  prometheus::Counter* prefix_hits_;
  prometheus::Counter* generation_tokens_;
  prometheus::Counter* row_walks_;
  prometheus::Counter* prompt_rows_;
  prometheus::Counter* steps_;
  prometheus::Counter* row_layers_;
  prometheus::Counter* stopped_;
  prometheus::Counter* length_;
  prometheus::Counter* aborted_;
  prometheus::Histogram* first_token_;
  prometheus::Histogram* inter_token_;
  prometheus::Histogram* per_output_token_;
  prometheus::Histogram* whole_;
  prometheus::Histogram* queue_;
  prometheus::Histogram* inference_;
  prometheus::Histogram* prefill_;
  prometheus::Histogram* decode_;
  prometheus::Histogram* iteration_tokens_;
  prometheus::Histogram* batch_size_;
  prometheus::Histogram* walks_;
  // Their edges end with the context's length: made by set_geometry.
  prometheus::Histogram* request_prompt_ = nullptr;
  prometheus::Histogram* request_generation_ = nullptr;
  prometheus::Histogram* request_max_generation_ = nullptr;
  prometheus::Histogram* request_max_tokens_ = nullptr;
  std::array<prometheus::Histogram*, kNumPhases> phases_;
};

}  // namespace lckv
