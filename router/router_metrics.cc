#include "router/router_metrics.h"

#include <array>

#include "absl/strings/ascii.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;

const prometheus::Histogram::BucketBoundaries kWaitBuckets = {
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300};
const prometheus::Histogram::BucketBoundaries kTokenBuckets = {
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075,
    0.1,    0.15,  0.2,   0.3,   0.5,   0.75,   1,    2.5,   5,     10};
const prometheus::Histogram::BucketBoundaries kOverheadBuckets = {
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.05, 0.1, 1};

constexpr std::array<const char*, 3> kMethods = {"Generate", "Tokenize", "Detokenize"};
constexpr std::array<const char*, 4> kStages = {"parse", "tokenize", "route", "detokenize"};
constexpr std::array<const char*, 6> kStates = {"connecting", "loading",      "ready",
                                                "draining",   "unresponsive", "lost"};
constexpr std::array<const char*, 2> kTenantLimits = {"concurrent_requests", "tokens_per_minute"};

prometheus::Family<prometheus::Counter>& counter(prometheus::Registry& registry, const char* name,
                                                 const char* help) {
  return BuildCounter().Name(name).Help(help).Register(registry);
}

prometheus::Family<prometheus::Gauge>& gauge(prometheus::Registry& registry, const char* name,
                                             const char* help) {
  return BuildGauge().Name(name).Help(help).Register(registry);
}

prometheus::Family<prometheus::Histogram>& histogram(prometheus::Registry& registry,
                                                     const char* name, const char* help) {
  return BuildHistogram().Name(name).Help(help).Register(registry);
}

std::string lower(absl::string_view text) { return absl::AsciiStrToLower(text); }

}  // namespace

RouterMetrics::RouterMetrics(const std::string& policy, const RouterLimits& limits)
    : registry_(std::make_shared<prometheus::Registry>()),
      policy_(policy),
      requests_(counter(*registry_, "lckv_router_requests_total", "Ended calls")),
      inflight_(gauge(*registry_, "lckv_router_inflight", "Generate calls that have not ended")),
      queue_depth_(gauge(*registry_, "lckv_router_queue_depth",
                         "Calls that wait because no replica takes them")),
      queue_wait_(histogram(*registry_, "lckv_router_queue_wait_seconds",
                            "From arrival until a replica took the call")),
      ttft_(histogram(*registry_, "lckv_router_ttft_seconds",
                      "From arrival to the first token of each choice")),
      itl_(histogram(*registry_, "lckv_router_itl_seconds",
                     "Between successive deliveries of tokens of one choice")),
      e2e_(histogram(*registry_, "lckv_router_e2e_seconds", "From arrival to the end of a call")),
      overhead_(histogram(*registry_, "lckv_router_overhead_seconds",
                          "Own work per call (parse, tokenize, route) and per step of a choice")),
      tokens_(counter(*registry_, "lckv_router_tokens_total", "Tokens by kind")),
      routes_(counter(*registry_, "lckv_router_route_total", "Calls given to a replica")),
      worker_up_(gauge(*registry_, "lckv_router_worker_up", "1 where the replica is ready")),
      worker_state_(gauge(*registry_, "lckv_router_worker_state", "1 for the replica's state")),
      cancelled_(counter(*registry_, "lckv_router_cancelled_total",
                         "Generate calls ended by the client or its deadline")),
      rejected_(
          counter(*registry_, "lckv_router_rejected_total",
                  "Generate calls ended with an error, but not by the client or its deadline")),
      resumes_(counter(*registry_, "lckv_router_resumes_total",
                       "Choices that went on at another replica")),
      retries_(counter(*registry_, "lckv_router_retries_total",
                       "Choices that were placed again before anything was delivered")),
      frames_(counter(*registry_, "lckv_router_frames_total", "Frames to and from replicas")),
      resume_gap_(histogram(*registry_, "lckv_router_resume_gap_seconds",
                            "Between the tokens of a choice that moved to another replica")),
      replicas_(gauge(*registry_, "lckv_router_replicas", "Replicas of the model by state")),
      file_stale_(gauge(*registry_, "lckv_router_file_stale",
                        "1 where a file's last state could not be taken over")),
      tenant_running_(gauge(*registry_, "lckv_router_tenant_running",
                            "Generate calls of the tenant that have not ended")),
      tenant_rejected_(counter(*registry_, "lckv_router_tenant_rejected_total",
                               "Generate calls over a limit of their tenant")),
      tenant_tokens_(counter(*registry_, "lckv_router_tenant_tokens_total",
                             "Tokens taken from the tenant's limit")),
      frames_in_(&frames_.Add({{"dir", "in"}})),
      frames_out_(&frames_.Add({{"dir", "out"}})) {
  for (const char* stage : kStages) {
    overhead_by_stage_.push_back(&overhead_.Add({{"stage", stage}}, kOverheadBuckets));
  }
  for (const char* by : {"client", "deadline"}) cancelled_.Add({{"by", by}});
  for (const char* reason : {"at_once", "after_wait"}) {
    routes_.Add({{"policy", policy_}, {"reason", reason}});
  }
  for (int code = 1; code <= 16; ++code) {
    const auto reason = static_cast<absl::StatusCode>(code);
    if (reason == absl::StatusCode::kCancelled) continue;
    rejected_.Add({{"reason", lower(code_name(reason))}});
  }
  for (const char* reason : {"slow_reader", "poison"}) rejected_.Add({{"reason", reason}});
  auto& limit = gauge(*registry_, "lckv_router_limit", "Most calls that may wait, or be open");
  limit.Add({{"of", "queue"}}).Set(static_cast<double>(limits.queue));
  limit.Add({{"of", "inflight"}}).Set(static_cast<double>(limits.inflight));
  gauge(*registry_, "lckv_build_info", "What is running; always 1")
      .Add({{"version", LCKV_VERSION}})
      .Set(1);
  model("");
}

