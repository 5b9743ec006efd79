#include "router/relay.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

constexpr size_t kBytesPerId = 5;      // the longest varint of an id
constexpr size_t kBytesPerEvent = 64;  // around the columns

template <typename Ids>
bool contains(const Ids& ids, uint32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

bool splits_character(const std::string& text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

v1::Finished::Reason public_reason(internal::v1::Finished::Reason reason) {
  switch (reason) {
    case internal::v1::Finished::REASON_EOS:
      return v1::Finished::REASON_EOS;
    case internal::v1::Finished::REASON_STOP_TOKEN:
      return v1::Finished::REASON_STOP_TOKEN;
    case internal::v1::Finished::REASON_MAX_NEW_TOKENS:
      return v1::Finished::REASON_MAX_NEW_TOKENS;
    case internal::v1::Finished::REASON_CONTEXT_FULL:
      return v1::Finished::REASON_CONTEXT_FULL;
    default:
      return v1::Finished::REASON_UNSPECIFIED;
  }
}

v1::Finished finished_for(v1::Finished::Reason reason) {
  v1::Finished finished;
  finished.set_reason(reason);
  return finished;
}

}  // namespace

Relay::Relay(GenerateSpec spec, RelayOptions options, absl::Time arrival)
    : spec_(std::move(spec)), options_(options), arrival_(arrival), choices_(spec_.choices.size()) {
  fingerprint_ = spec_.model->hello.fingerprint();
  summary_.num_prompt_tokens = static_cast<uint32_t>(spec_.prompt.size());
  const bool needs_text = spec_.with_text || !spec_.stop_strings.empty();
  for (Choice& choice : choices_) {
    if (!needs_text) continue;
    choice.text =
        std::make_unique<ChoiceText>(spec_.model->tokenizer->vocabulary(),
                                     ChoiceTextOptions{.stop_strings = spec_.stop_strings,
                                                       .include_stop = spec_.include_stop,
                                                       .min_new_tokens = spec_.min_new_tokens});
  }
}

absl::Status Relay::prepare() {
  for (uint32_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    const ChoiceStart& start = spec_.choices[i];
    if (start.finished) {
      choice.started = choice.finished = true;
      choice.place = Place::kEnded;
      continue;
    }
    if (absl::Status status = replay(choice, start); !status.ok()) return status;
    if (auto ending = ending_of(choice)) {
      // The call broke between the last token and its Finished.
      start_choice(i);
      finish_choice(i, *std::move(ending), arrival_);
    }
  }
  return absl::OkStatus();
}

absl::Status Relay::replay(Choice& choice, const ChoiceStart& start) {
  choice.ids = start.resumed;
  choice.sent_tokens = static_cast<uint32_t>(start.resumed.size());
  choice.skip_bytes = choice.sent_bytes = spec_.with_text ? start.num_text_bytes : 0;
  if (choice.text == nullptr) return absl::OkStatus();
  std::string text;
  for (const uint32_t id : start.resumed) {
    if (choice.text->stop_index() < 0) text += choice.text->push(id);
  }
  if (!start.resumed.empty() && ending_of(choice)) text += choice.text->finish();
  if (!spec_.with_text) return absl::OkStatus();
  if (choice.skip_bytes > text.size() || splits_character(text, choice.skip_bytes)) {
    return invalid_field("resume.choices.num_text_bytes",
                         absl::StrCat("the ids give ", text.size(), " bytes of text, ",
                                      choice.skip_bytes, " is no place in it"));
  }
  choice.rest = without_skipped(choice, std::move(text));
  return absl::OkStatus();
}

// What a choice's ids end it with, where they do.
std::optional<v1::Finished> Relay::ending_of(const Choice& choice) const {
  if (choice.ids.empty()) return std::nullopt;
  if (choice.text && choice.text->stop_index() >= 0) return finished_by_string(*choice.text);
  const uint32_t last = choice.ids.back();
  if (choice.ids.size() >= spec_.min_new_tokens) {
    if (!spec_.ignore_eos && contains(spec_.model->hello.eos_token_ids(), last)) {
      return finished_for(v1::Finished::REASON_EOS);
    }
    if (contains(spec_.stop_token_ids, last)) {
      v1::Finished finished = finished_for(v1::Finished::REASON_STOP_TOKEN);
      finished.set_matched_stop_token(last);
      return finished;
    }
  }
  if (spec_.max_new_tokens && choice.ids.size() >= *spec_.max_new_tokens) {
    return finished_for(v1::Finished::REASON_MAX_NEW_TOKENS);
  }
  if (spec_.prompt.size() + choice.ids.size() >= spec_.model->hello.max_context_tokens()) {
    return finished_for(v1::Finished::REASON_CONTEXT_FULL);
  }
  return std::nullopt;
}

v1::Finished Relay::finished_by_string(const ChoiceText& text) const {
  v1::Finished finished = finished_for(v1::Finished::REASON_STOP_STRING);
  finished.set_matched_stop_string(spec_.stop_strings[static_cast<size_t>(text.stop_index())]);
  return finished;
}

std::string Relay::without_skipped(Choice& choice, std::string text) {
  const size_t skipped = std::min<uint64_t>(choice.skip_bytes, text.size());
  choice.skip_bytes -= skipped;
  text.erase(0, skipped);
  return text;
}

void Relay::on_update(ChoiceAttempt attempt, const SequenceUpdate& update, absl::Time now) {
  if (!is_current(attempt)) return;
  const uint32_t index = attempt.choice;
  Choice& choice = choices_[index];
  if (update.started != nullptr) choice.seated = true;
  if (update.started != nullptr && !choice.started) {
    choice.queue_seconds = wait_seconds_ + update.started->queue_seconds();
    choice.num_cached_tokens = update.started->num_cached_tokens();
    summary_.queue_seconds = std::max(summary_.queue_seconds, choice.queue_seconds);
    if (index == 0) summary_.num_cached_tokens = choice.num_cached_tokens;
    start_choice(index);
  }
  for (const auto* prompt : update.prompt_logprobs) {
    if (index == 0) take_prompt_logprobs(*prompt);
  }
  if (!update.tokens.empty() || (update.finished != nullptr && choice.text != nullptr)) {
    take_tokens(index, update, now);
  }
  if (!choice.finished && update.finished != nullptr) {
    finish_by_worker(index, *update.finished, now);
  }
  pause_if_behind();
}

void Relay::start_choice(uint32_t index) {
  Choice& choice = choices_[index];
  if (choice.started) return;
  choice.started = true;
  v1::GenerateEvent event;
  v1::Started& started = *event.mutable_started();
  started.set_request_id(spec_.request_id);
  started.set_model(spec_.model->hello.model());
  started.set_num_prompt_tokens(static_cast<uint32_t>(spec_.prompt.size()));
  started.set_num_cached_tokens(choice.num_cached_tokens);
  *started.mutable_sampling() = spec_.sampling;
  started.set_fingerprint(fingerprint_);
  push(index, std::move(event));
  if (choice.rest.empty()) return;
  v1::Tokens tokens;
  tokens.set_position(static_cast<uint32_t>(choice.ids.size()));
  tokens.set_text(std::exchange(choice.rest, std::string()));
  add_tokens(index, std::move(tokens));
}

void Relay::take_tokens(uint32_t index, const SequenceUpdate& update, absl::Time now) {
  Choice& choice = choices_[index];
  v1::Tokens tokens;
  tokens.set_position(static_cast<uint32_t>(choice.ids.size()));
  std::string text;
  for (size_t i = 0; i < update.tokens.size(); ++i) {
    if (choice.text && choice.text->stop_index() >= 0) break;
    const uint32_t id = update.tokens[i];
    tokens.add_ids(id);
    choice.ids.push_back(id);
    ++summary_.num_new_tokens;
    if (choice.text) text += choice.text->push(id);
    if (spec_.num_logprobs && i < update.logprobs.size()) {
      fill_logprobs(*update.logprobs[i], id, *tokens.add_logprobs());
    }
  }
  if (!tokens.ids().empty() && choice.first_token_seconds == 0) {
    choice.first_token_seconds = absl::ToDoubleSeconds(now - arrival_);
    if (summary_.first_token_seconds == 0) {
      summary_.first_token_seconds = choice.first_token_seconds;
    }
  }
  if (choice.text && update.finished != nullptr) text += choice.text->finish();
  if (spec_.with_text) tokens.set_text(without_skipped(choice, std::move(text)));
  if (!tokens.ids().empty() || !tokens.text().empty()) add_tokens(index, std::move(tokens));
  if (choice.text && choice.text->stop_index() >= 0) {
    v1::Finished finished = finished_by_string(*choice.text);
    if (update.finished != nullptr) {
      finished.mutable_usage()->set_num_prefill_walks(update.finished->num_prefill_walks());
      finished.mutable_usage()->set_num_preemptions(update.finished->num_preemptions());
    } else {
      commands_.push_back({RelayCommand::Kind::kCancel, index});
    }
    finish_choice(index, std::move(finished), now);
  }
}

void Relay::add_tokens(uint32_t index, v1::Tokens tokens) {
  Choice& choice = choices_[index];
  size_t bytes = static_cast<size_t>(tokens.ids_size()) * kBytesPerId + tokens.text().size();
  for (const auto& entry : tokens.logprobs()) bytes += entry.ByteSizeLong();
  if (choice.last_tokens_event >= first_number_) {
    Waiting& last = waiting_[choice.last_tokens_event - first_number_];
    if (last.bytes + bytes <= options_.event_bytes) {
      v1::Tokens& joined = *last.event.mutable_tokens();
      joined.mutable_ids()->MergeFrom(tokens.ids());
      joined.mutable_text()->append(tokens.text());
      joined.mutable_logprobs()->MergeFrom(tokens.logprobs());
      last.bytes += bytes;
      waiting_bytes_ += bytes;
      return;
    }
  }
  v1::GenerateEvent event;
  *event.mutable_tokens() = std::move(tokens);
  push(index, std::move(event));
  choice.last_tokens_event = first_number_ + waiting_.size() - 1;
}

void Relay::finish_by_worker(uint32_t index, const internal::v1::Finished& from, absl::Time now) {
  if (from.reason() == internal::v1::Finished::REASON_FAILED) {
    choices_[index].place = Place::kEnded;
    fail(with_reason(absl::InternalError(absl::StrCat("the replica failed: ", from.message())),
                     "ENGINE_FAILED"),
         false);
    return;
  }
  v1::Finished finished = finished_for(public_reason(from.reason()));
  finished.set_matched_stop_token(from.matched_stop_token());
  finished.mutable_usage()->set_num_prefill_walks(from.num_prefill_walks());
  finished.mutable_usage()->set_num_preemptions(from.num_preemptions());
  finish_choice(index, std::move(finished), now);
}

void Relay::finish_choice(uint32_t index, v1::Finished finished, absl::Time now) {
  Choice& choice = choices_[index];
  LCKV_CHECK(!choice.finished);
  start_choice(index);
  choice.finished = true;
  choice.place = Place::kEnded;
  v1::Usage& usage = *finished.mutable_usage();
  if (index == 0) {
    usage.set_num_prompt_tokens(static_cast<uint32_t>(spec_.prompt.size()));
    usage.set_num_cached_tokens(choice.num_cached_tokens);
  }
  usage.set_num_generated_tokens(static_cast<uint32_t>(choice.ids.size()));
  usage.set_num_resumes(choice.num_resumes);
  usage.set_queue_seconds(choice.queue_seconds);
  usage.set_first_token_seconds(choice.first_token_seconds);
  usage.set_total_seconds(absl::ToDoubleSeconds(now - arrival_));
  v1::GenerateEvent event;
  *event.mutable_finished() = std::move(finished);
  push(index, std::move(event));
}

void Relay::fail(absl::Status why, bool drop_waiting) {
  LCKV_CHECK(!why.ok());
  if (drop_waiting) {
    first_number_ += waiting_.size();
    waiting_.clear();
    waiting_bytes_ = 0;
  }
  if (!failure_.ok()) return;
  failure_ = std::move(why);
  command_active(RelayCommand::Kind::kCancel);
}

void Relay::command_active(RelayCommand::Kind kind) {
  for (uint32_t i = 0; i < choices_.size(); ++i) {
    if (choices_[i].place == Place::kPlaced) commands_.push_back({kind, i});
  }
}

Relay::Waiting& Relay::push(uint32_t index, v1::GenerateEvent event) {
  event.set_choice(index);
  choices_[index].last_tokens_event = 0;
  const size_t bytes = event.ByteSizeLong() + kBytesPerEvent;
  waiting_bytes_ += bytes;
  return waiting_.emplace_back(Waiting{std::move(event), bytes});
}

void Relay::pause_if_behind() {
  if (paused_ || waiting_bytes_ <= options_.pause_above_bytes) return;
  paused_ = true;
  command_active(RelayCommand::Kind::kPause);
}

bool Relay::next_event(v1::GenerateEvent& event) {
  if (waiting_.empty()) return false;
  waiting_bytes_ -= waiting_.front().bytes;
  event = std::move(waiting_.front().event);
  waiting_.pop_front();
  ++first_number_;
  Choice& choice = choices_[event.choice()];
  choice.sent_tokens += static_cast<uint32_t>(event.tokens().ids_size());
  choice.sent_bytes += event.tokens().text().size();
  choice.sent_finished = choice.sent_finished || event.has_finished();
  if (paused_ && waiting_bytes_ < options_.unpause_below_bytes) {
    paused_ = false;
    command_active(RelayCommand::Kind::kUnpause);
  }
  return true;
}

bool Relay::ended() const {
  if (!waiting_.empty()) return false;
  return !failure_.ok() || std::all_of(choices_.begin(), choices_.end(),
                                       [](const Choice& choice) { return choice.finished; });
}

absl::Status Relay::status() const {
  LCKV_CHECK(ended());
  if (failure_.ok()) return failure_;
  v1::Interrupted interrupted;
  bool delivered = false;
  for (uint32_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    delivered = delivered || choice.sent_tokens > spec_.choices[i].resumed.size();
    v1::ChoiceProgress& progress = *interrupted.add_choices();
    progress.set_choice(i);
    progress.set_num_text_bytes(choice.sent_bytes);
    progress.set_finished(choice.sent_finished || spec_.choices[i].finished);
    interrupted.set_num_tokens(interrupted.num_tokens() + choice.sent_tokens);
  }
  return delivered ? with_interrupted(failure_, interrupted) : failure_;
}

std::vector<RelayCommand> Relay::take_commands() {
  return std::exchange(commands_, std::vector<RelayCommand>());
}

}  // namespace lckv
