#include "worker/service/worker_metrics.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"

namespace lckv {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class WorkerMetricsTest : public ::testing::Test {
 protected:
  std::string text() const { return prometheus::TextSerializer().Serialize(registry_->Collect()); }

  std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  WorkerMetrics metrics_{registry_, "m", "1.2.3"};
  const absl::Time t0_ = absl::FromUnixSeconds(1000);
};

// Labels come in the order of their names: the standing ones first.
constexpr char kLabels[] = "engine=\"0\",model_name=\"m\"";

TEST_F(WorkerMetricsTest, OneSequenceIsTimedFromArrivalToEnd) {
  metrics_.set_geometry({.block_tokens = 16, .capacity_tokens = 1600, .max_context = 100});
  SequenceSpec spec{.prompt = {1, 2, 3}, .max_new_tokens = 10};
  SequenceTimes times{.arrived = t0_};
  metrics_.started(times, {.num_cached_tokens = 2}, t0_ + absl::Seconds(1));
  metrics_.token(times, spec, t0_ + absl::Seconds(3));
  metrics_.token(times, spec, t0_ + absl::Seconds(7));
  metrics_.token(times, spec, t0_ + absl::Seconds(9));
  metrics_.finished(times, spec,
                    {.kind = SequenceEvent::Kind::kFinished,
                     .reason = FinishReason::kMaxNewTokens,
                     .num_prefill_walks = 4},
                    t0_ + absl::Seconds(9));
  const std::string all = text();
  const auto sum = [](const std::string& name, const std::string& value) {
    return HasSubstr("\n" + name + "_sum{" + kLabels + "} " + value + "\n");
  };
  EXPECT_THAT(all, sum("vllm:request_queue_time_seconds", "1"));
  EXPECT_THAT(all, sum("vllm:time_to_first_token_seconds", "3"));
  EXPECT_THAT(all, sum("vllm:request_prefill_time_seconds", "2"));
  EXPECT_THAT(all, sum("vllm:request_decode_time_seconds", "6"));
  EXPECT_THAT(all, sum("vllm:request_inference_time_seconds", "8"));
  EXPECT_THAT(all, sum("vllm:e2e_request_latency_seconds", "9"));
  EXPECT_THAT(all, sum("vllm:inter_token_latency_seconds", "6"));
  EXPECT_THAT(all, sum("vllm:request_time_per_output_token_seconds", "3"));
  EXPECT_THAT(all, sum("vllm:request_prompt_tokens", "3"));
  EXPECT_THAT(all, sum("vllm:request_generation_tokens", "3"));
  EXPECT_THAT(all, sum("vllm:request_params_max_tokens", "10"));
  EXPECT_THAT(all, sum("lckv_prefill_walks", "4"));
  EXPECT_THAT(all, HasSubstr("vllm:prompt_tokens_total{" + std::string(kLabels) + "} 3\n"));
  EXPECT_THAT(all, HasSubstr("vllm:generation_tokens_total{" + std::string(kLabels) + "} 3\n"));
  const std::string source = "vllm:prompt_tokens_by_source_total\\{.*source=";
  EXPECT_THAT(all, ContainsRegex(source + "\"local_compute\".*\\} 1\n"));
  EXPECT_THAT(all, ContainsRegex(source + "\"local_cache_hit\".*\\} 2\n"));
  const std::string success = "vllm:request_success_total\\{.*finished_reason=";
  EXPECT_THAT(all, ContainsRegex(success + "\"length\".*\\} 1"));
  EXPECT_THAT(all, ContainsRegex(success + "\"stop\".*\\} 0"));
}

TEST_F(WorkerMetricsTest, GeometryCountsBlocksOfAllLayers) {
  metrics_.set_geometry({.block_tokens = 16,
                         .capacity_tokens = 1605,
                         .bytes_per_token = 3072,
                         .num_layers = 22,
                         .num_cached_layers = 3,
                         .max_context = 100});
  const std::string all = text();
  EXPECT_THAT(all, ContainsRegex("vllm:cache_config_info\\{.*block_size=\"16\""));
  EXPECT_THAT(all, ContainsRegex("vllm:cache_config_info\\{.*num_gpu_blocks=\"100\""));
  EXPECT_THAT(all, ContainsRegex("lckv_kv_layers\\{.*kind=\"all\".*\\} 22"));
  EXPECT_THAT(all, ContainsRegex("lckv_kv_layers\\{.*kind=\"cached\".*\\} 3"));
  EXPECT_THAT(all, ContainsRegex("lckv_kv_bytes_per_token\\{.*\\} 3072"));
  EXPECT_THAT(all, ContainsRegex("lckv_kv_capacity_tokens\\{.*\\} 1605"));
}

TEST_F(WorkerMetricsTest, TotalsGrowByWhatTheReportsAdd) {
  StepReport report{.step = 3, .ran_step = true};
  report.load = {.num_running = 2,
                 .num_waiting = 5,
                 .num_free_blocks = 25,
                 .num_blocks = 100,
                 .num_preemptions = 4,
                 .num_prefill_row_walks = 64,
                 .num_prompt_rows = 32};
  report.num_rows = 40;
  report.num_sampled = 2;
  report.plan_time = absl::Milliseconds(1);
  report.times.walks = absl::Milliseconds(6);
  report.step_time = absl::Milliseconds(10);
  metrics_.observe(report);
  report.step = 5;
  report.load.num_preemptions = 6;
  report.ran_step = false;
  metrics_.observe(report);
  const std::string all = text();
  EXPECT_THAT(all, ContainsRegex("vllm:num_requests_running\\{.*\\} 2\n"));
  EXPECT_THAT(all, ContainsRegex("vllm:num_requests_waiting\\{.*\\} 5\n"));
  EXPECT_THAT(all, ContainsRegex("vllm:kv_cache_usage_perc\\{.*\\} 0.75\n"));
  EXPECT_THAT(all, ContainsRegex("vllm:num_preemptions_total\\{.*\\} 6\n"));
  EXPECT_THAT(all, ContainsRegex("lckv_step_total\\{.*\\} 5\n"));
  EXPECT_THAT(all, ContainsRegex("lckv_kv_blocks\\{.*state=\"used\".*\\} 75\n"));
  EXPECT_THAT(all, ContainsRegex("lckv_prefill_row_walks_total\\{.*\\} 64\n"));
  EXPECT_THAT(all, ContainsRegex("vllm:iteration_tokens_total_sum\\{.*\\} 40\n"));
  EXPECT_THAT(all, ContainsRegex("lckv_batch_size_count\\{.*\\} 1\n"));
  const std::string phase = "lckv_step_duration_seconds_sum\\{.*phase=";
  EXPECT_THAT(all, ContainsRegex(phase + "\"walks\".*\\} 0.006\n"));
  EXPECT_THAT(all, ContainsRegex(phase + "\"rest\".*\\} 0.003"));
}

TEST_F(WorkerMetricsTest, BucketsHoldVllmsEdgesAndFinerOnes) {
  SequenceTimes times{.arrived = t0_};
  SequenceSpec spec{.prompt = {1}};
  metrics_.started(times, {}, t0_);
  metrics_.token(times, spec, t0_);
  const std::string all = text();
  for (const char* edge :
       {"0.001", "0.003", "0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2", "0.3", "0.4",
        "0.5",   "0.75",  "1",    "2.5",   "5",    "7.5",   "10",  "20",   "40",  "80"}) {
    EXPECT_THAT(all, HasSubstr("vllm:inter_token_latency_seconds_bucket{" + std::string(kLabels) +
                               ",le=\"" + edge + "\"}"));
  }
}

}  // namespace
}  // namespace lckv
