// The relay's part that knows which replica each choice is at, and what its loss means.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "router/relay.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

absl::Status refusal_status(const internal::v1::Refused& refused) {
  absl::Status status(static_cast<absl::StatusCode>(refused.code()), refused.message());
  if (refused.code() <= 0 || to_grpc_code(status.code()) == grpc::StatusCode::UNKNOWN) {
    status = absl::InternalError(refused.message());
  }
  if (!refused.field().empty()) {
    status = with_field(std::move(status), refused.field(), refused.message());
  }
  if (refused.retry_seconds() > 0) {
    status = with_retry(std::move(status), absl::Seconds(refused.retry_seconds()));
  }
  return status;
}

}  // namespace

std::vector<uint32_t> Relay::unplaced() const {
  std::vector<uint32_t> unplaced;
  for (uint32_t i = 0; i < choices_.size(); ++i) {
    if (is_unplaced(i)) unplaced.push_back(i);
  }
  return unplaced;
}

internal::v1::Submit Relay::submit_of(uint32_t index) const {
  const Choice& choice = choices_[index];
  LCKV_CHECK(choice.place == Place::kNone);
  internal::v1::Submit submit = make_submit(spec_, index, choice.ids);
  submit.set_attempt(choice.attempt + 1);
  if (num_prompt_logprobs_ >= spec_.prompt.size()) submit.clear_num_prompt_logprobs();
  return submit;
}

const std::string& Relay::required_fingerprint() const {
  // A choice that is placed may have its Started under way.
  const bool fixed = std::any_of(choices_.begin(), choices_.end(), [](const Choice& choice) {
    return choice.place == Place::kPlaced || (choice.attempt > 0 && choice.started);
  });
  return fixed ? fingerprint_ : spec_.fingerprint;
}

bool Relay::accepts(const std::string& fingerprint) const {
  const std::string& required = required_fingerprint();
  return required.empty() || required == fingerprint;
}

void Relay::on_placed(const std::vector<uint32_t>& choices, const std::string& fingerprint,
                      absl::Time now) {
  fingerprint_ = fingerprint;
  wait_seconds_ = absl::ToDoubleSeconds(now - arrival_);
  for (const uint32_t index : choices) {
    Choice& choice = choices_[index];
    LCKV_CHECK(choice.place == Place::kNone);
    choice.place = Place::kPlaced;
    ++choice.attempt;
    choice.seated = false;
    choice.num_ids_at_start = choice.ids.size();
    if (paused_) commands_.push_back({RelayCommand::Kind::kPause, index});
  }
}

bool Relay::is_current(ChoiceAttempt attempt) const {
  LCKV_CHECK(attempt.choice < choices_.size());
  const Choice& choice = choices_[attempt.choice];
  return failure_.ok() && choice.place == Place::kPlaced && choice.attempt == attempt.attempt;
}

void Relay::on_seated(ChoiceAttempt attempt) {
  if (is_current(attempt)) choices_[attempt.choice].seated = true;
}

bool Relay::has_progress() const {
  return num_prompt_logprobs_ > 0 ||
         std::any_of(choices_.begin(), choices_.end(),
                     [](const Choice& choice) { return !choice.ids.empty(); });
}

void Relay::need_replica(uint32_t index, ReplicaNeed need, absl::Time now) {
  Choice& choice = choices_[index];
  choice.place = Place::kNone;
  // Being refused again and again is one wait.
  if (choice.seated || choice.lost_at == absl::InfinitePast()) choice.lost_at = now;
  need.choice = index;
  need.since = choice.lost_at;
  need.resume = has_progress();
  need.charged = need.charged && !need.resume;
  needs_.push_back(need);
}

void Relay::on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused,
                       absl::Time now) {
  if (!is_current(attempt)) return;
  const auto code = static_cast<absl::StatusCode>(refused.code());
  if (code == absl::StatusCode::kResourceExhausted) {
    need_replica(attempt.choice, {.charged = true, .delayed = true}, now);
  } else if (code == absl::StatusCode::kUnavailable) {
    // It drains. Nothing was begun, and its next frame keeps others from trying.
    need_replica(attempt.choice, {.delayed = true}, now);
  } else {
    choices_[attempt.choice].place = Place::kEnded;
    fail(refusal_status(refused), false);
  }
}

void Relay::on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why, absl::Time now) {
  if (!is_current(attempt)) return;
  Choice& choice = choices_[attempt.choice];
  if (kind == LossKind::kStopped) {
    choice.place = Place::kEnded;
    fail(with_retry(why, absl::Seconds(1)), false);
    return;
  }
  if (auto ending = ending_of(choice)) {
    // Lost between the last token and its Finished.
    if (choice.text) {
      v1::Tokens tokens;
      tokens.set_position(static_cast<uint32_t>(choice.ids.size()));
      std::string text = choice.text->finish();
      if (spec_.with_text) tokens.set_text(without_skipped(choice, std::move(text)));
      if (!tokens.text().empty()) add_tokens(attempt.choice, std::move(tokens));
      if (choice.text->stop_index() >= 0) ending = finished_by_string(*choice.text);
    }
    finish_choice(attempt.choice, *std::move(ending), now);
    return;
  }
  if (choice.ids.size() > choice.num_ids_at_start) {
    choice.num_deaths = 0;
  } else if (kind == LossKind::kDied && choice.seated && !paused_) {
    ++choice.num_deaths;
  }
  if (choice.num_deaths >= options_.max_deaths) {
    choice.place = Place::kEnded;
    fail(with_reason(absl::InternalError(absl::StrCat(
                         choice.num_deaths, " replicas in a row died in a step of this request")),
                     "POISON"),
         false);
    return;
  }
  const bool died = kind == LossKind::kDied;
  need_replica(attempt.choice,
               {.charged = died, .delayed = died && (choice.num_deaths > 0 || !has_progress())},
               now);
  if (!needs_.back().resume) return;
  ++choice.num_resumes;
  ++summary_.num_resumes;
}

std::vector<ReplicaNeed> Relay::take_needs() {
  return std::exchange(needs_, std::vector<ReplicaNeed>());
}

}  // namespace lckv
