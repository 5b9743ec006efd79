#include "worker/service/worker_metrics.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

using Edges = prometheus::Histogram::BucketBoundaries;

constexpr std::array<const char*, 7> kPhases = {"plan",   "copies", "ordinary", "walks",
                                                "logits", "sample", "rest"};

// The first edges are ours, those from .001 (.01, .3) on vLLM's.
const Edges& first_token_edges() {
  static const auto& edges =
      *new Edges{.0005, .001, .002, .005, .01, .02, .04, .06, .08, .1,  .25, .5,
                 .75,   1,    2.5,  5,    7.5, 10,  20,  40,  80,  160, 640, 2560};
  return edges;
}
const Edges& token_gap_edges() {
  static const auto& edges =
      *new Edges{.001, .002, .003, .004, .005, .006, .008, .01, .025, .05, .075, .1, .15,
                 .2,   .3,   .4,   .5,   .75,  1,    2.5,  5,   7.5,  10,  20,   40, 80};
  return edges;
}
const Edges& request_edges() {
  static const auto& edges =
      *new Edges{.0005, .001, .0025, .005, .01, .025, .05, .1, .2, .3,  .5,  .8,  1,   1.5,  2,
                 2.5,   5,    10,    15,   20,  30,   40,  50, 60, 120, 240, 480, 960, 1920, 7680};
  return edges;
}
const Edges& row_edges() {
  static const auto& edges =
      *new Edges{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  return edges;
}
const Edges& batch_edges() {
  static const auto& edges = *new Edges{0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  return edges;
}
const Edges& walk_edges() {
  static const auto& edges =
      *new Edges{0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 2048};
  return edges;
}
const Edges& phase_edges() {
  static const auto& edges = *new Edges{.00001, .00003, .0001, .0003, .001, .0025, .005, .01, .025,
                                        .05,    .1,     .25,   .5,    1,    2.5,   5,    10};
  return edges;
}

// 1, 2, 5, 10, ... up to `max`, as vLLM's.
Edges token_count_edges(int32_t max) {
  Edges edges;
  for (int64_t decade = 1;; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      if (decade * step > max) return edges;
      edges.push_back(static_cast<double>(decade * step));
    }
  }
}

double seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

void grow(prometheus::Counter& counter, uint64_t now, uint64_t before) {
  if (now > before) counter.Increment(static_cast<double>(now - before));
}

}  // namespace

WorkerMetrics::WorkerMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
                             const std::string& version)
    : registry_(std::move(registry)),
      labels_{{"model_name", std::move(model_name)}, {"engine", "0"}} {
  make_request_metrics();
  make_engine_metrics();
  gauge("lckv_build_info", "What is running; always 1.", {{"version", version}}).Set(1);
}

prometheus::Gauge& WorkerMetrics::gauge(const std::string& name, const std::string& help,
                                        Labels more) {
  return prometheus::BuildGauge()
      .Name(name)
      .Help(help)
      .Labels(labels_)
      .Register(*registry_)
      .Add(more);
}

prometheus::Counter& WorkerMetrics::counter(const std::string& name, const std::string& help,
                                            Labels more) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Labels(labels_)
      .Register(*registry_)
      .Add(more);
}

prometheus::Histogram& WorkerMetrics::histogram(const std::string& name, const std::string& help,
                                                const Edges& edges, Labels more) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Labels(labels_)
      .Register(*registry_)
      .Add(more, edges);
}

void WorkerMetrics::make_request_metrics() {
  running_ = &gauge("vllm:num_requests_running", "Sequences that take part in steps.");
  waiting_ = &gauge("vllm:num_requests_waiting", "Sequences that wait to be admitted.");
  prompt_tokens_ = &counter("vllm:prompt_tokens_total", "Prompt tokens of sequences.");
  const std::string by_source = "vllm:prompt_tokens_by_source_total";
  const std::string source_help = "Prompt tokens by where their keys and values came from.";
  prompt_tokens_computed_ = &counter(by_source, source_help, {{"source", "local_compute"}});
  prompt_tokens_cached_ = &counter(by_source, source_help, {{"source", "local_cache_hit"}});
  generation_tokens_ = &counter("vllm:generation_tokens_total", "Tokens generated.");
  const std::string success = "vllm:request_success_total";
  const std::string help = "Sequences that ended, by reason.";
  stopped_ = &counter(success, help, {{"finished_reason", "stop"}});
  length_ = &counter(success, help, {{"finished_reason", "length"}});
  aborted_ = &counter(success, help, {{"finished_reason", "abort"}});
  first_token_ = &histogram("vllm:time_to_first_token_seconds",
                            "From a sequence's arrival to its first token.", first_token_edges());
  inter_token_ = &histogram("vllm:inter_token_latency_seconds",
                            "Between successive tokens of a sequence.", token_gap_edges());
  per_output_token_ = &histogram("vllm:request_time_per_output_token_seconds",
                                 "Mean gap between a sequence's tokens.", token_gap_edges());
  whole_ =
      &histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", request_edges());
  queue_ = &histogram("vllm:request_queue_time_seconds", "From arrival to the first step.",
                      request_edges());
  inference_ = &histogram("vllm:request_inference_time_seconds", "From the first step to the end.",
                          request_edges());
  prefill_ = &histogram("vllm:request_prefill_time_seconds",
                        "From the first step to the first token.", request_edges());
  decode_ = &histogram("vllm:request_decode_time_seconds", "From the first token to the last.",
                       request_edges());
  walks_ =
      &histogram("lckv_prefill_walks",
                 "Walks over cyclic groups that a sequence's prompt took part in.", walk_edges());
}

