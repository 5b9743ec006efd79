#include "worker/service/sequence_log.h"

#include <cmath>

#include "rpc/trace_span.h"

namespace lckv {
namespace {

double rounded_ms(absl::Duration duration) {
  return std::round(absl::ToDoubleMilliseconds(duration) * 10) / 10;
}

}  // namespace

absl::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kMaxNewTokens:
      return "length";
    case FinishReason::kContextFull:
      return "context_full";
  }
  return "unknown";
}

LogFields describe(const SequenceEnd& end) {
  const SequenceSpec& spec = end.spec;
  const SequenceTimes& times = end.times;
  LogFields fields = {{"request_id", spec.request_id}, {"choice", spec.sampling.choice}};
  if (const auto trace = parse_traceparent(spec.traceparent)) {
    fields.emplace_back("trace_id", trace->trace_id);
    fields.emplace_back("parent_span_id", trace->span_id);
  }
  if (!spec.tenant.empty()) fields.emplace_back("tenant", spec.tenant);
  fields.emplace_back("reason", end.reason);
  fields.emplace_back("prompt_tokens", spec.prompt.size());
  fields.emplace_back("resumed_tokens", spec.resumed.size());
  fields.emplace_back("cached_tokens", times.num_cached);
  fields.emplace_back("generated_tokens", times.num_tokens);
  fields.emplace_back("walks", end.num_prefill_walks);
  fields.emplace_back("preemptions", end.num_preemptions);
  if (times.started <= end.now) {
    fields.emplace_back("queue_ms", rounded_ms(times.started - times.arrived));
  }
  if (times.num_tokens > 0) {
    fields.emplace_back("first_token_ms", rounded_ms(times.first_token - times.arrived));
  }
  fields.emplace_back("total_ms", rounded_ms(end.now - times.arrived));
  return fields;
}

}  // namespace lckv
