// Layers in host memory change no bit: the engine over the emulated device, whichever of its
// streams goes ahead of the other.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/emulated_cuda/streams.h"
#include "tests/kernels/emulated_engine.h"
#include "worker/fit_memory.h"

namespace lckv {
namespace {

using emulated_cuda::Ahead;

constexpr double kGiB = 1 << 30;
constexpr double kSome = 1 / kGiB;  // the fewest layers that free anything: three of eight
constexpr double kAll = 1;

WorkerConfig config_of(const std::string& folder, double cpu_offload_gb) {
  WorkerConfig config = small_config();
  config.model = folder;
  config.cpu_offload_gb = cpu_offload_gb;
  return config;
}

// Prompts that take several walks, a step or two of decode, and ranges that steps leave out while
// only one of the two is read.
std::vector<SequenceSpec> workload() {
  SequenceSpec greedy{.prompt = {5, 17}, .max_new_tokens = 3};
  greedy.sampling.temperature = 0.0F;
  greedy.num_logprobs = 2;
  SequenceSpec drawn{.prompt = {1, 2, 3, 4, 5}, .max_new_tokens = 2};
  drawn.sampling.seed = 11;
  drawn.num_logprobs = 3;
  drawn.num_prompt_logprobs = 1;
  return {greedy, drawn};
}

struct Case {
  std::string model;
  int num_ranks = 1;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.model << ", ranks: " << c.num_ranks;
  }
};

class Offload : public testing::TestWithParam<Case> {
 protected:
  void TearDown() override { emulated_cuda::let_ahead(Ahead::kKernels); }
};

TEST_P(Offload, ChangesNoBit) {
  const int num_ranks = GetParam().num_ranks;
  const std::string folder = "tests/golden/cases/" + GetParam().model;
  const auto resident = generate(config_of(folder, 0), workload(), devices(num_ranks));
  EXPECT_EQ(resident.at(1).tokens.size(), 3U);
  EXPECT_EQ(resident.at(2).logprobs.size(), 4U * 2 + 2U * 4);
  for (const auto& [ahead, name] : {std::pair(Ahead::kKernels, "kernels go ahead"),
                                    std::pair(Ahead::kCopies, "copies go ahead")}) {
    emulated_cuda::let_ahead(ahead);
    for (const double cpu_offload_gb : {kSome, kAll}) {
      SCOPED_TRACE(testing::Message() << name << ", " << cpu_offload_gb << " GiB");
      const WorkerConfig config = config_of(folder, cpu_offload_gb);
      const auto loaded = read_model(config);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      EXPECT_EQ(loaded->offload.layers.size(), cpu_offload_gb == kSome ? 3U : 8U);
      EXPECT_EQ(generate(config, workload(), devices(num_ranks)), resident);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Offload,
                         testing::Values(Case{"lckv-w2-diag", 1}, Case{"lckv-w2-diag", 2},
                                         Case{"llama", 1}, Case{"llama", 2}, Case{"two-groups", 1}),
                         [](const testing::TestParamInfo<Case>& info) {
                           std::string name = info.param.model;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name + "_" + std::to_string(info.param.num_ranks);
                         });

struct Memory {
  uint64_t used = 0;          // of the device
  uint64_t known = 0;         // before it was loaded
  uint64_t kv_bytes = 0;      // that --gpu-memory-utilization leaves
  uint64_t weight_bytes = 0;  // as the model counts them
};

Memory memory_of(WorkerConfig config) {
  config.kv_cache_given = false;
  Rank rank;
  // Graphs take memory too, but only where nothing is offloaded.
  rank.ops = std::move(devices(1, {.records_batches = false}).front());
  load(rank, {}, {}, config);
  LoadedModel& loaded = rank.loaded;
  const DeviceMemory memory = *loaded.ops->memory();
  Memory found{.used = memory.total - memory.free,
               .known = known_device_bytes(config, loaded),
               .weight_bytes = loaded.weight_bytes};
  const absl::Status status = fit_memory(config, loaded);
  EXPECT_TRUE(status.ok()) << status;
  found.kv_bytes = config.kv_cache_bytes;
  return found;
}

// So that what is refused for too little memory is no more than what is taken, and the rest goes to
// keys and values.
TEST(OffloadedMemory, IsFreeOnTheDevice) {
  constexpr uint64_t kSlack = uint64_t{2} << 20;  // what both are rounded to
  const Memory resident = memory_of(small_config());
  for (const double cpu_offload_gb : {8.0 * (1 << 20) / kGiB, kAll}) {
    const WorkerConfig config = config_of("deploy/models/demo", cpu_offload_gb);
    const auto loaded = read_model(config);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const uint64_t freed = loaded->offload.freed_bytes();
    EXPECT_GE(freed, uint64_t{8} << 20);
    const Memory offloaded = memory_of(config);
    EXPECT_EQ(resident.known - offloaded.known, freed);
    EXPECT_EQ(resident.weight_bytes - offloaded.weight_bytes, freed);
    EXPECT_LE(offloaded.known, offloaded.used);
    EXPECT_NEAR(static_cast<double>(resident.used - offloaded.used), static_cast<double>(freed),
                kSlack);
    EXPECT_NEAR(static_cast<double>(offloaded.kv_bytes - resident.kv_bytes),
                static_cast<double>(freed), kSlack);
  }
}

}  // namespace
}  // namespace lckv
