#include "tests/simulation/simulated_load.h"

#include <algorithm>
#include <array>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/simulation/symbolic_tokens.h"

namespace lckv::simulation {
namespace {

bool contains(const std::vector<int32_t>& ids, int32_t token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

}  // namespace

Ending naive_stream(const SequenceSpec& spec) {
  Ending ending{.tokens = spec.resumed};
  uint64_t hash = 0;
  for (const int32_t token : spec.prompt) hash = extend_hash(hash, token);
  for (const int32_t token : spec.resumed) hash = extend_hash(hash, token);
  while (true) {
    if (!ending.tokens.empty() &&
        static_cast<int32_t>(ending.tokens.size()) >= spec.min_new_tokens) {
      const int32_t last = ending.tokens.back();
      if (contains(spec.eos_token_ids, last)) return {FinishReason::kEos, ending.tokens};
      if (contains(spec.stop_token_ids, last)) return {FinishReason::kStopToken, ending.tokens};
    }
    if (static_cast<int32_t>(ending.tokens.size()) >= spec.max_new_tokens) {
      return {spec.max_is_context ? FinishReason::kContextFull : FinishReason::kMaxNewTokens,
              ending.tokens};
    }
    ending.tokens.push_back(drawn_token(spec, hash, static_cast<int32_t>(ending.tokens.size())));
    hash = extend_hash(hash, ending.tokens.back());
  }
}

namespace {

class LoadMaker {
 public:
  explicit LoadMaker(uint64_t seed)
      : random_(seed), map_(random_map()), options_(random_options()) {
    for (int32_t i = 0; i < options_.max_context; ++i) system_.push_back(below(kVocabulary));
    const int count = 2 + below(14);
    for (int i = 0; i < count; ++i) streams_.push_back(random_stream());
  }

  SimulatedLoad take() {
    SimulatedLoad load{.map = map_, .options = options_, .streams = std::move(streams_)};
    for (const Stream& stream : load.streams) {
      load.last_act =
          std::max({load.last_act, stream.submit_at, stream.cancel_at, stream.unpause_at});
    }
    return load;
  }

 private:
  int32_t below(int32_t bound) {
    return static_cast<int32_t>(random_() % static_cast<uint64_t>(bound));
  }
  bool one_in(int32_t n) { return below(n) == 0; }

  SimulatedMap random_map() {
    static const std::array<const char*, 10> kMaps = {
        "0_1_2_3",           "0_0_2_2", "0_6_6_6_6_6_6_7", "3_3_3_3",  "0_2_2_3_4",
        "0_0_0_5_5_5_8_8_8", "1_1_3_3", "0_1s_1_4_4s",     "0s_1s_2s", "0s_3s_3s_3s_4s"};
    return make_map(kMaps[below(kMaps.size())], one_in(2), 3 + below(8));
  }

  SchedulerOptions random_options() {
    SchedulerOptions options;
    const auto layers = static_cast<int32_t>(map_.layers.size());
    options.max_num_seqs = 1 + below(6);
    options.max_waiting = 64;
    options.max_context = 24 + below(40);
    options.prefix_caching = !one_in(4);
    options.reproducible = one_in(2);
    options.prefill_lookahead = options.reproducible || one_in(2) ? 1 + below(9) : 0;
    options.max_batched_rows = std::max(options.prefill_lookahead, 4 + below(24));
    options.max_batched_rows = std::max(options.max_batched_rows, options.max_num_seqs);
    options.max_row_layers = static_cast<int64_t>(options.max_batched_rows) * layers;
    int32_t blocks_per_longest = 0;
    for (int32_t unit = 0; unit < map_.num_units; ++unit) {
      const int32_t slots = 1 << below(4);
      options.slots_per_block.push_back(slots);
      blocks_per_longest += (options.max_context + slots - 1) / slots;
    }
    options.num_blocks = blocks_per_longest + below(blocks_per_longest * 2 + 1);
    options.num_host_blocks = one_in(3) ? 0 : below(blocks_per_longest * 2 + 1);
    // A seat needs a row, a reproducible chunk all of its own.
    const int32_t fewest = std::max(1, options.reproducible ? options.prefill_lookahead : 1);
    options.staging_rows = fewest + below(options.max_context + options.max_num_seqs);
    options.official_decode = one_in(5);
    options.prefill_tolerance = one_in(2) ? 0.0F : 0.001F;
    options.free_rows = 1 + below(16);
    options.max_uncommitted_plans = 1 + below(2);
    return options;
  }

  Stream random_stream() {
    auto spec = std::make_shared<SequenceSpec>();
    spec->tenant = absl::StrCat("tenant", below(2));
    spec->prefix_salt = one_in(4) ? "salt" : "";
    spec->skip_prefix_cache = one_in(8);
    spec->priority = below(3);
    int32_t prompt = 1 + below(options_.max_context - 1);
    int32_t submit_at = below(80);
    if (!streams_.empty() && one_in(3)) {
      // The next turn of a conversation.
      const Stream& earlier = streams_[below(static_cast<int32_t>(streams_.size()))];
      submit_at = earlier.submit_at + below(200);
      spec->prompt = earlier.spec->prompt;
      const std::vector<int32_t> answer = naive_stream(*earlier.spec).tokens;
      spec->prompt.insert(spec->prompt.end(), answer.begin(), answer.end());
      prompt = std::min<int32_t>(std::ssize(spec->prompt) + below(4), options_.max_context - 1);
      if (!one_in(4)) {
        spec->tenant = earlier.spec->tenant;
        spec->prefix_salt = earlier.spec->prefix_salt;
      }
    } else if (one_in(2)) {
      spec->prompt = system_;
    }
    const int32_t kept = one_in(3) ? below(prompt + 1) : prompt;
    spec->prompt.resize(std::min<int32_t>(kept, std::ssize(spec->prompt)));
    while (std::ssize(spec->prompt) < prompt) spec->prompt.push_back(below(kVocabulary));
    spec->max_is_context = one_in(4);
    const int32_t left = options_.max_context - prompt;
    spec->max_new_tokens = spec->max_is_context ? left : below(left + 1);
    spec->min_new_tokens = one_in(3) ? below(spec->max_new_tokens + 1) : 0;
    if (!one_in(3)) spec->eos_token_ids = {kEos};
    if (one_in(3)) spec->stop_token_ids = {1 + below(kVocabulary - 1)};
    if (one_in(4)) spec->num_prompt_logprobs = 0;
    if (one_in(4)) spec->num_logprobs = 1;
    const bool can_iterate = !map_.cyclic() || prompt <= options_.staging_rows;
    if (can_iterate && one_in(3)) spec->prefill_mode = PrefillMode::kIterated;
    if (one_in(3)) {
      std::vector<int32_t> tokens = naive_stream(*spec).tokens;
      tokens.resize(below(static_cast<int32_t>(tokens.size()) + 1));
      spec->resumed = tokens;
    }
    Stream stream{.spec = spec, .submit_at = submit_at, .tokens = spec->resumed};
    if (one_in(4)) stream.cancel_at = stream.submit_at + below(60);
    if (one_in(4)) {
      stream.pause_at = stream.submit_at + below(60);
      stream.unpause_at = stream.pause_at + 1 + below(60);
    }
    return stream;
  }

  std::mt19937_64 random_;
  const SimulatedMap map_;
  const SchedulerOptions options_;
  std::vector<int32_t> system_;  // what many prompts begin with
  std::vector<Stream> streams_;
};

}  // namespace

SimulatedLoad make_load(uint64_t seed) { return LoadMaker(seed).take(); }

}  // namespace lckv::simulation
