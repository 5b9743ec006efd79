#include "worker/group/rank_watch.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/device_failure.h"
#include "rpc/logging.h"

namespace lckv {
namespace {

constexpr absl::Duration kPulse = absl::Milliseconds(100);
// A launcher that reads takes far less.
constexpr absl::Duration kRecordPatience = absl::Seconds(1);
constexpr std::chrono::milliseconds kLastWordsPatience(500);

template <size_t N>
void copy_text(absl::string_view text, char (&to)[N]) {
  const size_t length = std::min(text.size(), N - 1);
  std::copy_n(text.begin(), length, to);
  to[length] = '\0';
}

}  // namespace

void log_failure(const RankFailure& failure) {
  log_fields(spdlog::level::err, "replica ended",
             {{"rank", absl::StrCat(failure.rank)},
              {"step", absl::StrCat(failure.step)},
              {"operation", failure.operation},
              {"why", failure.why}});
}

RankWatch::RankWatch(const RankWatchOptions& options, const RankProgress& progress)
    : options_(options), progress_(progress), thread_([this] { loop(); }) {
  on_device_failure([this](const std::string& line) { fail(absl::InternalError(line)); });
}

RankWatch::~RankWatch() {
  on_device_failure(nullptr);
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

void RankWatch::listening(uint16_t port) {
  write({.kind = RankRecord::Kind::kListening, .rank = options_.rank, .port = port},
        kRecordPatience);
}

void RankWatch::set_last_words(std::function<void(const RankFailure&)> last_words) {
  const std::lock_guard lock(mutex_);
  last_words_ = std::move(last_words);
}

void RankWatch::fail(const RankFailure& failure) {
  failing_.lock();
  if (options_.pipe < 0) {
    log_failure(failure);
  } else {
    RankRecord record{.kind = RankRecord::Kind::kFailed,
                      .rank = failure.rank,
                      .step = failure.step,
                      .second_hand = failure.second_hand};
    copy_text(failure.operation, record.operation);
    copy_text(failure.why, record.why);
    write(record, kRecordPatience);
  }
  std::function<void(const RankFailure&)> last_words;
  {
    const std::lock_guard lock(mutex_);
    last_words = last_words_;
  }
  if (last_words) {
    // Whoever hangs in there is not waited for: the process ends.
    const auto said = std::make_shared<std::promise<void>>();
    std::thread([said, last_words, failure] {
      last_words(failure);
      said->set_value();
    }).detach();
    said->get_future().wait_for(kLastWordsPatience);
  }
  std::_Exit(1);
}

void RankWatch::fail(const absl::Status& why) {
  RankFailure failure = failure_here(std::string(why.message()));
  failure.second_hand =
      absl::IsUnavailable(why) || absl::IsDeadlineExceeded(why) || absl::IsCancelled(why);
  fail(failure);
}

RankFailure RankWatch::failure_here(const std::string& why) const {
  const RankProgress::View view = progress_.look();
  return {.rank = options_.rank,
          .step = view.step,
          .operation = operation_name(view.operation),
          .why = why};
}

void RankWatch::loop() {
  // Time is counted in looks, so that a process that was stopped and goes on is not found late.
  absl::Duration unchanged;
  uint64_t last_turn = 0;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    stopped_.wait_for(lock, absl::ToChronoMilliseconds(kPulse), [this] { return stopping_; });
    if (stopping_) return;
    lock.unlock();
    const RankProgress::View view = progress_.look();
    unchanged = view.num_turns == last_turn ? unchanged + kPulse : absl::ZeroDuration();
    last_turn = view.num_turns;
    const bool started = view.num_turns > 0;
    const absl::Duration limit = started ? options_.step_timeout : options_.start_timeout;
    if (unchanged > limit) {
      RankFailure failure =
          failure_here(absl::StrCat("nothing moved for ", absl::FormatDuration(limit),
                                    started ? " (--step-timeout)" : " (--start-timeout)"));
      failure.second_hand = waits_for_ranks(view.operation);
      fail(failure);
    }
    RankRecord record{.rank = options_.rank, .step = view.step};
    copy_text(operation_name(view.operation), record.operation);
    write(record, absl::ZeroDuration());
    lock.lock();
  }
}

void RankWatch::write(const RankRecord& record, absl::Duration patience) const {
  if (options_.pipe < 0) return;
  // A launcher that has no room now has heard enough; one that is gone takes its ranks with it.
  pollfd ready{.fd = options_.pipe, .events = POLLOUT};
  if (poll(&ready, 1, static_cast<int>(absl::ToInt64Milliseconds(patience))) <= 0) return;
  [[maybe_unused]] const ssize_t written = ::write(options_.pipe, &record, sizeof(record));
}

}  // namespace lckv
