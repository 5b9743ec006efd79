#include "tests/bench/routed_fleet.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <list>
#include <memory>
#include <queue>
#include <random>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "router/routing/stable_hash.h"

namespace lckv {
namespace {

constexpr uint32_t kBlockTokens = 16;
constexpr size_t kMaxPromptTokens = 3072;
constexpr double kSampleSeconds = 0.1;

// The blocks that a replica holds, least recently used first.
class BlockCache {
 public:
  explicit BlockCache(size_t capacity) : capacity_(capacity) {}

  // Tokens of the leading blocks that are here; at least one block is always computed.
  uint32_t num_hit_tokens(const std::vector<uint64_t>& blocks) {
    uint32_t hits = 0;
    for (size_t i = 0; i + 1 < blocks.size(); ++i) {
      const auto it = places_.find(blocks[i]);
      if (it == places_.end()) break;
      order_.splice(order_.end(), order_, it->second);
      ++hits;
    }
    return hits * kBlockTokens;
  }
  void insert(const std::vector<uint64_t>& blocks) {
    for (const uint64_t block : blocks) {
      const auto it = places_.find(block);
      if (it != places_.end()) {
        order_.splice(order_.end(), order_, it->second);
        continue;
      }
      places_[block] = order_.insert(order_.end(), block);
      if (places_.size() <= capacity_) continue;
      places_.erase(order_.front());
      order_.pop_front();
    }
  }

 private:
  const size_t capacity_;
  std::list<uint64_t> order_;
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> places_;
};

struct Running {
  const TracedRequest* request;
  uint32_t prefill_left;
  uint32_t output_left;
};

struct Replica {
  explicit Replica(const RoutedFleetOptions& options)
      : cache(options.num_cached_blocks), num_taken(options.num_routers, 0) {}

  BlockCache cache;
  std::deque<const TracedRequest*> waiting;
  std::vector<Running> running;
  std::vector<uint64_t> num_taken;  // by router
  bool stepping = false;
};

struct LoadNews {
  size_t replica;
  uint32_t num_running;
  uint32_t num_waiting;
  std::vector<uint64_t> num_taken;
};

struct Router {
  ReplicaSet set;
  std::vector<uint64_t> num_submitted;  // by replica
  uint64_t next_ticket = 0;
};

class RoutedFleet {
 public:
  RoutedFleet(const std::vector<TracedRequest>& trace, const RoutedFleetOptions& options)
      : trace_(trace), options_(options), policy_(make_routing_policy(options.policy)) {
    LCKV_CHECK(policy_ != nullptr);
    for (size_t i = 0; i < options.num_replicas; ++i) {
      replicas_.push_back(std::make_unique<Replica>(options_));
    }
    routers_.resize(options.num_routers);
    for (size_t r = 0; r < routers_.size(); ++r) {
      routers_[r].next_ticket = mix(r + 1);
      routers_[r].num_submitted.resize(options.num_replicas);
      for (size_t i = 0; i < options.num_replicas; ++i) {
        auto model = std::make_shared<ModelInfo>();
        model->hello.set_model("model");
        model->hello.set_replica_id(absl::StrCat("replica-", i));
        model_ = model;
        ReplicaView view{.state = ReplicaState::kReady, .model = std::move(model)};
        view.load.set_credit(1 << 20);
        routers_[r].set.replicas.push_back(std::move(view));
      }
    }
  }

  RoutedFleetReport run();

 private:
  enum class Kind { kArrival, kSubmit, kStepEnd, kNews, kSample };
  struct Event {
    double time;
    uint64_t order;
    Kind kind;
    size_t a;  // request, or replica, or news
    size_t b;  // router, where there is one
    size_t c;  // replica of a submit
    bool operator<(const Event& other) const {
      return std::tie(other.time, other.order) < std::tie(time, order);
    }
  };

  void at(double time, Kind kind, size_t a = 0, size_t b = 0, size_t c = 0) {
    events_.push({time, next_order_++, kind, a, b, c});
  }
  void arrive(size_t request);
  void begin_step(size_t index);
  void end_step(size_t index);
  void tell(size_t index);
  void hear(const LoadNews& news);
  void sample();

