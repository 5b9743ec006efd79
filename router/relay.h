// One client call as a state machine without I/O: what a replica says goes in, what the client is
// to get and what the replica is to be told comes out.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lckv/v1/inference.pb.h"
#include "router/fleet/sequence_sink.h"
#include "router/generate_spec.h"
#include "router/text/choice_text.h"

namespace lckv {

struct RelayOptions {
  // Bytes that may wait for the reader before its sequences are paused, and below which they go on.
  size_t pause_above_bytes = 256 << 10;
  size_t unpause_below_bytes = 64 << 10;
  // Tokens that wait for the reader are joined into events of about this size; logprobs are cut at
  // it.
  size_t event_bytes = 512 << 10;
  // Replicas in a row that may die with a choice in their running step and no token gained.
  uint32_t max_deaths = 3;
};

struct RelayCommand {
  enum class Kind { kCancel, kPause, kUnpause };
  Kind kind;
  uint32_t choice;
};

// A choice that has lost its replica, or was not taken, and is to be placed again.
struct ReplicaNeed {
  uint32_t choice = 0;
  // The call has delivered something: it goes on ahead of new work, and no retry budget refuses it.
  bool resume = false;
  bool charged = false;  // to the retry budget
  absl::Time since;      // when it lost the last replica that had seated it, or was first refused
  bool delayed = false;  // there was no room, or a replica died: not at once again
};

// What the log and the metrics say about a call.
struct RelaySummary {
  uint32_t num_prompt_tokens = 0;
  uint32_t num_cached_tokens = 0;
  uint64_t num_new_tokens = 0;  // generated in this call
  double queue_seconds = 0;     // of the choice that waited longest, here and at the replica
  double first_token_seconds = 0;
  uint32_t num_resumes = 0;  // of all choices
};

// Owned by one call, used under its lock. Events of one choice come out in order; an ending comes
// out after them.
class Relay {
 public:
  Relay(GenerateSpec spec, RelayOptions options, absl::Time arrival);

  // Replays resumed ids: choices that are at their end already finish here. Once, first.
  // InvalidArgument where the progress that the caller claims cannot be.
  absl::Status prepare();
  // Choices that wait for a replica; empty right after prepare(): the call ends without one.
  std::vector<uint32_t> unplaced() const;
  bool is_unplaced(uint32_t choice) const { return choices_[choice].place == Place::kNone; }
  // Of an unplaced choice: continues behind the last token that came.
  internal::v1::Submit submit_of(uint32_t choice) const;
  // Of the only replicas that will do; empty: any. Set once the caller was told, or may be.
  const std::string& required_fingerprint() const;
  // Asked when a replica is found: what was required when the wait began may have changed since,
  // because another choice was placed meanwhile.
  bool accepts(const std::string& fingerprint) const;
  // Whether the call has anything that a new one would not have.
  bool has_progress() const;

  // The unplaced choices were submitted, to one replica of this fingerprint.
  void on_placed(const std::vector<uint32_t>& choices, const std::string& fingerprint,
                 absl::Time now);
  // What an attempt other than a choice's newest says is ignored in all of these.
  void on_seated(ChoiceAttempt attempt);
  void on_update(ChoiceAttempt attempt, const SequenceUpdate& update, absl::Time now);
  void on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused, absl::Time now);
  void on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why, absl::Time now);
  // Choices that have become unplaced since the last call.
  std::vector<ReplicaNeed> take_needs();
  // Ends the call with an error; what waits for the reader is sent first, or dropped.
  void fail(absl::Status why, bool drop_waiting);

  bool failed() const { return !failure_.ok(); }

  // The next event to write, counted as sent. False: none waits.
  bool next_event(v1::GenerateEvent& event);
  // All has been sent, or dropped, and nothing will come.
  bool ended() const;
  // Once ended: OK, or the error with what was delivered.
  absl::Status status() const;
  std::vector<RelayCommand> take_commands();

  const GenerateSpec& spec() const { return spec_; }
  const RelaySummary& summary() const { return summary_; }
  size_t waiting_bytes() const { return waiting_bytes_; }

 private:
  // kNone: unplaced. kEnded: needs no replica any more.
  enum class Place : uint8_t { kNone, kPlaced, kEnded };
  struct Choice {
    std::unique_ptr<ChoiceText> text;  // null: no text is needed
    std::vector<uint32_t> ids;         // generated, resumed ones included
    uint64_t skip_bytes = 0;           // of its text, which the caller has
    std::string rest;                  // resumed text that the caller lacks, until Started
    Place place = Place::kNone;
    uint32_t attempt = 0;         // the newest
    bool seated = false;          // in this attempt; stays so until it ends
    size_t num_ids_at_start = 0;  // of this attempt
    uint32_t num_deaths = 0;      // in a row, as max_deaths counts them
    uint32_t num_resumes = 0;
    // When it lost the last replica that had seated it, or was first refused.
    absl::Time lost_at = absl::InfinitePast();
    bool started = false;
    bool finished = false;
    double first_token_seconds = 0;
    double queue_seconds = 0;
    uint32_t num_cached_tokens = 0;
    uint64_t last_tokens_event = 0;  // number of its newest waiting Tokens event, 0: none to join
    // Written so far.
    uint32_t sent_tokens = 0;
    uint64_t sent_bytes = 0;
    bool sent_finished = false;
  };
  struct Waiting {
    v1::GenerateEvent event;
    size_t bytes = 0;
  };

  absl::Status replay(Choice& choice, const ChoiceStart& start);
  std::optional<v1::Finished> ending_of(const Choice& choice) const;
  bool is_current(ChoiceAttempt attempt) const;
  void need_replica(uint32_t index, ReplicaNeed need, absl::Time now);
  v1::Finished finished_by_string(const ChoiceText& text) const;
  std::string without_skipped(Choice& choice, std::string text);
  void start_choice(uint32_t index);
  void take_prompt_logprobs(const internal::v1::PromptLogprobs& prompt);
  void take_tokens(uint32_t index, const SequenceUpdate& update, absl::Time now);
  void add_tokens(uint32_t index, v1::Tokens tokens);
  void finish_choice(uint32_t index, v1::Finished finished, absl::Time now);
  void finish_by_worker(uint32_t index, const internal::v1::Finished& finished, absl::Time now);
  void fill_logprobs(const internal::v1::Logprobs& from, uint32_t id, v1::TokenLogprobs& to) const;
  Waiting& push(uint32_t index, v1::GenerateEvent event);
  void pause_if_behind();
  void command_active(RelayCommand::Kind kind);

  const GenerateSpec spec_;
  const RelayOptions options_;
  const absl::Time arrival_;
  std::string fingerprint_;
  double wait_seconds_ = 0;  // in the router's queue
  std::vector<Choice> choices_;
  std::deque<Waiting> waiting_;
  uint64_t first_number_ = 1;  // of waiting_.front()
  size_t waiting_bytes_ = 0;
  bool paused_ = false;
  uint32_t num_prompt_logprobs_ = 0;  // that came
  std::vector<RelayCommand> commands_;
  std::vector<ReplicaNeed> needs_;
  absl::Status failure_;
  RelaySummary summary_;
};

}  // namespace lckv
