#include "router/fleet/discovery.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

namespace lckv {

Discovery::Discovery(const DiscoveryOptions& options, std::function<void(Candidates)> on_candidates)
    : options_(options),
      on_candidates_(std::move(on_candidates)),
      file_(options.models_file),
      jitter_(std::random_device{}()) {}

absl::StatusOr<std::unique_ptr<Discovery>> Discovery::start(
    const DiscoveryOptions& options, std::function<void(Candidates)> on_candidates) {
  std::unique_ptr<Discovery> discovery(new Discovery(options, std::move(on_candidates)));
  bool changed = false;
  if (absl::Status status = discovery->read_models(changed); !status.ok()) return status;
  discovery->name_all();
  discovery->publish();
  discovery->thread_ = std::thread([raw = discovery.get()] { raw->run(); });
  return discovery;
}

Discovery::~Discovery() { stop(); }

void Discovery::stop() {
  {
    std::lock_guard lock(mailbox_->mutex);
    mailbox_->stopped = true;
  }
  mailbox_->changed.notify_all();
  if (thread_.joinable()) thread_.join();
}

// An error leaves what is known.
absl::Status Discovery::read_models(bool& changed) {
  if (options_.models_file.empty()) return absl::OkStatus();
  const auto content = file_.poll();
  if (!content) return absl::OkStatus();
  absl::Status status = take_over(*content);
  stale_ = !status.ok();
  changed = status.ok();
  return status;
}

absl::Status Discovery::take_over(const absl::StatusOr<std::string>& content) {
  if (!content.ok()) return content.status();
  auto models = parse_models(*content);
  if (!models.ok()) {
    return absl::Status(models.status().code(),
                        absl::StrCat(file_.path(), ": ", models.status().message()));
  }
  models_ = *std::move(models);
  return absl::OkStatus();
}

// Holds an entry for each name that is given somewhere, and for no other.
void Discovery::name_all() {
  std::map<std::string, Name> names;
  const auto add = [&](const std::string& origin) {
    if (is_literal_address(split_address(origin).host)) return;
    const auto known = names_.find(origin);
    names.emplace(origin, known == names_.end() ? Name() : known->second);
  };
  for (const std::string& origin : options_.workers) add(origin);
  for (const ExpectedModel& model : models_) {
    for (const std::string& origin : model.workers) add(origin);
  }
  names_ = std::move(names);
}

void Discovery::publish() {
  Candidates candidates;
  std::set<std::string> known;
  const auto add = [&](const std::string& origin, const std::string& model) {
    const auto name = names_.find(origin);
    std::vector<std::string> addresses = {origin};
    if (name != names_.end()) addresses = name->second.addresses;
    for (const std::string& address : addresses) {
      if (!known.insert(address).second) continue;
      candidates.replicas.push_back({.address = address, .origin = origin, .model = model});
    }
  };
  for (const std::string& origin : options_.workers) add(origin, "");
  for (const ExpectedModel& model : models_) {
    candidates.models.push_back(model.name);
    for (const std::string& origin : model.workers) add(origin, model.name);
  }
  on_candidates_(std::move(candidates));
}

void Discovery::run() {
  for (;;) {
    std::vector<Answer> answers;
    {
      std::lock_guard lock(mailbox_->mutex);
      if (mailbox_->stopped) return;
      answers.swap(mailbox_->answers);
    }
    const absl::Time now = absl::Now();
    bool changed = false;
    for (const Answer& answer : answers) changed = note(answer, now) || changed;
    bool reread = false;
    if (absl::Status status = read_models(reread); !status.ok()) {
      spdlog::error("{}; the models known so far stay", std::string(status.message()));
    }
    if (reread) {
      spdlog::info("{} names {} models", file_.path(), models_.size());
      name_all();
    }
    ask(now);
    if (changed || reread) publish();
    std::unique_lock lock(mailbox_->mutex);
    mailbox_->changed.wait_for(lock, absl::ToChronoNanoseconds(options_.poll_interval),
                               [this] { return mailbox_->stopped || !mailbox_->answers.empty(); });
  }
}

// Whether the answer changed what is known of its name.
bool Discovery::note(const Answer& answer, absl::Time now) {
  const auto it = names_.find(answer.origin);
  if (it == names_.end()) return false;
  Name& name = it->second;
  name.asked.reset();
  name.due =
      now + options_.resolve_interval * std::uniform_real_distribution<double>(0.75, 1.25)(jitter_);
  if (!answer.addresses.ok()) {
    report(answer.origin, std::string(answer.addresses.status().message()));
    return false;
  }
  if (answer.addresses->empty()) {
    if (!name.empty_since) name.empty_since = now;
    report(answer.origin, "it has no address");
    if (name.addresses.empty() || now - *name.empty_since < options_.believe_empty_after) {
      return false;
    }
    spdlog::info("{} has had no address for {}: nothing is looked for behind it", answer.origin,
                 absl::FormatDuration(options_.believe_empty_after));
  } else {
    name.empty_since.reset();
    name.last_error.clear();
  }
  if (name.addresses == *answer.addresses) return false;
  name.addresses = *answer.addresses;
  return true;
}

void Discovery::report(const std::string& origin, const std::string& error) {
  Name& name = names_[origin];
  if (name.last_error == error) return;
  name.last_error = error;
  spdlog::warn("{} cannot be looked up: {}; its {} addresses known so far stay", origin, error,
               name.addresses.size());
}

// Starts a lookup of each name that is due.
void Discovery::ask(absl::Time now) {
  for (auto& [origin, name] : names_) {
    if (name.asked) {
      if (now - *name.asked > options_.resolve_timeout) report(origin, "no answer in time");
      continue;
    }
    if (now < name.due) continue;
    name.asked = now;
    std::thread([mailbox = mailbox_, resolve = options_.resolve, origin = origin] {
      Answer answer{.origin = origin, .addresses = resolve(origin)};
      std::lock_guard lock(mailbox->mutex);
      if (mailbox->stopped) return;
      mailbox->answers.push_back(std::move(answer));
      mailbox->changed.notify_all();
    }).detach();
  }
}

}  // namespace lckv