  const std::vector<TracedRequest>& trace_;
  const RoutedFleetOptions options_;
  const std::unique_ptr<const RoutingPolicy> policy_;
  std::shared_ptr<const ModelInfo> model_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::vector<Router> routers_;
  std::priority_queue<Event> events_;
  uint64_t next_order_ = 0;
  std::deque<LoadNews> news_;  // all are equally long under way, so they are heard in order
  std::mt19937_64 random_{5};
  double now_ = 0;
  size_t num_finished_ = 0;
  uint64_t num_output_tokens_ = 0;
  uint64_t num_prompt_tokens_ = 0;
  uint64_t num_hit_tokens_ = 0;
  std::vector<double> ttft_;
  std::vector<double> imbalance_;
};

void RoutedFleet::arrive(size_t index) {
  const TracedRequest& request = trace_[index];
  const size_t r = random_() % routers_.size();
  Router& router = routers_[r];
  const RoutingKey key{.model = model_,
                       .affinity = options_.sends_affinity ? request.affinity : "",
                       .prefix_hash = request.prefix_hash,
                       .ticket = router.next_ticket++};
  const auto picked = policy_->pick(key, router.set);
  LCKV_CHECK(picked.has_value());
  ++router.num_submitted[*picked];
  ++router.set.replicas[*picked].num_in_flight;
  at(now_ + options_.network_seconds, Kind::kSubmit, index, r, *picked);
}

// A step takes what is there when it begins; what comes meanwhile waits for the next.
void RoutedFleet::begin_step(size_t index) {
  Replica& replica = *replicas_[index];
  while (replica.running.size() < options_.num_slots && !replica.waiting.empty()) {
    const TracedRequest* request = replica.waiting.front();
    replica.waiting.pop_front();
    const uint32_t hits = replica.cache.num_hit_tokens(request->blocks);
    num_hit_tokens_ += hits;
    num_prompt_tokens_ += request->num_prompt_tokens;
    replica.running.push_back({.request = request,
                               .prefill_left = request->num_prompt_tokens - hits,
                               .output_left = request->num_output_tokens});
  }
  replica.stepping = !replica.running.empty();
  if (!replica.stepping) return;
  uint32_t budget = options_.prefill_budget;
  uint32_t rows = 0;
  for (const Running& sequence : replica.running) {
    if (sequence.prefill_left == 0) ++rows;
    budget -= std::min(budget, sequence.prefill_left);
  }
  const double seconds = options_.step_seconds + rows * options_.decode_seconds +
                         (options_.prefill_budget - budget) * options_.prefill_seconds;
  at(now_ + seconds, Kind::kStepEnd, index);
}

void RoutedFleet::end_step(size_t index) {
  Replica& replica = *replicas_[index];
  uint32_t budget = options_.prefill_budget;
  for (Running& sequence : replica.running) {
    if (sequence.prefill_left > 0) {
      const uint32_t done = std::min(budget, sequence.prefill_left);
      budget -= done;
      sequence.prefill_left -= done;
      if (sequence.prefill_left > 0) continue;
      replica.cache.insert(sequence.request->blocks);
      ttft_.push_back(now_ - sequence.request->arrival);
    }
    ++num_output_tokens_;
    --sequence.output_left;
  }
  num_finished_ += std::erase_if(replica.running, [](const Running& sequence) {
    return sequence.prefill_left == 0 && sequence.output_left == 0;
  });
  begin_step(index);
  tell(index);
}

void RoutedFleet::tell(size_t index) {
  const Replica& replica = *replicas_[index];
  news_.push_back({.replica = index,
                   .num_running = static_cast<uint32_t>(replica.running.size()),
                   .num_waiting = static_cast<uint32_t>(replica.waiting.size()),
                   .num_taken = replica.num_taken});
  at(now_ + options_.network_seconds, Kind::kNews);
}

void RoutedFleet::hear(const LoadNews& news) {
  for (size_t r = 0; r < routers_.size(); ++r) {
    ReplicaView& view = routers_[r].set.replicas[news.replica];
    view.load.set_num_running(news.num_running);
    view.load.set_num_waiting(news.num_waiting);
    view.num_in_flight =
        static_cast<uint32_t>(routers_[r].num_submitted[news.replica] - news.num_taken[r]);
  }
}

void RoutedFleet::sample() {
  size_t most = 0;
  size_t all = 0;
  for (const auto& replica : replicas_) {
    const size_t held = replica->running.size() + replica->waiting.size();
    most = std::max(most, held);
    all += held;
  }
  if (all >= replicas_.size()) {
    imbalance_.push_back(static_cast<double>(most * replicas_.size()) / static_cast<double>(all));
  }
}

double quantile(std::vector<double>& values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(fraction * static_cast<double>(values.size() - 1))];
}

RoutedFleetReport RoutedFleet::run() {
  for (size_t i = 0; i < trace_.size(); ++i) at(trace_[i].arrival, Kind::kArrival, i);
  at(kSampleSeconds, Kind::kSample);
  while (num_finished_ < trace_.size()) {
    const Event event = events_.top();
    events_.pop();
    now_ = event.time;
    switch (event.kind) {
      case Kind::kArrival:
        arrive(event.a);
        break;
      case Kind::kSubmit:
        replicas_[event.c]->waiting.push_back(&trace_[event.a]);
        ++replicas_[event.c]->num_taken[event.b];
        if (!replicas_[event.c]->stepping) begin_step(event.c);
        break;
      case Kind::kStepEnd:
        end_step(event.a);
        break;
      case Kind::kNews:
        hear(news_.front());
        news_.pop_front();
        break;
      case Kind::kSample:
        if (now_ < trace_.back().arrival) sample();  // while requests come
        at(now_ + kSampleSeconds, Kind::kSample);
        break;
    }
  }
  return {.num_finished = num_finished_,
          .ttft_p50 = quantile(ttft_, 0.5),
          .ttft_p99 = quantile(ttft_, 0.99),
          .tokens_per_second = static_cast<double>(num_output_tokens_) / now_,
          .prefix_hit_rate =
              static_cast<double>(num_hit_tokens_) / static_cast<double>(num_prompt_tokens_),
          .imbalance_p99 = quantile(imbalance_, 0.99)};
}

void append_ids(std::vector<uint32_t>& ids, size_t count, std::mt19937_64& random) {
  for (size_t i = 0; i < count; ++i) ids.push_back(static_cast<uint32_t>(random() % 32000));
}

}  // namespace

