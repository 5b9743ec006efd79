// Plans on the wire: what is read is what was written, for random plans of all kinds.
#include "worker/group/plan_frames.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <random>
#include <sstream>

namespace lckv {
namespace {

// Every field of a plan as text, floats by their bits: equal texts are equal plans.
class PlanText {
 public:
  explicit PlanText(const StepPlan& plan) {
    put(plan.step, plan.num_row_layers);
    for (const auto& copy : plan.to_host) put("h", raw(copy.device), raw(copy.host));
    for (const auto& copy : plan.to_device) put("d", raw(copy.device), raw(copy.host));
    for (const SeatId seat : plan.closed) put("c", raw(seat));
    for (const SeatOpening& opening : plan.opened) {
      put("o", raw(opening.seat), raw(opening.sequence));
      put_all(opening.generated);
      put_spec(*opening.spec);
    }
    for (const auto& trim : plan.trims) put("t", raw(trim.seat), raw(trim.unit), trim.num_blocks);
    for (const auto& a : plan.appends) put("a", raw(a.seat), raw(a.unit), raw(a.block));
    for (const auto& token : plan.tokens) put("k", token.token, token.step, token.sample);
    for (const StagingRow row : plan.staging) put("s", raw(row));
    for (const RangeRows& rows : plan.ordinary) put_ordinary(rows);
    for (const GroupRows& rows : plan.groups) put_walks(rows);
    for (const SampleRow& row : plan.samples) {
      put("x", static_cast<int>(row.kind), raw(row.seat), row.row, row.index, row.target,
          row.num_logprobs);
    }
  }
  std::string text() const { return out_.str(); }

 private:
  template <class... Values>
  void put(const Values&... values) {
    ((out_ << values << ' '), ...);
    out_ << '\n';
  }
  void put_all(const std::vector<int32_t>& values) {
    for (const int32_t value : values) out_ << value << ' ';
    out_ << '\n';
  }
  void put_float(float value) { put("f", std::bit_cast<uint32_t>(value)); }
  void put_spec(const SequenceSpec& spec) {
    put(spec.request_id, spec.traceparent, spec.tenant, spec.prefix_salt, spec.skip_prefix_cache,
        spec.priority, spec.continued, spec.max_new_tokens, spec.max_is_context,
        spec.min_new_tokens, spec.num_logprobs.value_or(-7), spec.num_prompt_logprobs.value_or(-7),
        static_cast<int>(spec.prefill_mode));
    put_all(spec.prompt);
    put_all(spec.resumed);
    put_all(spec.eos_token_ids);
    put_all(spec.stop_token_ids);
    const SamplingSpec& s = spec.sampling;
    for (const float value : {s.temperature, s.top_p, s.min_p, s.repetition_penalty,
                              s.presence_penalty, s.frequency_penalty}) {
      put_float(value);
    }
    put(s.top_k, s.seed, s.choice);
    for (const auto& [id, bias] : s.logit_bias) {
      put(id);
      put_float(bias);
    }
  }
  void put_span(PlanSpan span) { put("p", span.begin, span.count); }
  void put_ordinary(const RangeRows& rows) {
    put("r", rows.num_rows);
    for (const OrdinarySegment& segment : rows.segments) {
      put(raw(segment.seat), segment.first_position, segment.num_rows);
      put_span(segment.tokens);
      put_span(segment.inputs);
      put_span(segment.outputs);
    }
  }
  void put_walks(const GroupRows& rows) {
    put("g", rows.num_rows);
    for (const WalkSegment& segment : rows.segments) {
      put(raw(segment.seat), segment.first_position, segment.num_rows, segment.staged_position,
          segment.num_new, segment.warm, segment.official_decode, static_cast<int>(segment.end));
      put_span(segment.staged);
      put_float(segment.tolerance);
    }
  }

  std::ostringstream out_;
};

class RandomPlan {
 public:
  explicit RandomPlan(uint64_t seed) : random_(seed) {}

  StepPlan make() {
    StepPlan plan{.step = random_(), .num_row_layers = static_cast<int64_t>(random_() >> 1)};
    repeat([&] { plan.to_host.push_back({BlockId{number()}, HostBlockId{number()}}); });
    repeat([&] { plan.to_device.push_back({BlockId{number()}, HostBlockId{number()}}); });
    repeat([&] { plan.closed.push_back(SeatId{number()}); });
    repeat([&] {
      plan.opened.push_back({.seat = SeatId{number()},
                             .sequence = SequenceId{random_()},
                             .spec = std::make_shared<SequenceSpec>(spec()),
                             .generated = numbers()});
    });
    repeat([&] { plan.trims.push_back({SeatId{number()}, UnitId{number()}, number()}); });
    repeat([&] {
      plan.appends.push_back({SeatId{number()}, UnitId{number()}, BlockId{number()}});
    });
    repeat([&] { plan.tokens.push_back({number(), random_(), number()}); });
    repeat([&] { plan.staging.push_back(StagingRow{number()}); });
    repeat([&] { plan.ordinary.push_back(ordinary()); });
    repeat([&] { plan.groups.push_back(walks()); });
    repeat([&] {
      plan.samples.push_back({static_cast<SampleRow::Kind>(random_() % 2), SeatId{number()},
                              number(), number(), number(), number()});
    });
    return plan;
  }

