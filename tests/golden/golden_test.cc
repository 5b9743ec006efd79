// The official code's own numbers: logits and KV of tiny checkpoints, at equal pass counts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "tests/kernels/backends.h"
#include "tests/support/local_replica.h"
#include "tests/support/naive_planner.h"
#include "tests/support/tensor_file.h"

namespace lckv {
namespace {

// Two of the random checkpoints amplify rounding: changing the embeddings by 3e-7 of their size, or
// computing in double precision, moves their logits this far from the official float32 ones. All
// others keep to 1e-4. Logits are about 1 in size: in float16 the others keep to a hundred
// roundings of 2^-11. Nothing: the format is too coarse to tell.
std::optional<float> tolerance_of(const std::string& name, DType dtype) {
  if (dtype == DType::kFloat32) {
    if (name == "lckv-w0-nodiag") return 4e-3F;
    if (name == "two-groups") return 1e-3F;
    return 1e-4F;
  }
  const bool amplifies = name == "lckv-w0-nodiag" || name == "two-groups";
  if (dtype == DType::kBFloat16 || amplifies) return std::nullopt;
  return 100 * 0x1p-11F;
}

struct Reference {
  explicit Reference(const std::string& name)
      : folder("tests/golden/cases/" + name),
        file(TensorFile::open(folder + "/ref.safetensors").value()) {
    for (const int64_t id : file.integers("ids")) ids.push_back(static_cast<int32_t>(id));
    prompt = static_cast<int32_t>(file.integers("prompt_len").front());
  }
  int32_t length() const { return static_cast<int32_t>(ids.size()); }
  std::vector<float> row(const std::string& tensor, int64_t index) const {
    const auto values = file.floats(tensor);
    const int64_t width = file.shape(tensor).back();
    return {values.begin() + index * width, values.begin() + (index + 1) * width};
  }

  std::string folder;
  TensorFile file;
  std::vector<int32_t> ids;
  int32_t prompt = 0;
};

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  float largest = 0.0F;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    largest = difference <= largest ? largest : difference;  // keeps not-a-number
  }
  return largest;
}

struct Case {
  std::string name;
  Backend backend;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name << " on " << c.backend.name;
}

class Golden : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!GetParam().backend.missing.empty()) GTEST_SKIP() << GetParam().backend.missing;
  }
  LocalOptions options() const {
    const Backend& backend = GetParam().backend;
    return {.model = reference_.folder,
            .dtype = backend.dtype,
            .open_ops = [&backend](const LocalOptions& own) { return backend.open(own.threads); },
            .reproducible = backend.reproducible,
            .max_num_seqs = 64};
  }
  // The first `prompt` ids as prompt, the rest fed back as if generated, one token drawn at the
  // end.
  SequenceSpec spec(PrefillMode mode, int32_t prompt, int32_t resumed) const {
    SequenceSpec spec;
    const auto& ids = reference_.ids;
    spec.prompt.assign(ids.begin(), ids.begin() + prompt);
    spec.resumed.assign(ids.begin() + prompt, ids.begin() + prompt + resumed);
    spec.max_new_tokens = resumed + 1;
    spec.sampling.temperature = 0.0F;
    spec.num_prompt_logprobs = 0;
    spec.prefill_mode = mode;
    return spec;
  }
  // Logits after each token from the prompt's last but one on, teacher-forced.
  void expect_decode(LocalReplica& replica, PrefillMode mode, const std::string& tensor) {
    std::vector<SequenceId> sequences;
    const int32_t num_fed = reference_.length() - reference_.prompt;
    for (int32_t i = 0; i < num_fed; ++i) {
      sequences.push_back(replica.submit(spec(mode, reference_.prompt, i + 1)));
    }
    replica.run();
    for (int32_t i = 0; i < num_fed; ++i) {
      const auto& logits = replica.transcript(sequences[i]).logits;
      ASSERT_EQ(logits.size(), 1U);
      EXPECT_LE(largest_difference(logits.at(i + 1), reference_.row(tensor, i)), tolerance_)
          << tensor << " row " << i;
    }
  }
  // All logits of a prompt, the last ones from the first token drawn.
  void expect_prompt(LocalReplica& replica, PrefillMode mode, int32_t length,
                     const std::string& tensor) {
    const SequenceId sequence = replica.submit(spec(mode, length, 0));
    replica.run();
    const Transcript& transcript = replica.transcript(sequence);
    ASSERT_TRUE(transcript.finished);
    for (int32_t i = 0; i < length; ++i) {
      const auto& logits =
          i + 1 < length ? transcript.prompt_logits.at(i + 1) : transcript.logits.at(0);
      EXPECT_LE(largest_difference(logits, reference_.row(tensor, i)), tolerance_)
          << tensor << " row " << i;
    }
  }
  void expect_kv(const LocalReplica& replica, SequenceId sequence) {
    for (const SafetensorsEntry& entry : reference_.file.entries()) {
      if (!entry.name.starts_with("cache.")) continue;
      const int32_t layer = std::stoi(entry.name.substr(6));
      const bool values = entry.name.ends_with(".v");
      const auto expected = reference_.file.floats(entry.name);
      const int64_t heads = entry.shape[0];
      const int64_t positions = entry.shape[1];
      const int64_t head_dim = entry.shape[2];
      const UnitId unit{replica.local().passes.unit_of_layer[layer]};
      for (int64_t position = 0; position < positions; ++position) {
        std::vector<float> row;
        for (int64_t head = 0; head < heads; ++head) {
          const auto* const begin = &expected[(head * positions + position) * head_dim];
          row.insert(row.end(), begin, begin + head_dim);
        }
        const auto kept = replica.kv(sequence, unit, static_cast<int32_t>(position), values);
        EXPECT_LE(largest_difference(kept, row), tolerance_)
            << entry.name << " position " << position;
      }
    }
  }

  const Reference reference_{GetParam().name};
  const float tolerance_ = *tolerance_of(GetParam().name, GetParam().backend.dtype);
};

