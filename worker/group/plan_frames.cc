#include "worker/group/plan_frames.h"

#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

namespace wire = internal::v1;
using Numbers = google::protobuf::RepeatedField<int32_t>;

// Structures are taken apart by name of every field: one that is added and not written does not
// compile.

void add(Numbers& to, std::initializer_list<int32_t> numbers) {
  for (const int32_t number : numbers) to.Add(number);
}

template <class Container>
void add_all(Numbers& to, const Container& values) {
  to.Reserve(static_cast<int>(values.size()));
  for (const auto value : values) to.Add(static_cast<int32_t>(value));
}

void write_copies(const std::vector<BlockCopy>& copies, Numbers& to) {
  for (const auto& [device, host] : copies) add(to, {raw(device), raw(host)});
}

void write_sampling(const SamplingSpec& sampling, wire::SequenceSampling& to) {
  const auto& [temperature, top_k, top_p, min_p, repetition, presence, frequency, bias, seed,
               choice] = sampling;
  to.set_temperature(temperature);
  to.set_top_k(top_k);
  to.set_top_p(top_p);
  to.set_min_p(min_p);
  to.set_repetition_penalty(repetition);
  to.set_presence_penalty(presence);
  to.set_frequency_penalty(frequency);
  for (const auto& [id, value] : bias) {
    to.add_bias_id(id);
    to.add_bias(value);
  }
  to.set_seed(seed);
  to.set_choice(choice);
}

void write_spec(const SequenceSpec& spec, wire::Sequence& to) {
  const auto& [request_id, traceparent, tenant, prefix_salt, skip_prefix_cache, priority, continued,
               prompt, resumed, sampling, max_new_tokens, max_is_context, min_new_tokens,
               eos_token_ids, stop_token_ids, num_logprobs, num_prompt_logprobs, prefill_mode] =
      spec;
  to.set_request_id(request_id);
  to.set_traceparent(traceparent);
  to.set_tenant(tenant);
  to.set_prefix_salt(prefix_salt);
  to.set_skip_prefix_cache(skip_prefix_cache);
  to.set_priority(priority);
  to.set_continued(continued);
  add_all(*to.mutable_prompt(), prompt);
  add_all(*to.mutable_resumed(), resumed);
  write_sampling(sampling, *to.mutable_sampling());
  to.set_max_new_tokens(max_new_tokens);
  to.set_max_is_context(max_is_context);
  to.set_min_new_tokens(min_new_tokens);
  add_all(*to.mutable_eos_token_ids(), eos_token_ids);
  add_all(*to.mutable_stop_token_ids(), stop_token_ids);
  if (num_logprobs) to.set_num_logprobs(*num_logprobs);
  if (num_prompt_logprobs) to.set_num_prompt_logprobs(*num_prompt_logprobs);
  to.set_prefill_mode(static_cast<uint32_t>(prefill_mode));
}

void write_opening(const SeatOpening& opening, wire::SeatOpening& to) {
  const auto& [seat, sequence, spec, generated] = opening;
  to.set_seat(raw(seat));
  to.set_sequence(raw(sequence));
  write_spec(*spec, *to.mutable_spec());
  add_all(*to.mutable_generated(), generated);
}

void write_rows(const RangeRows& rows, wire::OrdinaryRows& to) {
  const auto& [segments, num_rows] = rows;
  for (const auto& [seat, first_position, count, tokens, inputs, outputs] : segments) {
    add(*to.mutable_segments(), {raw(seat), first_position, count, tokens.begin, tokens.count,
                                 inputs.begin, inputs.count, outputs.begin, outputs.count});
  }
  to.set_num_rows(num_rows);
}

void write_walk(const WalkSegment& segment, wire::WalkSegment& to) {
  const auto& [seat, first_position, num_rows, staged_position, staged, num_new, warm, tolerance,
               official_decode, end] = segment;
  to.set_seat(raw(seat));
  to.set_first_position(first_position);
  to.set_num_rows(num_rows);
  to.set_staged_position(staged_position);
  to.set_staged_begin(staged.begin);
  to.set_staged_count(staged.count);
  to.set_num_new(num_new);
  to.set_warm(warm);
  to.set_tolerance(tolerance);
  to.set_official_decode(official_decode);
  to.set_end(static_cast<uint32_t>(end));
}

absl::Status uneven(const char* field) {
  return absl::InvalidArgumentError(
      absl::StrCat("a step plan's ", field, " does not hold whole entries"));
}

std::vector<int32_t> numbers(const Numbers& from) { return {from.begin(), from.end()}; }

