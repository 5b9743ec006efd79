#include "tests/kernels/emulated_cuda/streams.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"
#include "tests/kernels/emulated_cuda/device_memory.h"

namespace {

// Runs grids that may wait for other ranks' on a thread of its own, so that whoever starts one goes
// on, as with a device.
class GridRunner {
 public:
  GridRunner() = default;
  ~GridRunner() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_ending_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  GridRunner(const GridRunner&) = delete;
  GridRunner& operator=(const GridRunner&) = delete;

  // After the last one has ended.
  void start(std::function<void()> grid) {
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      grid_ = std::move(grid);
    }
    changed_.notify_one();
  }

 private:
  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return grid_ != nullptr || is_ending_; });
      if (grid_ == nullptr) return;
      std::exchange(grid_, nullptr)();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> grid_;
  bool is_ending_ = false;
  std::thread thread_;
};

}  // namespace

struct EmulatedGraph {
  std::vector<std::function<void()>> calls;
  void* kept = nullptr;  // device memory, of one that can be launched
};
struct EmulatedStream {
  int device = 0;
  std::atomic<bool> busy = false;
  std::unique_ptr<EmulatedGraph> recording;  // null: none
  bool has_kernels = false;
  bool is_at_work = false;
  std::deque<std::function<void()>> to_do;
  uint64_t num_called = 0;
  uint64_t num_done = 0;
  GridRunner exchanges;
};
struct EmulatedEvent {
  int device = 0;
  cudaStream_t stream = nullptr;
  uint64_t num_called = 0;  // on the stream, when it was recorded
};

namespace emulated_cuda {
namespace {

// Beside other work, with sanitizers.
constexpr std::chrono::seconds kLongestExchange(60);
constexpr std::chrono::microseconds kLook(50);

// Of all streams and events. Whoever holds it waits for no other rank: exchanges never wait in
// `to_do`, but run, and are waited for, without it.
std::recursive_mutex mutex;
Ahead ahead_now = Ahead::kKernels;

constinit thread_local bool records = false;
std::atomic<int> num_launches = 0;

std::set<cudaStream_t>& streams() {
  static auto& streams = *new std::set<cudaStream_t>();
  return streams;
}

void wait_until_idle(cudaStream_t stream) {
  const auto end = std::chrono::steady_clock::now() + kLongestExchange;
  while (stream != nullptr && stream->busy) {
    LCKV_CHECK(std::chrono::steady_clock::now() < end);
    std::this_thread::sleep_for(kLook);
  }
}

// Of what was called on the stream, the first so many. Holding the lock.
void work(EmulatedStream& stream, uint64_t num_called) {
  while (stream.num_done < num_called) {
    LCKV_CHECK(!stream.is_at_work);  // else two streams wait for each other
    const auto next = std::move(stream.to_do.front());
    stream.to_do.pop_front();
    stream.is_at_work = true;
    next();
    stream.is_at_work = false;
    ++stream.num_done;
  }
}

void wait_for(const EmulatedEvent& event) {
  if (event.stream == nullptr) return;
  wait_until_idle(event.stream);
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  work(*event.stream, event.num_called);
}

}  // namespace

void let_ahead(Ahead ahead) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  ahead_now = ahead;
}

uint64_t num_done() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  uint64_t num_done = 0;
  for (const cudaStream_t stream : streams()) num_done += stream->num_done;
  return num_done;
}

bool is_recording() { return records; }
int num_graph_launches() { return num_launches; }

bool record(cudaStream_t stream, std::function<void()> again) {
  if (stream->recording == nullptr) return false;
  stream->recording->calls.push_back(std::move(again));
  return true;
}

void call(cudaStream_t stream, Work kind, std::function<void()> next) {
  if (record(stream, [=] { call(stream, kind, next); })) return;
  wait_until_idle(stream);
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  stream->has_kernels = stream->has_kernels || kind == Work::kKernel;
  stream->to_do.push_back(std::move(next));
  ++stream->num_called;
  if (stream->has_kernels == (ahead_now == Ahead::kKernels)) work(*stream, stream->num_called);
}