void WorkerMetrics::make_engine_metrics() {
  kv_usage_ = &gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use; 1 is all.");
  preemptions_ = &counter("vllm:num_preemptions_total", "Sequences preempted.");
  swapped_out_ = &counter("lckv_swapped_out_total", "Of them, those copied to the host tier.");
  iteration_tokens_ = &histogram("vllm:iteration_tokens_total",
                                 "Rows of a step: prompt and generated tokens.", row_edges());
  const std::string blocks = "Blocks of the device's KV pool.";
  free_blocks_ = &gauge("lckv_kv_blocks", blocks, {{"state", "free"}});
  cached_blocks_ = &gauge("lckv_kv_cached_blocks",
                          "Free blocks that hold the beginning of a text until they are needed.");
  prefix_queries_ = &counter("vllm:prefix_cache_queries_total",
                             "Prompt tokens looked for in shared blocks, once a sequence.");
  prefix_hits_ = &counter("vllm:prefix_cache_hits_total", "Of them, those found.");
  used_blocks_ = &gauge("lckv_kv_blocks", blocks, {{"state", "used"}});
  const std::string host_blocks = "Blocks of the host tier.";
  free_host_blocks_ = &gauge("lckv_host_blocks", host_blocks, {{"state", "free"}});
  used_host_blocks_ = &gauge("lckv_host_blocks", host_blocks, {{"state", "used"}});
  free_staging_rows_ =
      &gauge("lckv_staging_rows_free", "Staging rows that the fullest cyclic group has left.");
  row_walks_ = &counter("lckv_prefill_row_walks_total",
                        "Rows times walks spent on prompts in cyclic groups.");
  prompt_rows_ = &counter("lckv_prefill_rows_settled_total", "Prompt rows that were settled.");
  steps_ = &counter("lckv_step_total", "Steps run.");
  row_layers_ = &counter("lckv_step_row_layers_total", "Rows of steps times the layers they ran.");
  step_age_ = &gauge("lckv_step_age_seconds",
                     "How long work has waited without a step; 0 where none waits.");
  tls_stale_ = &gauge("lckv_file_stale", "1: a file cannot be used, an older state of it holds.",
                      {{"file", "tls"}});
  batch_size_ = &histogram("lckv_batch_size", "Tokens sampled in a step.", batch_edges());
  for (size_t i = 0; i < kNumPhases; ++i) {
    phases_[i] = &histogram("lckv_step_duration_seconds", "Time of a step's phases.", phase_edges(),
                            {{"phase", kPhases[i]}});
  }
}

void WorkerMetrics::set_geometry(const KvGeometry& geometry) {
  const int64_t blocks = geometry.capacity_tokens / std::max(geometry.block_tokens, 1);
  gauge("vllm:cache_config_info",
        "KV geometry; always 1. num_gpu_blocks: capacity in blocks of block_size tokens.",
        {{"block_size", absl::StrCat(geometry.block_tokens)},
         {"num_gpu_blocks", absl::StrCat(blocks)}})
      .Set(1);
  const std::string layers = "Layers of the model, and those of them that own keys and values.";
  gauge("lckv_kv_layers", layers, {{"kind", "all"}}).Set(geometry.num_layers);
  gauge("lckv_kv_layers", layers, {{"kind", "cached"}}).Set(geometry.num_cached_layers);
  gauge("lckv_kv_bytes_per_token", "KV of one token in all cached layers.")
      .Set(geometry.bytes_per_token);
  gauge("lckv_kv_capacity_tokens", "Tokens that the KV pool holds.")
      .Set(static_cast<double>(geometry.capacity_tokens));

  gauge("lckv_step_budget_row_layers", "Most rows times layers that a step may run.")
      .Set(static_cast<double>(geometry.max_row_layers));
  const std::string limit = "Most sequences that may run, or wait, at once.";
  gauge("lckv_limit", limit, {{"of", "running"}}).Set(geometry.max_running);
  gauge("lckv_limit", limit, {{"of", "waiting"}}).Set(geometry.max_waiting);

  const Edges edges = token_count_edges(geometry.max_context);
  request_prompt_ = &histogram("vllm:request_prompt_tokens", "Prompt tokens of a sequence.", edges);
  request_generation_ =
      &histogram("vllm:request_generation_tokens", "Tokens generated for a sequence.", edges);
  request_max_generation_ = &histogram("vllm:request_max_num_generation_tokens",
                                       "Most tokens that a sequence could have got.", edges);
  request_max_tokens_ =
      &histogram("vllm:request_params_max_tokens", "max_new_tokens of a sequence.", edges);
}