bool read_copies(const Numbers& from, std::vector<BlockCopy>& to) {
  if (from.size() % 2 != 0) return false;
  for (int i = 0; i < from.size(); i += 2) {
    to.push_back({.device = BlockId{from[i]}, .host = HostBlockId{from[i + 1]}});
  }
  return true;
}

absl::StatusOr<SamplingSpec> read_sampling(const wire::SequenceSampling& from) {
  SamplingSpec sampling{.temperature = from.temperature(),
                        .top_k = from.top_k(),
                        .top_p = from.top_p(),
                        .min_p = from.min_p(),
                        .repetition_penalty = from.repetition_penalty(),
                        .presence_penalty = from.presence_penalty(),
                        .frequency_penalty = from.frequency_penalty(),
                        .seed = from.seed(),
                        .choice = from.choice()};
  if (from.bias_id_size() != from.bias_size()) return uneven("bias");
  for (int i = 0; i < from.bias_size(); ++i) {
    sampling.logit_bias.emplace_back(from.bias_id(i), from.bias(i));
  }
  return sampling;
}

absl::StatusOr<std::shared_ptr<const SequenceSpec>> read_spec(const wire::Sequence& from) {
  auto sampling = read_sampling(from.sampling());
  if (!sampling.ok()) return sampling.status();
  auto spec = std::make_shared<SequenceSpec>();
  *spec = {.request_id = from.request_id(),
           .traceparent = from.traceparent(),
           .tenant = from.tenant(),
           .prefix_salt = from.prefix_salt(),
           .skip_prefix_cache = from.skip_prefix_cache(),
           .priority = from.priority(),
           .continued = from.continued(),
           .prompt = numbers(from.prompt()),
           .resumed = numbers(from.resumed()),
           .sampling = *std::move(sampling),
           .max_new_tokens = from.max_new_tokens(),
           .max_is_context = from.max_is_context(),
           .min_new_tokens = from.min_new_tokens(),
           .eos_token_ids = numbers(from.eos_token_ids()),
           .stop_token_ids = numbers(from.stop_token_ids()),
           .prefill_mode = static_cast<PrefillMode>(from.prefill_mode())};
  if (from.has_num_logprobs()) spec->num_logprobs = from.num_logprobs();
  if (from.has_num_prompt_logprobs()) spec->num_prompt_logprobs = from.num_prompt_logprobs();
  return spec;
}

absl::Status read_rows(const wire::OrdinaryRows& from, RangeRows& to) {
  constexpr int kNumbers = 9;
  const Numbers& flat = from.segments();
  if (flat.size() % kNumbers != 0) return uneven("ordinary");
  for (int i = 0; i < flat.size(); i += kNumbers) {
    to.segments.push_back({.seat = SeatId{flat[i]},
                           .first_position = flat[i + 1],
                           .num_rows = flat[i + 2],
                           .tokens = {flat[i + 3], flat[i + 4]},
                           .inputs = {flat[i + 5], flat[i + 6]},
                           .outputs = {flat[i + 7], flat[i + 8]}});
  }
  to.num_rows = from.num_rows();
  return absl::OkStatus();
}

void read_walks(const wire::WalkRows& from, GroupRows& to) {
  for (const wire::WalkSegment& segment : from.segments()) {
    to.segments.push_back({.seat = SeatId{segment.seat()},
                           .first_position = segment.first_position(),
                           .num_rows = segment.num_rows(),
                           .staged_position = segment.staged_position(),
                           .staged = {segment.staged_begin(), segment.staged_count()},
                           .num_new = segment.num_new(),
                           .warm = segment.warm(),
                           .tolerance = segment.tolerance(),
                           .official_decode = segment.official_decode(),
                           .end = static_cast<WalkEnd>(segment.end())});
  }
  to.num_rows = from.num_rows();
}

// Tables and seats: what the step changes before it runs.
absl::Status read_changes(const wire::StepPlan& from, StepPlan& plan) {
  if (!read_copies(from.to_host(), plan.to_host)) return uneven("to_host");
  if (!read_copies(from.to_device(), plan.to_device)) return uneven("to_device");
  for (const int32_t seat : from.closed()) plan.closed.push_back(SeatId{seat});
  for (const wire::SeatOpening& opening : from.opened()) {
    auto spec = read_spec(opening.spec());
    if (!spec.ok()) return spec.status();
    plan.opened.push_back({.seat = SeatId{opening.seat()},
                           .sequence = SequenceId{opening.sequence()},
                           .spec = *std::move(spec),
                           .generated = numbers(opening.generated())});
  }
  const Numbers& trims = from.trims();
  if (trims.size() % 3 != 0) return uneven("trims");
  for (int i = 0; i < trims.size(); i += 3) {
    plan.trims.push_back({SeatId{trims[i]}, UnitId{trims[i + 1]}, trims[i + 2]});
  }
  const Numbers& appends = from.appends();
  if (appends.size() % 3 != 0) return uneven("appends");
  for (int i = 0; i < appends.size(); i += 3) {
    plan.appends.push_back({SeatId{appends[i]}, UnitId{appends[i + 1]}, BlockId{appends[i + 2]}});
  }
  return absl::OkStatus();
}

