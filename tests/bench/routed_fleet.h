// A fleet as a discrete-event model: the real routing policies over replicas that are queues.
//
// A replica runs one step after the other: a step decodes one token of each running sequence and
// prefills up to a budget of prompt tokens, and lasts as long as both cost. Prompt blocks that its
// cache still holds cost nothing. Routers hear a replica's load after each step, a network delay
// late, and know their own submits under way, as the real ones do.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "router/routing/routing_policy.h"

namespace lckv {

struct TracedRequest {
  double arrival = 0;  // seconds
  uint64_t prefix_hash = 0;
  std::string affinity;          // of the conversation, as a caller would name it
  std::vector<uint64_t> blocks;  // of the prompt, each named by all ids up to its end
  uint32_t num_prompt_tokens = 0;
  uint32_t num_output_tokens = 0;
};

struct TraceOptions {
  size_t num_requests = 20000;
  double requests_per_second = 100;
  size_t num_applications = 60;  // each with a system prompt; the i-th is asked for as 1 / i
  uint64_t seed = 1;
};

// Half of the requests go on with an earlier conversation of their application.
std::vector<TracedRequest> draw_trace(const TraceOptions& options);

struct RoutedFleetOptions {
  std::string policy;
  bool sends_affinity = false;  // callers name their conversations
  size_t num_replicas = 8;
  size_t num_routers = 1;
  size_t num_slots = 32;             // sequences that run at once
  size_t num_cached_blocks = 4096;   // of 16 tokens
  uint32_t prefill_budget = 512;     // tokens a step
  double step_seconds = 0.008;       // without any row
  double decode_seconds = 0.0001;    // per row
  double prefill_seconds = 0.00004;  // per prompt token
  double network_seconds = 0.0005;
};

struct RoutedFleetReport {
  size_t num_finished = 0;
  double ttft_p50 = 0;  // seconds
  double ttft_p99 = 0;
  double tokens_per_second = 0;  // generated
  double prefix_hit_rate = 0;    // of prompt tokens
  // Sequences held by the fullest replica over the mean, sampled while there are as many as
  // replicas or more.
  double imbalance_p99 = 0;
};

RoutedFleetReport run_routed_fleet(const std::vector<TracedRequest>& trace,
                                   const RoutedFleetOptions& options);

}  // namespace lckv
