#include "worker/sim/step_cost.h"

#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "worker/model/bounded_file.h"
#include "worker/model/tensor_shard.h"

namespace lckv {
namespace {

constexpr char kOrdinary[] = "tests/bench/models/tinyllama";
constexpr char kLckv[] = "tests/bench/models/tinyllama-lckv";

// Round numbers, nothing but bandwidth and arithmetic.
DeviceProfile plain_device() {
  return {.name = "plain",
          .memory_bytes = 1e11,
          .memory_bytes_per_second = 1e12,
          .bfloat16_flops_per_second = 1e14,
          .float32_flops_per_second = 1e13,
          .host_bytes_per_second = 1e10,
          .peer_bytes_per_second = 1e11};
}

struct Simulated {
  ModelConfig model;
  PassPlan passes;
  StepCost cost;
};

Simulated simulated(const std::string& folder, int32_t num_ranks = 1,
                    const DeviceProfile& device = plain_device()) {
  const auto text = read_bounded_file(folder + "/config.json", 1 << 16);
  const ModelConfig model = parse_model_config(*text, "").value();
  const PassPlan passes = make_pass_plan(shard_layers(model.layers, num_ranks));
  const StepCostOptions options{.num_ranks = num_ranks, .block_bytes = 1 << 20};
  return {model, passes, StepCost(device, model, passes, options)};
}

// One sequence's rows in every range.
StepPlan plan_of(const PassPlan& passes, int32_t first, int32_t count) {
  StepPlan plan;
  for (int32_t group = 0; group <= passes.num_groups(); ++group) {
    RangeRows rows{.num_rows = count};
    rows.segments.push_back({.first_position = first, .num_rows = count});
    plan.ordinary.push_back(rows);
    if (group == passes.num_groups()) break;
    GroupRows walk{.num_rows = count};
    walk.segments.push_back({.first_position = first, .num_rows = count});
    plan.groups.push_back(walk);
  }
  return plan;
}

double seconds(const StepCost& cost, const StepPlan& plan) {
  StepTimes times;
  cost.add(plan, times);
  return absl::ToDoubleSeconds(times.copies + times.ordinary + times.walks + times.logits +
                               times.sample);
}

TEST(StepCostTest, WeightsAreWhatTheConfigSays) {
  for (const char* const folder : {kOrdinary, kLckv}) {
    const Simulated one = simulated(folder);
    const auto all = static_cast<double>(weight_bytes(one.model, DType::kBFloat16));
    // Norms alone are left out.
    EXPECT_NEAR(one.cost.weight_bytes() / all, 1, 1e-3);
    EXPECT_NEAR(simulated(folder, 4).cost.weight_bytes() / (all / 4), 1, 1e-3);
  }
}

TEST(StepCostTest, ADecodeStepReadsAllWeightsAndTheContext) {
  const Simulated one = simulated(kOrdinary);
  StepPlan plan = plan_of(one.passes, 1000, 1);
  plan.samples.push_back({});
  // The embedding is looked up, not read.
  const double embedding = 2.0 * one.model.vocabulary_size * one.model.hidden_size;
  const auto kv = static_cast<double>(kv_bytes_per_token(one.model.layers, DType::kBFloat16));
  const double bytes = one.cost.weight_bytes() - embedding + 1001 * kv;
  EXPECT_NEAR(seconds(one.cost, plan) / (bytes / 1e12), 1, 0.01);
}

TEST(StepCostTest, APromptIsBoundByArithmetic) {
  const Simulated one = simulated(kOrdinary);
  const double embeddings = 4.0 * one.model.vocabulary_size * one.model.hidden_size;
  const double matrices = (one.cost.weight_bytes() - embeddings) / 2;
  const double pairs = 2000.0 * 2001 / 2;
  const double flops = 2 * matrices * 2000 +
                       pairs * 4 * one.model.num_heads * one.model.head_dim * one.model.num_layers;
  EXPECT_NEAR(seconds(one.cost, plan_of(one.passes, 0, 2000)) / (flops / 1e14), 1, 0.01);
  // Tensor cores do float16 too, and nothing wider.
  for (const auto& [dtype, peak] : {std::pair(DType::kFloat16, 1e14), {DType::kFloat32, 1e13}}) {
    const StepCost cost(plain_device(), one.model, one.passes, {.dtype = dtype});
    EXPECT_NEAR(seconds(cost, plan_of(one.passes, 0, 2000)) / (flops / peak), 1, 0.01);
  }
}

TEST(StepCostTest, SharedKeysAndValuesSpareTheirProjections) {
  const Simulated ordinary = simulated(kOrdinary);
  const Simulated lckv = simulated(kLckv);
  EXPECT_LT(seconds(lckv.cost, plan_of(lckv.passes, 0, 1)),
            seconds(ordinary.cost, plan_of(ordinary.passes, 0, 1)));
}

TEST(StepCostTest, RanksShareTheWorkAndPayForTheirExchange) {
  const Simulated one = simulated(kOrdinary);
  const Simulated two = simulated(kOrdinary, 2);
  const double alone = seconds(one.cost, plan_of(one.passes, 0, 1));
  EXPECT_NEAR(seconds(two.cost, plan_of(two.passes, 0, 1)) / (alone / 2), 1, 0.02);
  DeviceProfile far = plain_device();
  far.peer_latency = absl::Microseconds(50);
  const Simulated apart = simulated(kOrdinary, 2, far);
  const double paid = seconds(apart.cost, plan_of(apart.passes, 0, 1)) -
                      seconds(two.cost, plan_of(two.passes, 0, 1));
  EXPECT_NEAR(paid, 2 * 50e-6 * one.model.num_layers, 1e-6);
}

TEST(StepCostTest, CopiesToTheHostTakeTheirTime) {
  const Simulated one = simulated(kOrdinary);
  StepPlan plan = plan_of(one.passes, 0, 1);
  const double without = seconds(one.cost, plan);
  plan.to_host.resize(100);
  EXPECT_NEAR(seconds(one.cost, plan) - without, 100 * (1 << 20) / 1e10, 1e-6);
}

}  // namespace
}  // namespace lckv