 private:
  int32_t number() { return static_cast<int32_t>(random_()); }
  float real() { return std::bit_cast<float>(static_cast<uint32_t>(random_())); }
  bool coin() { return random_() % 2 == 0; }
  template <class Body>
  void repeat(const Body& body) {
    for (uint64_t i = random_() % 4; i > 0; --i) body();
  }
  std::vector<int32_t> numbers() {
    std::vector<int32_t> made;
    repeat([&] { made.push_back(number()); });
    return made;
  }
  PlanSpan span() { return {number(), number()}; }
  SequenceSpec spec() {
    SequenceSpec spec{.request_id = std::to_string(random_()),
                      .traceparent = std::to_string(random_()),
                      .tenant = std::to_string(random_()),
                      .prefix_salt = std::to_string(random_()),
                      .skip_prefix_cache = random_() % 2 == 0,
                      .priority = number(),
                      .continued = random_() % 2 == 0,
                      .prompt = numbers(),
                      .resumed = numbers(),
                      .sampling = {.temperature = real(),
                                   .top_k = static_cast<uint32_t>(random_()),
                                   .top_p = real(),
                                   .min_p = real(),
                                   .repetition_penalty = real(),
                                   .presence_penalty = real(),
                                   .frequency_penalty = real(),
                                   .seed = random_(),
                                   .choice = static_cast<uint32_t>(random_())},
                      .max_new_tokens = number(),
                      .max_is_context = coin(),
                      .min_new_tokens = number(),
                      .eos_token_ids = numbers(),
                      .stop_token_ids = numbers(),
                      .prefill_mode = coin() ? PrefillMode::kExact : PrefillMode::kIterated};
    repeat([&] { spec.sampling.logit_bias.emplace_back(number(), real()); });
    if (coin()) spec.num_logprobs = number();
    if (coin()) spec.num_prompt_logprobs = number();
    return spec;
  }
  RangeRows ordinary() {
    RangeRows rows{.num_rows = number()};
    repeat([&] {
      rows.segments.push_back({SeatId{number()}, number(), number(), span(), span(), span()});
    });
    return rows;
  }
  GroupRows walks() {
    GroupRows rows{.num_rows = number()};
    repeat([&] {
      rows.segments.push_back({.seat = SeatId{number()},
                               .first_position = number(),
                               .num_rows = number(),
                               .staged_position = number(),
                               .staged = span(),
                               .num_new = number(),
                               .warm = coin(),
                               .tolerance = real(),
                               .official_decode = coin(),
                               .end = static_cast<WalkEnd>(random_() % 4)});
    });
    return rows;
  }

  std::mt19937_64 random_;
};

TEST(PlanFrames, WhatIsReadIsWhatWasWritten) {
  const char* given = std::getenv("TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  SCOPED_TRACE(testing::Message() << "TEST_SEED=" << seed);
  for (uint64_t i = 0; i < 300; ++i) {
    const StepPlan plan = RandomPlan(seed + i).make();
    internal::v1::StepPlan written;
    write_plan(plan, written);
    internal::v1::StepPlan received;
    ASSERT_TRUE(received.ParseFromString(written.SerializeAsString()));
    const auto read = read_plan(received);
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_EQ(PlanText(*read).text(), PlanText(plan).text()) << "plan " << i;
  }
}

TEST(PlanFrames, ColumnsThatDoNotFitTogetherAreRefusedByName) {
  internal::v1::StepPlan frame;
  frame.add_appends(1);
  EXPECT_EQ(read_plan(frame).status().message(),
            "a step plan's appends does not hold whole entries");
  frame.clear_appends();
  frame.add_token(1);
  EXPECT_EQ(read_plan(frame).status().message(),
            "a step plan's tokens does not hold whole entries");
  frame.clear_token();
  frame.add_opened()->mutable_spec()->mutable_sampling()->add_bias(1);
  EXPECT_EQ(read_plan(frame).status().message(), "a step plan's bias does not hold whole entries");
}

TEST(PlanFrames, DigestTellsResultsApart) {
  StepResult result{.step = 3, .settled_rows = {{1, 0}, {2}}};
  result.samples.push_back({.token = 5});
  const uint64_t digest = digest_of(result);
  EXPECT_EQ(digest_of(result), digest);
  result.samples[0].logprob.emplace();  // not every rank needs them
  EXPECT_EQ(digest_of(result), digest);
  result.samples[0].token = 6;
  EXPECT_NE(digest_of(result), digest);
  result.samples[0].token = 5;
  result.settled_rows = {{1}, {0, 2}};
  EXPECT_NE(digest_of(result), digest);
}

}  // namespace
}  // namespace lckv
