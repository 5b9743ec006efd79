#include "worker/serving_plan.h"

#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/model_config.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kOrdinary[] = "tests/bench/models/tinyllama";
constexpr char kLckv[] = "tests/bench/models/tinyllama-lckv";

ModelConfig read_config(const std::string& folder, const std::string& from = "",
                        const std::string& to = "") {
  std::ifstream file(folder + "/config.json");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!from.empty()) {
    EXPECT_THAT(text, HasSubstr(from));
    text = absl::StrReplaceAll(text, {{from, to}});
  }
  auto config = parse_model_config(text, "");
  EXPECT_TRUE(config.ok()) << config.status();
  return *std::move(config);
}

absl::StatusOr<ServingPlan> plan(const WorkerConfig& config, const ModelConfig& model) {
  return plan_serving(config, model, make_pass_plan(model.layers));
}

TEST(ServingPlanTest, FewerCachedLayersHoldMoreTokensOfTheSameMemory) {
  const WorkerConfig config;
  const ServingPlan ordinary = *plan(config, read_config(kOrdinary));
  const ServingPlan lckv = *plan(config, read_config(kLckv));
  constexpr double kBudget = 4.0 * (1ULL << 30);
  EXPECT_EQ(ordinary.geometry.bytes_per_token, 22528);
  EXPECT_EQ(lckv.geometry.bytes_per_token, 3072);
  for (const ServingPlan* one : {&ordinary, &lckv}) {
    const auto capacity = static_cast<double>(one->geometry.capacity_tokens);
    EXPECT_NEAR(capacity * static_cast<double>(one->geometry.bytes_per_token) / kBudget, 1, 0.01);
  }
  EXPECT_NEAR(static_cast<double>(lckv.geometry.capacity_tokens) /
                  static_cast<double>(ordinary.geometry.capacity_tokens),
              22.0 / 3, 0.01);
}

TEST(ServingPlanTest, OnlyCyclicMapsStageAndSwap) {
  const ServingPlan ordinary = *plan({}, read_config(kOrdinary));
  EXPECT_EQ(ordinary.scheduler.staging_rows, 0);
  EXPECT_EQ(ordinary.scheduler.num_host_blocks, 0);
  const ServingPlan lckv = *plan({.max_num_seqs = 10}, read_config(kLckv));
  EXPECT_EQ(lckv.scheduler.staging_rows, 2048 + 10);
  EXPECT_EQ(lckv.runner.staging_rows, 2048 + 10);
  EXPECT_EQ(lckv.scheduler.num_host_blocks, (1 << 30) / (16 * 1024));
}

TEST(ServingPlanTest, TheContextIsWhatTheMemoryHolds) {
  const ModelConfig model = read_config(kLckv);
  // 3 units of 16 slots of 1 KiB: 48 KiB hold 16 tokens.
  const ServingPlan small = *plan({.kv_cache_bytes = 480 << 10}, model);
  EXPECT_EQ(small.max_context, 160);
  EXPECT_EQ(small.scheduler.max_context, 160);
  ASSERT_THAT(small.warnings, SizeIs(1));
  EXPECT_THAT(small.warnings[0], HasSubstr("160 tokens instead of 2048"));
  EXPECT_THAT(plan({}, model)->warnings, IsEmpty());
  EXPECT_EQ(plan({.max_model_len = 100}, model)->max_context, 100);
  const absl::Status none = plan({.kv_cache_bytes = 47 << 10}, model).status();
  EXPECT_THAT(std::string(none.message()), HasSubstr("--kv-cache-memory"));
  const absl::Status long_context = plan({.max_model_len = 2049}, model).status();
  EXPECT_THAT(std::string(long_context.message()), HasSubstr("max_position_embeddings"));
}

TEST(ServingPlanTest, ReproducibleModeFixesTheWindow) {
  const ModelConfig model = read_config(kLckv);
  const ServingPlan free = *plan({}, model);
  EXPECT_FALSE(free.reproducible);
  EXPECT_EQ(free.scheduler.prefill_lookahead, 0);
  EXPECT_EQ(free.scheduler.prefill_tolerance, 1.0F / 512);
  const ServingPlan fixed = *plan({.reproducible = Choice::kOn}, model);
  EXPECT_EQ(fixed.scheduler.prefill_lookahead, 512);
  EXPECT_TRUE(fixed.scheduler.reproducible);
  const ServingPlan float32 = *plan({.dtype = NumberFormat::kFloat32}, model);
  EXPECT_TRUE(float32.reproducible);
  EXPECT_EQ(float32.scheduler.prefill_lookahead, 16);
  EXPECT_EQ(float32.scheduler.prefill_tolerance, 0.0F);
  EXPECT_FALSE(
      plan({.dtype = NumberFormat::kFloat32, .reproducible = Choice::kOff}, model)->reproducible);
  EXPECT_EQ(plan({.prefill_tolerance = 0.5F}, model)->scheduler.prefill_tolerance, 0.5F);
  EXPECT_EQ(plan({.reproducible = Choice::kOn, .max_num_batched_tokens = 100}, model)
                ->scheduler.prefill_lookahead,
            100);
}