const ModelMetrics& RouterMetrics::model(const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto it = models_.find(name);
  if (it != models_.end()) return it->second;
  const prometheus::Labels labels = {{"model_name", name}};
  const auto tokens = [&](const char* kind) {
    return &tokens_.Add({{"model_name", name}, {"kind", kind}});
  };
  for (const char* method : kMethods) {
    for (int code = 0; code <= 16; ++code) {
      const auto name_of = code_name(static_cast<absl::StatusCode>(code));
      requests_.Add({{"model_name", name}, {"method", method}, {"code", std::string(name_of)}});
    }
  }
  std::vector<prometheus::Gauge*> replicas;
  if (!name.empty()) {
    for (const char* state : kStates) {
      replicas.push_back(&replicas_.Add({{"model_name", name}, {"state", state}}));
    }
  }
  return models_
      .emplace(name, ModelMetrics{.inflight = &inflight_.Add(labels),
                                  .queue_depth = &queue_depth_.Add(labels),
                                  .queue_wait_seconds = &queue_wait_.Add(labels, kWaitBuckets),
                                  .ttft_seconds = &ttft_.Add(labels, kWaitBuckets),
                                  .itl_seconds = &itl_.Add(labels, kTokenBuckets),
                                  .e2e_seconds = &e2e_.Add(labels, kWaitBuckets),
                                  .prompt_tokens = tokens("prompt"),
                                  .cached_tokens = tokens("cached"),
                                  .completion_tokens = tokens("completion"),
                                  .resumes = &resumes_.Add(labels),
                                  .retries = &retries_.Add(labels),
                                  .resume_gap_seconds = &resume_gap_.Add(labels, kWaitBuckets),
                                  .replicas = std::move(replicas)})
      .first->second;
}

const TenantMetrics& RouterMetrics::tenant(const std::string& label) {
  std::lock_guard lock(mutex_);
  const auto it = tenants_.find(label);
  if (it != tenants_.end()) return it->second;
  const prometheus::Labels labels = {{"tenant", label}};
  TenantMetrics made = {.running = &tenant_running_.Add(labels),
                        .tokens = &tenant_tokens_.Add(labels)};
  for (const char* limit : kTenantLimits) {
    made.rejected[limit] = &tenant_rejected_.Add({{"tenant", label}, {"limit", limit}});
  }
  return tenants_.emplace(label, std::move(made)).first->second;
}

void RouterMetrics::count_request(const std::string& model, absl::string_view method,
                                  absl::StatusCode code) {
  requests_
      .Add({{"model_name", model},
            {"method", std::string(method)},
            {"code", std::string(code_name(code))}})
      .Increment();
}

void RouterMetrics::count_rejected(absl::string_view reason) {
  rejected_.Add({{"reason", lower(reason)}}).Increment();
}

void RouterMetrics::count_cancelled(bool by_deadline) {
  cancelled_.Add({{"by", by_deadline ? "deadline" : "client"}}).Increment();
}

void RouterMetrics::count_frame(bool received) {
  (received ? frames_in_ : frames_out_)->Increment();
}

void RouterMetrics::count_route(bool waited) {
  routes_.Add({{"policy", policy_}, {"reason", waited ? "after_wait" : "at_once"}}).Increment();
}

void RouterMetrics::observe_overhead(OverheadStage stage, double seconds) {
  overhead_by_stage_[static_cast<size_t>(stage)]->Observe(seconds);
}

void RouterMetrics::set_file_stale(const std::string& file, bool stale) {
  file_stale_.Add({{"file", file}}).Set(stale ? 1 : 0);
}

void RouterMetrics::count_replicas(const ReplicaSet& set) {
  std::map<std::string, std::vector<int>> counts;
  const std::lock_guard lock(mutex_);
  for (const auto& [name, metrics] : models_) counts[name].resize(metrics.replicas.size());
  for (const ReplicaView& replica : set.replicas) {
    // Until it has said what it serves, it counts for the model that is expected of it.
    const std::string& name = replica.model ? replica.model->hello.model() : replica.expected_model;
    const auto it = counts.find(name);
    if (it != counts.end() && !it->second.empty()) ++it->second[static_cast<size_t>(replica.state)];
  }
  for (const auto& [name, of_model] : counts) {
    for (size_t i = 0; i < of_model.size(); ++i) models_.at(name).replicas[i]->Set(of_model[i]);
  }
}

void RouterMetrics::set_replicas(const ReplicaSet& set) {
  for (const std::string& name : set.expected_models) model(name);
  auto gone = std::move(workers_);
  workers_.clear();
  for (const ReplicaView& replica : set.replicas) {
    if (replica.model) model(replica.model->hello.model());
    std::vector<prometheus::Gauge*>& gauges = workers_[replica.address];
    if (const auto known = gone.find(replica.address); known != gone.end()) {
      gauges = std::move(known->second);
      gone.erase(known);
    }
    if (gauges.empty()) {
      gauges.push_back(&worker_up_.Add({{"worker", replica.address}}));
      for (const char* state : kStates) {
        gauges.push_back(&worker_state_.Add({{"worker", replica.address}, {"state", state}}));
      }
    }
    gauges[0]->Set(replica.state == ReplicaState::kReady);
    for (size_t i = 0; i < kStates.size(); ++i) {
      gauges[i + 1]->Set(static_cast<size_t>(replica.state) == i);
    }
  }
  count_replicas(set);
  for (const auto& [address, gauges] : gone) {
    worker_up_.Remove(gauges[0]);
    for (size_t i = 1; i < gauges.size(); ++i) worker_state_.Remove(gauges[i]);
  }
}

}  // namespace lckv
