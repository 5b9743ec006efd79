// lckv_router_*: every metric of the router, declared in one place.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "router/fleet/replica_set.h"

namespace lckv {

// Of one served model. Label values come from workers, never from clients.
struct ModelMetrics {
  prometheus::Gauge* inflight;
  prometheus::Gauge* queue_depth;
  prometheus::Histogram* queue_wait_seconds;
  prometheus::Histogram* ttft_seconds;
  prometheus::Histogram* itl_seconds;
  prometheus::Histogram* e2e_seconds;
  prometheus::Counter* prompt_tokens;
  prometheus::Counter* cached_tokens;
  prometheus::Counter* completion_tokens;
  prometheus::Counter* resumes;
  prometheus::Counter* retries;
  prometheus::Histogram* resume_gap_seconds;
  std::vector<prometheus::Gauge*> replicas;  // by state, in the order of ReplicaState
};

// Of one tenant of the tenants file, or of "other".
struct TenantMetrics {
  prometheus::Gauge* running;
  prometheus::Counter* tokens;
  std::map<std::string, prometheus::Counter*> rejected;  // by limit
};

// What a gauge beside it is a part of.
struct RouterLimits {
  size_t queue = 0;     // calls that wait
  size_t inflight = 0;  // Generate calls
};

enum class OverheadStage { kParse, kTokenize, kRoute, kDetokenize };

// Owner: the router. Thread-safe.
class RouterMetrics {
 public:
  RouterMetrics(const std::string& policy, const RouterLimits& limits);

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

  // `name` is a served model's, or empty where a request named none that is.
  const ModelMetrics& model(const std::string& name);
  const TenantMetrics& tenant(const std::string& label);
  void count_request(const std::string& model, absl::string_view method, absl::StatusCode code);
  // Refusals by their cause: the code, "slow_reader" or "poison".
  void count_rejected(absl::string_view reason);
  void count_cancelled(bool by_deadline);
  void count_frame(bool received);
  // A call found a replica at once, or after waiting.
  void count_route(bool waited);
  void observe_overhead(OverheadStage stage, double seconds);
  // `file` is what is watched: "models", "tokens", "tenants". Stale: its last state could not be
  // taken over.
  void set_file_stale(const std::string& file, bool stale);
  // The series of addresses that are not in the set end. One thread.
  void set_replicas(const ReplicaSet& set);

 private:
  void count_replicas(const ReplicaSet& set);

  const std::shared_ptr<prometheus::Registry> registry_;
  const std::string policy_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Gauge>& inflight_;
  prometheus::Family<prometheus::Gauge>& queue_depth_;
  prometheus::Family<prometheus::Histogram>& queue_wait_;
  prometheus::Family<prometheus::Histogram>& ttft_;
  prometheus::Family<prometheus::Histogram>& itl_;
  prometheus::Family<prometheus::Histogram>& e2e_;
  prometheus::Family<prometheus::Histogram>& overhead_;
  prometheus::Family<prometheus::Counter>& tokens_;
  prometheus::Family<prometheus::Counter>& routes_;
  prometheus::Family<prometheus::Gauge>& worker_up_;
  prometheus::Family<prometheus::Gauge>& worker_state_;
  prometheus::Family<prometheus::Counter>& cancelled_;
  prometheus::Family<prometheus::Counter>& rejected_;
  prometheus::Family<prometheus::Counter>& resumes_;
  prometheus::Family<prometheus::Counter>& retries_;
  prometheus::Family<prometheus::Counter>& frames_;
  prometheus::Family<prometheus::Histogram>& resume_gap_;
  prometheus::Family<prometheus::Gauge>& replicas_;
  prometheus::Family<prometheus::Gauge>& file_stale_;
  prometheus::Family<prometheus::Gauge>& tenant_running_;
  prometheus::Family<prometheus::Counter>& tenant_rejected_;
  prometheus::Family<prometheus::Counter>& tenant_tokens_;
  std::vector<prometheus::Histogram*> overhead_by_stage_;
  prometheus::Counter* frames_in_;
  prometheus::Counter* frames_out_;

  // Of one address: up, then one per state.
  std::map<std::string, std::vector<prometheus::Gauge*>> workers_;  // set_replicas' own
  std::mutex mutex_;                                                // guards what follows
  std::map<std::string, ModelMetrics> models_;
  std::map<std::string, TenantMetrics> tenants_;
};

}  // namespace lckv
