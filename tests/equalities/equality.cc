#include "tests/equalities/equality.h"

#include <algorithm>

#include "tests/kernels/backends.h"
#include "worker/model/checkpoint_files.h"

namespace lckv {
namespace {

constexpr uint64_t kSeed = 20241114;

const ModelConfig& config_of(const std::string& model) {
  static std::map<std::string, ModelConfig> configs;
  const auto found = configs.find(model);
  if (found != configs.end()) return found->second;
  const auto files = read_checkpoint_files(model).value();
  return configs.emplace(model, parse_model_config(files.config, files.generation_config).value())
      .first->second;
}

// The program's, one of each format.
const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = reproducible_backends();
  return all;
}
const Backend& backend_of(DType dtype) {
  return *std::find_if(backends().begin(), backends().end(),
                       [dtype](const Backend& backend) { return backend.dtype == dtype; });
}

}  // namespace

std::vector<EqualityCase> layer_maps() {
  std::vector<EqualityCase> cases;
  for (const char* name : {"llama", "lckv-w2-diag", "lckv-w0-nodiag", "two-groups",
                           "sandwich-middle", "sliding", "cla"}) {
    for (const Backend& backend : backends()) {
      cases.push_back({std::string("tests/golden/cases/") + name, backend.dtype});
    }
  }
  return cases;
}

std::vector<EqualityCase> demo_model() { return {{"deploy/models/demo", DType::kBFloat16}}; }

std::string case_name(const testing::TestParamInfo<EqualityCase>& info) {
  std::string name = info.param.model.substr(info.param.model.rfind('/') + 1);
  std::replace(name.begin(), name.end(), '-', '_');
  return name + "_" + dtype_name(info.param.dtype);
}

void Equality::SetUp() {
  const std::string& missing = backend_of(GetParam().dtype).missing;
  if (!missing.empty()) GTEST_SKIP() << missing;
}

LocalOptions Equality::options() const {
  return {
      .model = GetParam().model,
      .dtype = GetParam().dtype,
      .open_ops = [](const LocalOptions& own) { return backend_of(own.dtype).open(own.threads); }};
}

float Equality::default_tolerance() const {
  return GetParam().dtype == DType::kFloat32    ? 0.0F
         : GetParam().dtype == DType::kBFloat16 ? 0x1p-9F
                                                : 0x1p-12F;
}

bool Equality::has_cycles() const { return config_of(GetParam().model).layers.has_cycles(); }

std::vector<SequenceSpec> Equality::workload(uint64_t seed) const {
  const int32_t vocabulary = config_of(GetParam().model).vocabulary_size;
  const int32_t lengths[] = {1, 5, 16, 37, 70, 23};
  std::vector<SequenceSpec> specs;
  for (uint64_t i = 0; i < std::size(lengths); ++i) {
    SequenceSpec spec{.tenant = i % 2 == 0 ? "a" : "b",
                      .prompt = random_tokens(kSeed + 100 * seed + i, lengths[i], vocabulary),
                      .max_new_tokens = 9};
    spec.sampling.temperature = i % 3 == 0 ? 0.0F : 1.0F;
    spec.sampling.seed = seed * 1000 + i;
    if (i == 1) spec.sampling.repetition_penalty = 1.2F;
    if (i == 2) spec.sampling.frequency_penalty = 0.3F;
    if (i == 3) spec.num_prompt_logprobs = 0;
    if (i == 5) spec.prefill_mode = PrefillMode::kIterated;
    specs.push_back(std::move(spec));
  }
  return specs;
}

std::unique_ptr<LocalReplica> open_replica(const LocalOptions& options) {
  auto replica = LocalReplica::open(options);
  EXPECT_TRUE(replica.ok()) << replica.status();
  return *std::move(replica);
}

void expect_empty(const LocalReplica& replica, const SchedulerLoad& at_start) {
  const SchedulerLoad load = replica.scheduler().load();
  EXPECT_EQ(load.num_running + load.num_waiting, 0);
  EXPECT_EQ(load.num_free_blocks, at_start.num_free_blocks);
  EXPECT_EQ(load.num_free_host_blocks, at_start.num_free_host_blocks);
  EXPECT_EQ(load.num_free_staging_rows, at_start.num_free_staging_rows);
}

std::vector<Transcript> Equality::together(const LocalOptions& options,
                                           const std::vector<SequenceSpec>& specs) const {
  const auto replica = open_replica(options);
  const SchedulerLoad at_start = replica->scheduler().load();
  std::vector<SequenceId> ids;
  for (const SequenceSpec& spec : specs) ids.push_back(replica->submit(spec));
  replica->run();
  expect_empty(*replica, at_start);
  std::vector<Transcript> transcripts;
  for (const SequenceId id : ids) transcripts.push_back(replica->transcript(id));
  return transcripts;
}

std::vector<Transcript> Equality::alone(const LocalOptions& options,
                                        const std::vector<SequenceSpec>& specs) const {
  std::vector<Transcript> transcripts;
  for (const SequenceSpec& spec : specs) {
    transcripts.push_back(together(options, {spec}).front());
  }
  return transcripts;
}

void expect_equal(const std::vector<Transcript>& a, const std::vector<Transcript>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(difference(a[i], b[i]), "") << "sequence " << i;
  }
}

}  // namespace lckv