namespace {

void run_cooperative_grid(cudaStream_t stream, const std::function<void()>& run) {
  if (record(stream, [=] { run_cooperative_grid(stream, run); })) return;
  // Its place among the stream's kernels, whose turn it is now.
  call(stream, Work::kKernel, [] {});
  finish(stream);
  stream->busy = true;
  stream->exchanges.start([stream, run] {
    {
      const SharedAccess access;
      run();
    }
    stream->busy = false;
  });
}

}  // namespace

bool run_grid(const cudaLaunchConfig_t& config, std::function<void()> kernel) {
  int device = 0;
  (void)cudaGetDevice(&device);
  if (config.stream->device != device) return false;
  const auto run = [grid = config.gridDim, threads = config.blockDim,
                    bytes = config.dynamicSmemBytes,
                    kernel = std::move(kernel)] { run_grid(grid, threads, bytes, kernel); };
  if (config.numAttrs > 0 && config.attrs->val.cooperative != 0) {
    run_cooperative_grid(config.stream, run);
    return true;
  }
  call(config.stream, Work::kKernel, [run] {
    const Access access;
    run();
  });
  return true;
}

void finish(cudaStream_t stream) {
  wait_until_idle(stream);
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  work(*stream, stream->num_called);
}

void finish_all() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  for (const cudaStream_t stream : streams()) work(*stream, stream->num_called);
}

void set_busy(cudaStream_t stream, bool busy) { stream->busy = busy; }

}  // namespace emulated_cuda

using emulated_cuda::mutex;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  (void)cudaGetDevice(&(*stream)->device);
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  emulated_cuda::streams().insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  emulated_cuda::finish(stream);
  {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    emulated_cuda::streams().erase(stream);
  }
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream->recording != nullptr) return cudaErrorStreamCaptureUnsupported;
  emulated_cuda::finish(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (stream->recording != nullptr) return cudaErrorStreamCaptureUnsupported;
  if (stream->busy) return cudaErrorNotReady;
  emulated_cuda::finish(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (stream->recording != nullptr) return cudaErrorStreamCaptureUnsupported;
  if (event->stream == nullptr) return cudaSuccess;
  // An exchange that is under way is waited for here: later nobody would let others come to it.
  emulated_cuda::wait_until_idle(event->stream);
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [recorded = *event] {
    emulated_cuda::work(*recorded.stream, recorded.num_called);
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  (void)cudaGetDevice(&(*event)->device);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (stream->recording != nullptr) return cudaErrorStreamCaptureUnsupported;
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  event->stream = stream;
  event->num_called = stream->num_called;
  return cudaSuccess;
}
// Of a stream that only gets busier than it was when the event was recorded.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (emulated_cuda::is_recording()) return cudaErrorStreamCaptureUnsupported;
  if (event->stream != nullptr && event->stream->busy) return cudaErrorNotReady;
  emulated_cuda::wait_for(*event);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (emulated_cuda::is_recording()) return cudaErrorStreamCaptureUnsupported;
  emulated_cuda::wait_for(*event);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (emulated_cuda::is_recording()) return cudaErrorStreamCaptureUnsupported;
  emulated_cuda::records = true;
  stream->recording = std::make_unique<EmulatedGraph>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream->recording == nullptr) return cudaErrorInvalidValue;
  emulated_cuda::records = false;
  *graph = stream->recording.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* launchable, cudaGraph_t graph,
                                 unsigned long long) {
  constexpr size_t kKept = size_t{32} << 20;
  *launchable =
      new EmulatedGraph{.calls = graph->calls, .kept = emulated_cuda::memory().allocate(kKept)};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t launchable) {
  emulated_cuda::memory().free(launchable->kept);
  delete launchable;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t launchable, cudaStream_t stream) {
  if (emulated_cuda::is_recording() || stream->recording != nullptr) {
    return cudaErrorStreamCaptureUnsupported;
  }
  ++emulated_cuda::num_launches;
  for (const auto& again : launchable->calls) again();
  return cudaSuccess;
}
