// A relay of the demo model, driven by hand.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "router/relay.h"
#include "router/validation.h"
#include "tests/router/fake_leader.h"

namespace lckv {

class RelayTest : public ::testing::Test {
 protected:
  RelayTest() {
    model_ = *make_model_info(demo_hello(), nullptr);
    request_.set_text("Once");
    request_.mutable_sampling()->set_temperature(0);
  }

  // Made from request_ at its first use; all choices are then submitted, as their first attempt.
  Relay& relay() {
    if (!relay_) {
      auto spec = make_spec(request_, model_, 5);
      EXPECT_TRUE(spec.ok()) << spec.status();
      relay_ = std::make_unique<Relay>(*std::move(spec), options_, now_);
      prepared_ = relay_->prepare();
      attempt_ = 0;
      place();
    }
    return *relay_;
  }

  // Submits what is unplaced, as the next attempt.
  void place(const std::string& fingerprint = "fingerprint-1") {
    ++attempt_;
    submits_.clear();
    for (const uint32_t choice : relay().unplaced()) {
      submits_.push_back(relay().submit_of(choice));
    }
    relay().on_placed(relay().unplaced(), fingerprint, now_);
  }
  // What was submitted last.
  const std::vector<internal::v1::Submit>& submits() {
    relay();
    return submits_;
  }

  void start(uint32_t choice = 0) {
    internal::v1::Started started;
    started.set_queue_seconds(0.5);
    relay().on_update({choice, attempt_}, {.started = &started}, now_);
  }
  void tokens(std::vector<uint32_t> ids, uint32_t choice = 0) {
    relay().on_update({choice, attempt_}, {.tokens = std::move(ids)}, now_);
  }
  void finish(internal::v1::Finished::Reason reason, uint32_t choice = 0) {
    internal::v1::Finished finished;
    finished.set_reason(reason);
    relay().on_update({choice, attempt_}, {.finished = &finished}, now_);
  }
  void lose(LossKind kind = LossKind::kDied, uint32_t choice = 0) {
    relay().on_lost({choice, attempt_}, kind, absl::UnavailableError("lost"), now_);
  }

  // All events that wait, the text of all choices together.
  std::vector<v1::GenerateEvent> drain() {
    std::vector<v1::GenerateEvent> events;
    v1::GenerateEvent event;
    while (relay().next_event(event)) {
      text_ += event.tokens().text();
      events.push_back(event);
    }
    return events;
  }

  std::vector<uint32_t> ids_of(const std::string& text) {
    std::vector<uint32_t> ids = *model_->tokenizer->encode(text);
    ids.erase(ids.begin());
    return ids;
  }

  std::shared_ptr<const ModelInfo> model_;
  v1::GenerateRequest request_;
  RelayOptions options_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::unique_ptr<Relay> relay_;
  absl::Status prepared_;
  std::vector<internal::v1::Submit> submits_;
  uint32_t attempt_ = 0;
  std::string text_;
};

}  // namespace lckv