TEST(ServingPlanTest, FlagsInEachOthersWayAreNamed) {
  const ModelConfig model = read_config(kLckv);
  const auto message = [&](const WorkerConfig& config) {
    return std::string(plan(config, model).status().message());
  };
  EXPECT_THAT(message({.reproducible = Choice::kOn, .prefill_lookahead = 4096}),
              HasSubstr("--prefill-lookahead 4096 exceeds --max-num-batched-tokens 2048"));
  EXPECT_THAT(message({.reproducible = Choice::kOn, .staging_rows = 100}),
              HasSubstr("--staging-rows"));
  EXPECT_THAT(message({.kv_cache_dtype = NumberFormat::kFloat32}),
              HasSubstr("--kv-cache-dtype must be what the model computes in, which is bfloat16"));
  EXPECT_THAT(message({.block_size = 12}), HasSubstr("--block-size"));
}

TEST(ServingPlanTest, Float16IsRefusedOnTheCpuAlone) {
  const ModelConfig model = read_config(kLckv, "bfloat16", "float16");
  const auto message = [](const WorkerConfig& config, const ModelConfig& of) {
    return std::string(plan(config, of).status().message());
  };
  EXPECT_EQ(message({}, model),
            "config.json: torch_dtype: float16 is not computed with on --device cpu; give --dtype "
            "float32 or bfloat16");
  EXPECT_EQ(message({.dtype = NumberFormat::kFloat16}, read_config(kLckv)),
            "--dtype float16 is not computed with on --device cpu; give --dtype float32 or "
            "bfloat16");
  EXPECT_EQ(plan({.dtype = NumberFormat::kBFloat16}, model)->dtype, DType::kBFloat16);
  for (const Device device : {Device::kCuda, Device::kSim}) {
    const ServingPlan own = *plan({.device = device}, model);
    EXPECT_EQ(own.dtype, DType::kFloat16);
    EXPECT_FALSE(own.reproducible);
    EXPECT_EQ(own.scheduler.prefill_tolerance, 0x1p-12F);
    EXPECT_EQ(own.geometry.bytes_per_token, 3072);
    EXPECT_EQ(plan({.device = device, .dtype = NumberFormat::kFloat16}, read_config(kLckv))->dtype,
              DType::kFloat16);
  }
  EXPECT_THAT(message({.device = Device::kCuda, .kv_cache_dtype = NumberFormat::kFloat16},
                      read_config(kLckv)),
              HasSubstr("--kv-cache-dtype must be what the model computes in, which is bfloat16"));
}

TEST(ServingPlanTest, LogprobsAreBoundedByTheVocabulary) {
  const ModelConfig model = read_config(kLckv);
  EXPECT_EQ(plan({}, model)->max_logprobs, 20);
  EXPECT_EQ(plan({.max_logprobs = -1}, model)->max_logprobs, 32000);
  EXPECT_EQ(plan({.max_logprobs = 1 << 20}, model)->max_logprobs, 32000);
}

TEST(ServingPlanTest, TheFolderNamesTheModel) {
  EXPECT_EQ(served_name({.model = "/models/tiny/"}), "tiny");
  EXPECT_EQ(served_name({.model = "models/tiny"}), "tiny");
  EXPECT_EQ(served_name({.model = "/models/tiny/."}), "tiny");
  EXPECT_EQ(served_name({.model = "models/tiny", .served_model_name = "t"}), "t");
}

TEST(WorkerConfigTest, EveryRunningSequenceNeedsARow) {
  EXPECT_TRUE(check_worker_config({}).ok());
  EXPECT_FALSE(check_worker_config({.max_num_seqs = 65, .max_num_batched_tokens = 64}).ok());
  EXPECT_FALSE(check_worker_config({.staging_rows = 64, .max_num_seqs = 64}).ok());
}

TEST(WorkerConfigTest, OnlyADeviceOfItsOwnMemoryOffloadsWeights) {
  EXPECT_TRUE(check_worker_config({.device = Device::kCuda, .cpu_offload_gb = 4}).ok());
  for (const Device device : {Device::kCpu, Device::kSim}) {
    const absl::Status status = check_worker_config({.device = device, .cpu_offload_gb = 4});
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()),
                testing::HasSubstr("--cpu-offload-gb 4 needs --device cuda"));
  }
}

TEST(WorkerConfigTest, FlagsFillTheConfig) {
  WorkerConfig config;
  const char* argv[] = {
      "lckv-worker", "--model",        "m",  "--kv-cache-memory", "1.5GiB", "--prefill-tolerance",
      "0.25",        "--reproducible", "on", "--cpu-offload-gb",  "0.25",   "--drain-timeout",
      "3s",          "--port",         "0",  "--enforce-eager"};
  EXPECT_FALSE(parse_worker_config(std::size(argv), argv, config).has_value());
  EXPECT_EQ(config.model, "m");
  EXPECT_EQ(config.kv_cache_bytes, uint64_t{3} << 29);
  EXPECT_EQ(config.prefill_tolerance, 0.25F);
  EXPECT_EQ(config.reproducible, Choice::kOn);
  EXPECT_EQ(config.cpu_offload_gb, 0.25);
  EXPECT_EQ(config.drain_timeout, absl::Seconds(3));
  EXPECT_EQ(config.port, 0);
  EXPECT_TRUE(config.enforce_eager);
  const char* wrong[] = {"lckv-worker", "--model", "m", "--prefill-tolerance", "-1"};
  EXPECT_EQ(parse_worker_config(std::size(wrong), wrong, config), 2);
}

}  // namespace
}  // namespace lckv
