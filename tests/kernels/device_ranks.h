// Threads as ranks with an emulated device each, or with one for all.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
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

}  // namespace lckv
