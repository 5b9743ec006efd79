#include <ucontext.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"

dim3 threadIdx;
dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulated_cuda {
namespace {

constexpr size_t kStackBytes = size_t{64} << 10;
constexpr unsigned kWarp = 32;

// Where threads wait until `expected` of them have come.
struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  // Two rounds of exchanged values: who is ahead may write while others still read.
  uint64_t values[2][kWarp] = {};
};

struct Thread {
  std::unique_ptr<std::byte[]> stack;
  ucontext_t state = {};
  bool done = false;
};

// The block that runs. One at a time, as tests use one thread of the host.
class Block {
 public:
  void run(unsigned num_threads, bool backwards, const std::function<void()>& body) {
    body_ = &body;
    alive_ = num_threads;
    all_ = {};
    warps_.assign((num_threads + kWarp - 1) / kWarp, {});
    if (threads_.size() < num_threads) threads_.resize(num_threads);
    for (unsigned i = 0; i < num_threads; ++i) prepare(threads_[i]);
    while (alive_ > 0) {
      const uint64_t before = progress_;
      for (unsigned i = 0; i < num_threads; ++i) {
        current_ = backwards ? num_threads - 1 - i : i;
        threadIdx = dim3(current_);
        if (!threads_[current_].done) swapcontext(&scheduler_, &threads_[current_].state);
      }
      // All that are left wait for threads that do not come.
      LCKV_CHECK(progress_ != before);
    }
  }

  void wait_for_block() {
    wait(all_, [this] { return alive_; });
  }
  void wait_for_warp() {
    wait(warps_[current_ / kWarp].barrier, [] { return kWarp; });
  }
  void exchange(const void* given, int source, void* got, size_t bytes) {
    LCKV_CHECK(bytes <= sizeof(uint64_t));
    Warp& warp = warps_[current_ / kWarp];
    auto& values = warp.values[warp.barrier.generation % 2];
    std::memcpy(&values[current_ % kWarp], given, bytes);
    wait_for_warp();
    std::memcpy(got, &values[source], bytes);
  }
  unsigned current() const { return current_; }

 private:
  static void enter();

  void prepare(Thread& thread) {
    if (thread.stack == nullptr) thread.stack.reset(new std::byte[kStackBytes]);
    thread.done = false;
    LCKV_CHECK(getcontext(&thread.state) == 0);
    thread.state.uc_stack.ss_sp = thread.stack.get();
    thread.state.uc_stack.ss_size = kStackBytes;
    thread.state.uc_link = &scheduler_;
    makecontext(&thread.state, enter, 0);
  }

  template <class Expected>
  void wait(Barrier& barrier, Expected expected) {
    ++progress_;
    ++barrier.arrived;
    const uint64_t generation = barrier.generation;
    while (barrier.generation == generation) {
      if (barrier.arrived == expected()) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
      }
      const unsigned self = current_;
      swapcontext(&threads_[self].state, &scheduler_);
    }
  }

  const std::function<void()>* body_ = nullptr;
  unsigned alive_ = 0;
  unsigned current_ = 0;
  uint64_t progress_ = 0;
  Barrier all_;
  std::vector<Warp> warps_;
  std::vector<Thread> threads_;
  ucontext_t scheduler_ = {};
};

Block& block() {
  static Block& block = *new Block();
  return block;
}

void Block::enter() {
  Block& self = block();
  (*self.body_)();
  self.threads_[self.current_].done = true;
  --self.alive_;
  ++self.progress_;
}

}  // namespace

void run_grid(dim3 grid, dim3 threads, const std::function<void()>& body) {
  static bool backwards = false;
  backwards = !backwards;
  gridDim = grid;
  blockDim = threads;
  for (unsigned z = 0; z < grid.z * grid.y; ++z) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, z % grid.y, z / grid.y);
      block().run(threads.x, backwards, body);
    }
  }
}

void exchange(const void* given, int source, void* got, size_t bytes) {
  block().exchange(given, source, got, bytes);
}

int lane() { return static_cast<int>(block().current() % kWarp); }

}  // namespace emulated_cuda

void __syncthreads() { emulated_cuda::block().wait_for_block(); }
void __syncwarp(unsigned) { emulated_cuda::block().wait_for_warp(); }

// What was never written must not matter.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xFF, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
