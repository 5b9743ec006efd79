// Threads as ranks: what several processes do, in one that a test can look into.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/check.h"
#include "kernels/collectives.h"
#include "kernels/cpu/gloo_collectives.h"

namespace lckv {

// body(rank) for each rank, each on a thread of its own, all at once; returns when all have ended.
inline void run_ranks(int size, const std::function<void(int rank)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&body, rank] { body(rank); });
  for (std::thread& thread : threads) thread.join();
}

// `size` ranks that are connected with each other over the loopback interface.
inline std::vector<std::unique_ptr<Collectives>> connect_threads(
    int size, absl::Duration call_timeout = absl::Seconds(60)) {
  const RendezvousStore store = rendezvous_in_memory();
  std::vector<std::unique_ptr<Collectives>> ranks(size);
  run_ranks(size, [&](int rank) {
    auto connected = connect_gloo({.rank = rank,
                                   .size = size,
                                   .address = "127.0.0.1",
                                   .life = "test",
                                   .store = store,
                                   .call_timeout = call_timeout});
    LCKV_CHECK(connected.ok());
    ranks[rank] = *std::move(connected);
  });
  return ranks;
}

inline std::vector<float> random_floats(uint32_t seed, int64_t count) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random) * 1e3F;
  return values;
}

}  // namespace lckv