TEST_P(Golden, ExactIsTokenByToken) {
  auto replica = LocalReplica::open(options());
  ASSERT_TRUE(replica.ok()) << replica.status();
  expect_prompt(**replica, PrefillMode::kExact, reference_.length(), "seq_logits_exact");
}

TEST_P(Golden, ExactByHand) {
  auto local = open_local_runner(options());
  ASSERT_TRUE(local.ok()) << local.status();
  NaivePlanner planner(*local);
  for (int32_t i = 0; i < reference_.length(); ++i) {
    EXPECT_LE(
        largest_difference(planner.feed(reference_.ids[i]), reference_.row("seq_logits_exact", i)),
        tolerance_)
        << "row " << i;
  }
}

TEST_P(Golden, IteratedPrefill) {
  auto replica = LocalReplica::open(options());
  ASSERT_TRUE(replica.ok()) << replica.status();
  expect_prompt(**replica, PrefillMode::kIterated, reference_.prompt, "prefill_logits");
}

// A budget of a few rows a step cuts passes into chunks.
TEST_P(Golden, IteratedPrefillInChunks) {
  LocalOptions chunked = options();
  chunked.max_batched_rows = 7;
  auto replica = LocalReplica::open(chunked);
  ASSERT_TRUE(replica.ok()) << replica.status();
  expect_prompt(**replica, PrefillMode::kIterated, reference_.prompt, "prefill_logits");
}

TEST_P(Golden, KvAfterIteratedPrefill) {
  // Windows let blocks go that no later row sees: with blocks of 64 tokens none is.
  LocalOptions whole = options();
  whole.block_size = 64;
  auto replica = LocalReplica::open(whole);
  ASSERT_TRUE(replica.ok()) << replica.status();
  SequenceSpec prompt = spec(PrefillMode::kIterated, reference_.prompt, 0);
  prompt.max_new_tokens = 8;
  const SequenceId sequence = (*replica)->submit(std::move(prompt));
  while ((*replica)->transcript(sequence).tokens.empty()) ASSERT_TRUE((*replica)->step());
  expect_kv(**replica, sequence);
}

TEST_P(Golden, DecodeExact) {
  auto replica = LocalReplica::open(options());
  ASSERT_TRUE(replica.ok()) << replica.status();
  expect_decode(**replica, PrefillMode::kIterated, "decode_logits_exact");
}

TEST_P(Golden, DecodeOfficial) {
  LocalOptions official = options();
  official.official_decode = true;
  auto replica = LocalReplica::open(official);
  ASSERT_TRUE(replica.ok()) << replica.status();
  expect_decode(**replica, PrefillMode::kIterated, "decode_logits_official");
  if (reference_.file.has("prefill_logits_official")) {
    expect_prompt(**replica, PrefillMode::kIterated, reference_.prompt, "prefill_logits_official");
  }
}

std::vector<Case> cases() {
  // The maps that differ most come first.
  const std::vector<std::string> names = {
      "lckv-w2-diag",   "sliding",         "two-groups",     "cla",         "llama",
      "lckv-w0-nodiag", "sandwich-middle", "lckv-w2-nodiag", "short-prompt"};
  std::vector<Case> all;
  for (const Backend& backend : all_backends()) {
    for (size_t i = 0; i < std::min(names.size(), backend.max_models); ++i) {
      if (tolerance_of(names[i], backend.dtype)) all.push_back({names[i], backend});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden, testing::ValuesIn(cases()), [](const auto& info) {
  std::string name = info.param.name + "_" + info.param.backend.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace lckv