std::vector<TracedRequest> draw_trace(const TraceOptions& options) {
  std::mt19937_64 random(options.seed);
  std::exponential_distribution<double> gap(options.requests_per_second);
  std::vector<double> weights;
  std::vector<std::vector<uint32_t>> system_prompts(options.num_applications);
  for (size_t i = 0; i < options.num_applications; ++i) {
    weights.push_back(1.0 / static_cast<double>(i + 1));
    append_ids(system_prompts[i], 128 + random() % 897, random);
  }
  std::discrete_distribution<size_t> application(weights.begin(), weights.end());
  // What can be gone on with, by application: the newest conversations.
  struct Conversation {
    std::string name;
    std::vector<uint32_t> ids;
  };
  std::vector<std::deque<Conversation>> conversations(options.num_applications);
  std::vector<TracedRequest> trace(options.num_requests);
  double now = 0;
  for (TracedRequest& request : trace) {
    request.arrival = now += gap(random);
    const size_t a = application(random);
    auto& open = conversations[a];
    Conversation conversation{.name = absl::StrCat(&request - trace.data()),
                              .ids = system_prompts[a]};
    if (!open.empty() && random() % 2 == 0) {
      const size_t i = random() % open.size();
      conversation = std::move(open[i]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
    }
    std::vector<uint32_t>& ids = conversation.ids;
    request.affinity = conversation.name;
    append_ids(ids, 16 + random() % 240, random);
    request.prefix_hash = prefix_hash("", ids);
    request.num_prompt_tokens = static_cast<uint32_t>(ids.size());
    request.num_output_tokens = static_cast<uint32_t>(16 + random() % 177);
    uint64_t hash = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      hash = mix(hash ^ (ids[i] + 1));
      if ((i + 1) % kBlockTokens == 0) request.blocks.push_back(hash);
    }
    append_ids(ids, request.num_output_tokens, random);
    if (ids.size() > kMaxPromptTokens) continue;
    open.push_back(std::move(conversation));
    if (open.size() > 200) open.pop_front();
  }
  return trace;
}

RoutedFleetReport run_routed_fleet(const std::vector<TracedRequest>& trace,
                                   const RoutedFleetOptions& options) {
  return RoutedFleet(trace, options).run();
}

}  // namespace lckv
