// Threads as ranks with an emulated device each, or with one for all.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_collectives.h"
#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"
#include "tests/support/rank_threads.h"

namespace lckv {

struct DeviceRank {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Collectives> collectives;

  DeviceRank() = default;
  DeviceRank(DeviceRank&&) = default;
  ~DeviceRank() {
    if (ops != nullptr) ops->enter_thread();
  }

  // In device memory.
  std::unique_ptr<DeviceBuffer> on_device(const std::vector<float>& values) const {
    auto buffer = ops->allocate(values.size() * sizeof(float));
    ops->copy(reinterpret_cast<const std::byte*>(values.data()), buffer->data(), buffer->bytes());
    return buffer;
  }
  std::vector<float> read(DeviceBuffer& buffer) const {
    std::vector<float> values(buffer.bytes() / sizeof(float));
    ops->copy(buffer.data(), reinterpret_cast<std::byte*>(values.data()), buffer.bytes());
    return values;
  }
};

// run_ranks(), each with its device.
inline void run_on_devices(std::span<const DeviceRank> ranks,
                           const std::function<void(int rank)>& body) {
  run_ranks(static_cast<int>(ranks.size()), [&](int rank) {
    ranks[rank].ops->enter_thread();
    body(rank);
  });
}

// To be connected with the others of `all`.
inline CudaCollectivesOptions options_of(int rank, int size, CudaCollectivesOptions all) {
  all.rank = rank;
  all.size = size;
  all.life = "a";
  return all;
}

inline CudaCollectivesOptions patient() {
  return {.store = rendezvous_in_memory(),
          .timeout = absl::Seconds(60),
          .call_timeout = absl::Seconds(60)};
}

// Why each rank did not connect; those that did are in `ranks`.
inline std::vector<absl::Status> try_to_connect(const CudaCollectivesOptions& all,
                                                std::vector<DeviceRank>& ranks) {
  const int size = static_cast<int>(ranks.size());
  std::vector<absl::Status> statuses(size);
  run_ranks(size, [&](int rank) {
    ranks[rank].ops = make_cuda_ops({.device = all.shares_device ? 0 : rank}, {});
    ranks[rank].ops->enter_thread();
    auto connected = connect_cuda_ranks(options_of(rank, size, all), *ranks[rank].ops);
    statuses[rank] = connected.status();
    if (connected.ok()) ranks[rank].collectives = *std::move(connected);
  });
  return statuses;
}

inline std::vector<DeviceRank> connect_devices(int size, const CudaCollectivesOptions& all) {
  std::vector<DeviceRank> ranks(size);
  for (const absl::Status& status : try_to_connect(all, ranks)) EXPECT_TRUE(status.ok()) << status;
  LCKV_CHECK(!testing::Test::HasFailure());
  return ranks;
}

// The engine sums a few numbers of its own.
inline void expect_host_data_works(const std::vector<DeviceRank>& ranks) {
  const int size = static_cast<int>(ranks.size());
  run_on_devices(ranks, [&](int rank) {
    Collectives& collectives = *ranks[rank].collectives;
    const auto own = static_cast<float>(rank + 1);
    std::vector<float> sum = {own, 10 * own, 100 * own};
    ASSERT_TRUE(collectives.all_reduce(sum.data(), 3).ok());
    const auto total = static_cast<float>(size * (size + 1) / 2);
    EXPECT_EQ(sum, (std::vector<float>{total, 10 * total, 100 * total}));
    std::vector<float> all(size);
    ASSERT_TRUE(collectives.all_gather(&own, 1, all.data()).ok());
    for (int peer = 0; peer < size; ++peer) EXPECT_EQ(all[peer], static_cast<float>(peer + 1));
    for (int root = 0; root < size; ++root) {
      std::string text = rank == root ? "seven b" : "       ";
      ASSERT_TRUE(collectives.broadcast(text.data(), 7, root).ok());
      EXPECT_EQ(text, "seven b");
    }
  });
}

// Nobody passes one before all have come.
inline void expect_barriers_hold(const std::vector<DeviceRank>& ranks) {
  const int size = static_cast<int>(ranks.size());
  std::atomic<int> come = 0;
  run_on_devices(ranks, [&](int rank) {
    for (int round = 1; round <= 20; ++round) {
      ++come;
      ASSERT_TRUE(ranks[rank].collectives->barrier().ok());
      EXPECT_EQ(come, round * size);
      ASSERT_TRUE(ranks[rank].collectives->barrier().ok());
    }
  });
}

}  // namespace lckv
