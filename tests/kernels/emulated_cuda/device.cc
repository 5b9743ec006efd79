#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"
#include "tests/kernels/emulated_cuda/device_memory.h"

constinit thread_local dim3 threadIdx;
constinit thread_local dim3 blockIdx;
constinit thread_local dim3 blockDim;
constinit thread_local dim3 gridDim;

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
  Given given[2][kWarp] = {};
};

struct Thread {
  std::unique_ptr<std::byte[]> stack;
  ucontext_t begin = {};
  // Where it goes on: jumps, unlike switches of contexts, ask nothing of the system.
  jmp_buf place = {};
  bool began = false;
  bool done = false;
  std::vector<PendingCopy> copies;
};

// The block that a thread of the host runs, one at a time.
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
        if (!threads_[current_].done) go_on(threads_[current_]);
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
  // Whether the predicate of any of the block's threads is not 0.
  int any(int predicate) {
    any_ = any_ || predicate != 0;
    wait_for_block();
    const bool found = any_;
    wait_for_block();
    any_ = false;
    wait_for_block();
    return found ? 1 : 0;
  }
  const Given* gather(const void* given, size_t bytes) {
    Warp& warp = warps_[current_ / kWarp];
    auto& all = warp.given[warp.barrier.generation % 2];
    std::memcpy(&all[current_ % kWarp], given, bytes);
    wait_for_warp();
    return all;
  }
  std::vector<PendingCopy>& pending_copies() { return threads_[current_].copies; }
  unsigned current() const { return current_; }

 private:
  static void enter();

  void prepare(Thread& thread) {
    if (thread.stack == nullptr) thread.stack.reset(new std::byte[kStackBytes]);
    thread.began = false;
    thread.done = false;
    LCKV_CHECK(getcontext(&thread.begin) == 0);
    thread.begin.uc_stack.ss_sp = thread.stack.get();
    thread.begin.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.begin, enter, 0);
  }

  void go_on(Thread& thread) {
    if (_setjmp(scheduler_) != 0) return;
    if (thread.began) _longjmp(thread.place, 1);
    thread.began = true;
    setcontext(&thread.begin);
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
      if (_setjmp(threads_[current_].place) == 0) _longjmp(scheduler_, 1);
    }
  }

  const std::function<void()>* body_ = nullptr;
  unsigned alive_ = 0;
  unsigned current_ = 0;
  uint64_t progress_ = 0;
  Barrier all_;
  bool any_ = false;
  std::vector<Warp> warps_;
  std::vector<Thread> threads_;
  jmp_buf scheduler_ = {};
};

Block& block() {
  static thread_local Block block;
  return block;
}

// Of the launch that the thread of the host runs.
constinit thread_local std::byte* shared = nullptr;
constinit thread_local bool at_once = false;

// Bytes of shared memory that launches may ask for, where kernels asked for more than the usual.
std::map<const void*, size_t>& shared_of_kernels() {
  static auto& kernels = *new std::map<const void*, size_t>();
  return kernels;
}

void Block::enter() {
  Block& self = block();
  (*self.body_)();
  LCKV_CHECK(self.pending_copies().empty());
  self.threads_[self.current_].done = true;
  --self.alive_;
  ++self.progress_;
  _longjmp(self.scheduler_, 1);
}

}  // namespace

void run_grid(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body) {
  static std::atomic<unsigned> num_launches = 0;
  const unsigned launches = ++num_launches;
  at_once = launches / 2 % 2 == 0;
  shared = static_cast<std::byte*>(memory().allocate(shared_bytes));
  gridDim = grid;
  blockDim = threads;
  for (unsigned z = 0; z < grid.z * grid.y; ++z) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, z % grid.y, z / grid.y);
      std::memset(shared, 0xFF, shared_bytes);
      block().run(threads.x, launches % 2 == 1, body);
    }
  }
  memory().free(shared);
}

void allow_shared(const void* kernel, size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(memory().device());
  shared_of_kernels()[kernel] = bytes;
}
size_t allowed_shared(const void* kernel) {
  const std::lock_guard<std::recursive_mutex> lock(memory().device());
  const auto found = shared_of_kernels().find(kernel);
  return found == shared_of_kernels().end() ? size_t{48} << 10 : found->second;
}

const Given* gather(const void* given, size_t bytes) { return block().gather(given, bytes); }
std::vector<PendingCopy>& pending_copies() { return block().pending_copies(); }
bool copies_at_once() { return at_once; }
std::byte* launch_shared() { return shared; }
int any(int predicate) { return block().any(predicate); }
int lane() { return static_cast<int>(block().current() % kWarp); }

}  // namespace emulated_cuda

void __syncthreads() { emulated_cuda::block().wait_for_block(); }
int __syncthreads_or(int predicate) { return emulated_cuda::any(predicate); }
void __syncwarp(unsigned) { emulated_cuda::block().wait_for_warp(); }
