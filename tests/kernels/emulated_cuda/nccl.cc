#include "tests/kernels/emulated_cuda/nccl.h"

#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/nccl_library.h"

namespace {

std::atomic<bool> is_refusing = false;

struct Post {
  const void* from = nullptr;
  void* to = nullptr;
  cudaStream_t stream = nullptr;
};

// The ranks of one id.
struct Group {
  int joined = 0;
  bool broken = false;
  std::map<int, Post> posts;  // by rank, of the exchange that is under way
};

std::mutex mutex;

// Whoever waits for ranks that do not come still does so when the program ends.
std::condition_variable& someone_joined() {
  static auto& joined = *new std::condition_variable();
  return joined;
}

std::shared_ptr<Group> group_of(const ncclUniqueId& id) {
  static auto& groups = *new std::map<std::string, std::shared_ptr<Group>>();
  auto& group = groups[id.internal];
  if (group == nullptr) group = std::make_shared<Group>();
  return group;
}

size_t size_of(ncclDataType_t type) { return type == ncclFloat32 ? sizeof(float) : 1; }

}  // namespace

struct EmulatedComm {
  std::shared_ptr<Group> group;
  int rank = 0;
  int size = 0;
  std::map<int, void*> ways = {};  // device memory, by the size of messages as a power of two
  std::shared_ptr<int> recorded =
      std::make_shared<int>();  // graphs that have its exchanges hold it

  // A size chooses how it is exchanged, which takes memory when it is first done.
  void choose_way(size_t bytes) {
    void*& memory = ways[std::bit_width(bytes)];
    if (memory == nullptr) LCKV_CHECK(cudaMalloc(&memory, 1) == cudaSuccess);
  }
  void give_up_ways() const {
    for (const auto& [bits, memory] : ways) LCKV_CHECK(cudaFree(memory) == cudaSuccess);
  }

  bool is_broken() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return group->broken;
  }

  using Move = std::function<void(std::map<int, Post>&)>;
  // `all` moves what all ranks have posted, once the last has.
  ncclResult_t exchange(const Post& post, const Move& all) {
    if (is_broken()) return ncclRemoteError;
    const auto again = [=, this, held = recorded] { (void)exchange(post, all); };
    if (emulated_cuda::record(post.stream, again)) {
      return ncclSuccess;
    }
    emulated_cuda::finish(post.stream);
    const std::lock_guard<std::mutex> lock(mutex);
    if (group->broken) return ncclRemoteError;
    LCKV_CHECK(group->posts.emplace(rank, post).second);
    emulated_cuda::set_busy(post.stream, true);
    if (static_cast<int>(group->posts.size()) < size) return ncclSuccess;
    emulated_cuda::use_device([&] { all(group->posts); });
    for (const auto& [peer, done] : group->posts) emulated_cuda::set_busy(done.stream, false);
    group->posts.clear();
    return ncclSuccess;
  }
};

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int> count = 0;
  *id = {};
  const std::string text = "emulated " + std::to_string(++count);
  std::memcpy(id->internal, text.data(), text.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  LCKV_CHECK(config->blocking == 1);
  std::unique_lock<std::mutex> lock(mutex);
  const std::shared_ptr<Group> group = group_of(id);
  ++group->joined;
  someone_joined().notify_all();
  someone_joined().wait(lock, [&] { return group->joined == size; });
  if (is_refusing) return ncclInvalidUsage;
  *comm = new EmulatedComm{group, rank, size};
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const std::lock_guard<std::mutex> lock(mutex);
  comm->group->broken = true;
  const auto post = comm->group->posts.find(comm->rank);
  if (post != comm->group->posts.end()) {
    emulated_cuda::set_busy(post->second.stream, false);
    comm->group->posts.erase(post);
  }
  LCKV_CHECK(comm->recorded.use_count() == 1);  // it would wait for those graphs to be freed
  comm->give_up_ways();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const std::lock_guard<std::mutex> lock(mutex);
  *error = comm->group->broken ? ncclRemoteError : ncclSuccess;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited" : "invalid usage";
}
const char* ncclGetLastError(ncclComm_t) {
  return is_refusing ? "Something of the devices\nsecond line" : "";
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  LCKV_CHECK(type == ncclFloat32);
  comm->choose_way(count * sizeof(float));
  return comm->exchange({from, to, stream}, [count](std::map<int, Post>& posts) {
    std::vector<float> sum(count);
    for (const auto& [rank, post] : posts) {
      for (size_t i = 0; i < count; ++i) sum[i] += static_cast<const float*>(post.from)[i];
    }
    for (const auto& [rank, post] : posts) std::memcpy(post.to, sum.data(), count * sizeof(float));
  });
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * size_of(type);
  comm->choose_way(bytes);
  return comm->exchange({from, to, stream}, [bytes](std::map<int, Post>& posts) {
    for (const auto& [rank, post] : posts) {
      for (const auto& [peer, theirs] : posts) {
        std::memcpy(static_cast<std::byte*>(post.to) + peer * bytes, theirs.from, bytes);
      }
    }
  });
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * size_of(type);
  comm->choose_way(bytes);
  return comm->exchange({from, to, stream}, [bytes, root](std::map<int, Post>& posts) {
    for (const auto& [rank, post] : posts) std::memmove(post.to, posts.at(root).from, bytes);
  });
}

namespace emulated_nccl {

void refuse(bool refuses) { is_refusing = refuses; }

}  // namespace emulated_nccl

namespace lckv {

absl::StatusOr<NcclLibrary> load_nccl_library() {
  return NcclLibrary{.get_unique_id = ncclGetUniqueId,
                     .init_rank = ncclCommInitRankConfig,
                     .abort = ncclCommAbort,
                     .get_async_error = ncclCommGetAsyncError,
                     .error_string = ncclGetErrorString,
                     .last_error = ncclGetLastError,
                     .all_reduce = ncclAllReduce,
                     .all_gather = ncclAllGather,
                     .broadcast = ncclBroadcast};
}

}  // namespace lckv