absl::Status read_samples(const Numbers& from, std::vector<SampleRow>& to) {
  constexpr int kNumbers = 6;
  if (from.size() % kNumbers != 0) return uneven("samples");
  for (int i = 0; i < from.size(); i += kNumbers) {
    to.push_back({.kind = static_cast<SampleRow::Kind>(from[i]),
                  .seat = SeatId{from[i + 1]},
                  .row = from[i + 2],
                  .index = from[i + 3],
                  .target = from[i + 4],
                  .num_logprobs = from[i + 5]});
  }
  return absl::OkStatus();
}

}  // namespace

void write_plan(const StepPlan& plan, wire::StepPlan& to) {
  const auto& [step, to_host, to_device, closed, opened, trims, appends, tokens, staging, ordinary,
               groups, samples, num_row_layers] = plan;
  to.set_step(step);
  write_copies(to_host, *to.mutable_to_host());
  write_copies(to_device, *to.mutable_to_device());
  add_all(*to.mutable_closed(), closed);
  for (const SeatOpening& opening : opened) write_opening(opening, *to.add_opened());
  for (const auto& [seat, unit, num_blocks] : trims) {
    add(*to.mutable_trims(), {raw(seat), raw(unit), num_blocks});
  }
  for (const auto& [seat, unit, block] : appends) {
    add(*to.mutable_appends(), {raw(seat), raw(unit), raw(block)});
  }
  for (const auto& [token, token_step, sample] : tokens) {
    to.add_token(token);
    to.add_token_step(token_step);
    to.add_token_sample(sample);
  }
  add_all(*to.mutable_staging(), staging);
  for (const RangeRows& rows : ordinary) write_rows(rows, *to.add_ordinary());
  for (const auto& [segments, num_rows] : groups) {
    wire::WalkRows& rows = *to.add_groups();
    for (const WalkSegment& segment : segments) write_walk(segment, *rows.add_segments());
    rows.set_num_rows(num_rows);
  }
  for (const auto& [kind, seat, row, index, target, num_logprobs] : samples) {
    add(*to.mutable_samples(),
        {static_cast<int32_t>(kind), raw(seat), row, index, target, num_logprobs});
  }
  to.set_num_row_layers(num_row_layers);
}

absl::StatusOr<StepPlan> read_plan(const wire::StepPlan& from) {
  StepPlan plan{.step = from.step()};
  if (absl::Status status = read_changes(from, plan); !status.ok()) return status;
  if (from.token_size() != from.token_step_size() ||
      from.token_size() != from.token_sample_size()) {
    return uneven("tokens");
  }
  for (int i = 0; i < from.token_size(); ++i) {
    plan.tokens.push_back({from.token(i), from.token_step(i), from.token_sample(i)});
  }
  for (const int32_t row : from.staging()) plan.staging.push_back(StagingRow{row});
  for (const wire::OrdinaryRows& rows : from.ordinary()) {
    if (absl::Status status = read_rows(rows, plan.ordinary.emplace_back()); !status.ok()) {
      return status;
    }
  }
  for (const wire::WalkRows& rows : from.groups()) read_walks(rows, plan.groups.emplace_back());
  if (absl::Status status = read_samples(from.samples(), plan.samples); !status.ok()) return status;
  plan.num_row_layers = from.num_row_layers();
  return plan;
}

uint64_t digest_of(const StepResult& result) {
  // FNV-1a over numbers.
  uint64_t digest = 0xcbf29ce484222325;
  const auto mix = [&digest](uint64_t number) { digest = (digest ^ number) * 0x100000001b3; };
  mix(result.step);
  for (const SampleResult& sample : result.samples) mix(static_cast<uint32_t>(sample.token));
  for (const std::vector<int32_t>& group : result.settled_rows) {
    mix(group.size());
    for (const int32_t rows : group) mix(static_cast<uint32_t>(rows));
  }
  return digest;
}

}  // namespace lckv