void WorkerMetrics::set_weights_load(absl::Duration duration) {
  gauge("lckv_weights_load_seconds", "Time that loading the weights took.").Set(seconds(duration));
}

void WorkerMetrics::set_ready(absl::Duration since_start) {
  gauge("lckv_ready_seconds", "From the start of the process to readiness.")
      .Set(seconds(since_start));
}

void WorkerMetrics::set_step_age(absl::Duration age) { step_age_->Set(seconds(age)); }

void WorkerMetrics::set_tls_stale(bool stale) { tls_stale_->Set(stale ? 1 : 0); }

void WorkerMetrics::observe(const StepReport& report) {
  const SchedulerLoad& load = report.load;
  running_->Set(load.num_running);
  waiting_->Set(load.num_waiting);
  const int32_t used = load.num_blocks - load.num_free_blocks;
  kv_usage_->Set(load.num_blocks > 0 ? static_cast<double>(used) / load.num_blocks : 0);
  free_blocks_->Set(load.num_free_blocks);
  cached_blocks_->Set(load.num_idle_blocks);
  used_blocks_->Set(used);
  free_host_blocks_->Set(load.num_free_host_blocks);
  used_host_blocks_->Set(load.num_host_blocks - load.num_free_host_blocks);
  free_staging_rows_->Set(load.num_free_staging_rows);
  grow(*preemptions_, load.num_preemptions, last_load_.num_preemptions);
  grow(*swapped_out_, load.num_swapped_out, last_load_.num_swapped_out);
  grow(*row_walks_, load.num_prefill_row_walks, last_load_.num_prefill_row_walks);
  grow(*prompt_rows_, load.num_prompt_rows, last_load_.num_prompt_rows);
  grow(*prefix_queries_, load.num_prefix_queries, last_load_.num_prefix_queries);
  grow(*prefix_hits_, load.num_prefix_hits, last_load_.num_prefix_hits);
  grow(*steps_, report.step, last_step_);
  last_load_ = load;
  last_step_ = report.step;
  if (!report.ran_step) return;
  row_layers_->Increment(static_cast<double>(report.num_row_layers));
  iteration_tokens_->Observe(report.num_rows);
  batch_size_->Observe(report.num_sampled);
  const StepTimes& times = report.times;
  const absl::Duration rest = report.step_time - report.plan_time - times.copies - times.ordinary -
                              times.walks - times.logits - times.sample;
  const std::array<absl::Duration, kNumPhases> phases = {report.plan_time,
                                                         times.copies,
                                                         times.ordinary,
                                                         times.walks,
                                                         times.logits,
                                                         times.sample,
                                                         std::max(rest, absl::ZeroDuration())};
  for (size_t i = 0; i < kNumPhases; ++i) phases_[i]->Observe(seconds(phases[i]));
}

void WorkerMetrics::started(SequenceTimes& times, const SequenceEvent& event, absl::Time now) {
  times.started = now;
  times.num_cached = event.num_cached_tokens;
  queue_->Observe(seconds(now - times.arrived));
}

void WorkerMetrics::observe_prompt(const SequenceTimes& times, const SequenceSpec& spec) {
  const auto tokens = static_cast<double>(spec.prompt.size());
  prompt_tokens_->Increment(tokens);
  prompt_tokens_computed_->Increment(tokens - times.num_cached);
  prompt_tokens_cached_->Increment(times.num_cached);
}

void WorkerMetrics::token(SequenceTimes& times, const SequenceSpec& spec, absl::Time now) {
  generation_tokens_->Increment();
  if (times.num_tokens++ == 0) {
    observe_prompt(times, spec);
    times.first_token = now;
    first_token_->Observe(seconds(now - times.arrived));
    prefill_->Observe(seconds(now - times.started));
  } else {
    inter_token_->Observe(seconds(now - times.last_token));
  }
  times.last_token = now;
}

void WorkerMetrics::finished(const SequenceTimes& times, const SequenceSpec& spec,
                             const SequenceEvent& event, absl::Time now) {
  const bool stopped =
      event.reason == FinishReason::kEos || event.reason == FinishReason::kStopToken;
  (stopped ? stopped_ : length_)->Increment();
  if (times.num_tokens == 0) observe_prompt(times, spec);
  whole_->Observe(seconds(now - times.arrived));
  inference_->Observe(seconds(now - times.started));
  if (times.num_tokens > 0) {
    const double decode = seconds(times.last_token - times.first_token);
    decode_->Observe(decode);
    if (times.num_tokens > 1) per_output_token_->Observe(decode / (times.num_tokens - 1));
  }
  walks_->Observe(event.num_prefill_walks);
  if (request_prompt_ == nullptr) return;
  request_prompt_->Observe(static_cast<double>(spec.prompt.size()));
  request_generation_->Observe(times.num_tokens);
  request_max_generation_->Observe(spec.max_new_tokens);
  if (!spec.max_is_context) request_max_tokens_->Observe(spec.max_new_tokens);
}

void WorkerMetrics::cancelled() { aborted_->Increment(); }

}  // namespace lckv
