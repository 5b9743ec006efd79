#include "tests/bench/limits.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>

#include "kernels/check.h"

namespace lckv::bench {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Sums 64-byte lanes; the compiler turns the inner loop into vector loads of the caller's kind.
[[gnu::always_inline]] inline uint64_t sum_lanes(const uint64_t* data, size_t count) {
  uint64_t lanes[32] = {};
  for (size_t i = 0; i + 32 <= count; i += 32) {
    for (size_t lane = 0; lane < 32; ++lane) lanes[lane] ^= data[i + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum ^= lane;
  return sum;
}

__attribute__((target("avx512f"))) uint64_t sum_avx512(const uint64_t* data, size_t count) {
  return sum_lanes(data, count);
}

uint64_t sum_any(const uint64_t* data, size_t count) { return sum_lanes(data, count); }

}  // namespace

MemoryReads::MemoryReads(size_t bytes, int threads)
    : bytes_(bytes),
      threads_(threads),
      memory_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
  LCKV_CHECK(memory_ != MAP_FAILED);
  madvise(memory_, bytes, MADV_HUGEPAGE);
  std::memset(memory_, 1, bytes);
}

MemoryReads::~MemoryReads() { munmap(memory_, bytes_); }

double MemoryReads::read() {
  const auto* const data = static_cast<const uint64_t*>(memory_);
  const size_t part = bytes_ / sizeof(uint64_t) / static_cast<size_t>(threads_);
  const auto sum = __builtin_cpu_supports("avx512f") != 0 ? sum_avx512 : sum_any;
  uint64_t sink = 0;
  const double start = seconds_now();
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(^ : sink)
  for (int thread = 0; thread < threads_; ++thread) {
    sink ^= sum(data + static_cast<size_t>(thread) * part, part);
  }
  const double taken = seconds_now() - start;
  volatile uint64_t keep = sink;
  (void)keep;
  return static_cast<double>(bytes_) / taken;
}

double product_peak(const std::vector<ProductShape>& shapes, int threads) {
  using dnnl::memory;
  omp_set_num_threads(threads);
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  double best = 0.0;
  for (const ProductShape& shape : shapes) {
    const auto any = memory::format_tag::any;
    const memory::desc x({shape.rows, shape.k}, memory::data_type::bf16, any);
    const memory::desc w({shape.k, shape.n}, memory::data_type::bf16, any);
    const memory::desc y({shape.rows, shape.n}, memory::data_type::f32, any);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, w, y), engine);
    const dnnl::matmul product(description);
    memory x_memory(description.src_desc(), engine);
    memory w_memory(description.weights_desc(), engine);
    memory y_memory(description.dst_desc(), engine);
    std::memset(x_memory.get_data_handle(), 0, description.src_desc().get_size());
    std::memset(w_memory.get_data_handle(), 0, description.weights_desc().get_size());
    const std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, x_memory}, {DNNL_ARG_WEIGHTS, w_memory}, {DNNL_ARG_DST, y_memory}};
    const double operations = 2.0 * static_cast<double>(shape.rows) * static_cast<double>(shape.n) *
                              static_cast<double>(shape.k);
    for (int run = 0; run < 4; ++run) {
      const double start = seconds_now();
      product.execute(stream, arguments);
      stream.wait();
      best = std::max(best, operations / (seconds_now() - start));
    }
  }
  return best;
}

}  // namespace lckv::bench
