#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"

dim3 threadIdx;
dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

// Of all ranks' devices together.
constexpr size_t kDeviceBytes = size_t{512} << 20;
constexpr size_t kFilledBytes = size_t{1} << 20;

namespace emulated_cuda {
namespace {

constexpr size_t kStackBytes = size_t{64} << 10;
constexpr unsigned kWarp = 32;

// Memory that the host may not touch but through the functions below, each piece before a page that
// nobody may.
class Memory {
 public:
  void* allocate(size_t bytes) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const size_t length = rounded(bytes, kPage);
    used_ += length;
    void* const base = mmap(nullptr, length + kPage, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    // So that a step too far leaves it, the piece ends where its page does.
    void* const begin = static_cast<std::byte*>(base) + (length - rounded(bytes, kAlignment));
    pieces_[begin] = {base, length};
    return begin;
  }
  void free(void* begin) {
    if (begin == nullptr) return;
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const auto piece = pieces_.find(begin);
    LCKV_CHECK(piece != pieces_.end());
    used_ -= piece->second.length;
    LCKV_CHECK(munmap(piece->second.base, piece->second.length + kPage) == 0);
    pieces_.erase(piece);
  }
  bool holds(const void* at) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    auto piece = pieces_.upper_bound(const_cast<void*>(at));
    if (piece == pieces_.begin()) return false;
    --piece;
    return at < static_cast<std::byte*>(piece->second.base) + piece->second.length;
  }
  size_t used() {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return used_;
  }
  // Of whoever uses the device.
  std::recursive_mutex& mutex() { return mutex_; }
  void allow(bool access) const {
    for (const auto& [begin, piece] : pieces_) {
      const int mode = access ? PROT_READ | PROT_WRITE : PROT_NONE;
      LCKV_CHECK(mprotect(piece.base, piece.length, mode) == 0);
    }
  }

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kAlignment = 16;
  static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

  struct Piece {
    void* base = nullptr;
    size_t length = 0;
  };
  std::recursive_mutex mutex_;
  std::map<void*, Piece> pieces_;
  size_t used_ = 0;
};

Memory& memory() {
  static Memory& memory = *new Memory();
  return memory;
}

// While the device does something.
class Access {
 public:
  Access() { memory().allow(true); }
  ~Access() { memory().allow(false); }
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

 private:
  const std::lock_guard<std::recursive_mutex> lock_{memory().mutex()};
};

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
  std::vector<Warp> warps_;
  std::vector<Thread> threads_;
  jmp_buf scheduler_ = {};
};

Block& block() {
  static Block& block = *new Block();
  return block;
}

// Of the launch that runs.
std::byte* shared = nullptr;
bool at_once = false;

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
  const std::lock_guard<std::recursive_mutex> lock(memory().mutex());
  static unsigned launches = 0;
  ++launches;
  at_once = launches / 2 % 2 == 0;
  shared = static_cast<std::byte*>(memory().allocate(shared_bytes));
  const Access access;
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
  const std::lock_guard<std::recursive_mutex> lock(memory().mutex());
  shared_of_kernels()[kernel] = bytes;
}
size_t allowed_shared(const void* kernel) {
  const std::lock_guard<std::recursive_mutex> lock(memory().mutex());
  const auto found = shared_of_kernels().find(kernel);
  return found == shared_of_kernels().end() ? size_t{48} << 10 : found->second;
}

const Given* gather(const void* given, size_t bytes) { return block().gather(given, bytes); }
std::vector<PendingCopy>& pending_copies() { return block().pending_copies(); }
bool copies_at_once() { return at_once; }
std::byte* launch_shared() { return shared; }
int lane() { return static_cast<int>(block().current() % kWarp); }

void use_device(const std::function<void()>& body) {
  const Access access;
  body();
}

}  // namespace emulated_cuda

void __syncthreads() { emulated_cuda::block().wait_for_block(); }
void __syncwarp(unsigned) { emulated_cuda::block().wait_for_warp(); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kDeviceBytes;
  *free = kDeviceBytes - emulated_cuda::memory().used();
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = emulated_cuda::memory().allocate(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  // What was never written shows as no number. Of large pieces not: pages in use make every access
  // slower.
  if (bytes <= kFilledBytes) {
    emulated_cuda::use_device([&] { std::memset(*memory, 0xFF, bytes); });
  }
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  emulated_cuda::finish_all();
  emulated_cuda::memory().free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [=] {
    const emulated_cuda::Access access;
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_stride, const void* from, size_t from_stride,
                              size_t width, size_t rows, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_stride || width > from_stride) return cudaErrorInvalidValue;
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [=] {
    const emulated_cuda::Access access;
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(static_cast<std::byte*>(to) + row * to_stride,
                  static_cast<const std::byte*>(from) + row * from_stride, width);
    }
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [=] {
    const emulated_cuda::Access access;
    std::memset(memory, value, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  attributes->type =
      emulated_cuda::memory().holds(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
