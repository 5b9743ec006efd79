#include "tests/bench/machine.h"

#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "dnnl.hpp"
#include "kernels/check.h"

namespace lckv {
namespace {

// The sum keeps the reads from being left out.
__attribute__((target("avx512f"))) int64_t read_avx512(const std::byte* data, int64_t bytes) {
  __m512i sum[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(data + i + 64 * j));
    }
  }
  alignas(64) int64_t lanes[32];
  for (int j = 0; j < 4; ++j) _mm512_store_si512(lanes + 8 * j, sum[j]);
  int64_t all = 0;
  for (const int64_t lane : lanes) all ^= lane;
  return all;
}

int64_t read_plain(const std::byte* data, int64_t bytes) {
  int64_t sum = 0;
  for (int64_t i = 0; i + 8 <= bytes; i += 8) {
    int64_t word;
    std::memcpy(&word, data + i, 8);
    sum ^= word;
  }
  return sum;
}

double seconds_of_product(const MatmulShape& shape) {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto bf16 = memory::data_type::bf16;
  const memory::desc x({shape.rows, shape.k}, bf16, memory::format_tag::ab);
  const memory::desc w({shape.k, shape.n}, bf16, memory::format_tag::any);
  const memory::desc y({shape.rows, shape.n}, bf16, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, w, y), engine);
  dnnl::matmul product(description);
  memory x_memory(x, engine);
  memory w_memory(description.weights_desc(), engine);
  memory y_memory(y, engine);
  std::memset(x_memory.get_data_handle(), 0, x.get_size());
  std::memset(w_memory.get_data_handle(), 0, description.weights_desc().get_size());
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    const absl::Time began = absl::Now();
    product.execute(stream, {{DNNL_ARG_SRC, x_memory},
                             {DNNL_ARG_WEIGHTS, w_memory},
                             {DNNL_ARG_DST, y_memory}});
    stream.wait();
    if (i > 0) best = std::min(best, absl::ToDoubleSeconds(absl::Now() - began));
  }
  return best;
}

// A tile instruction, which ends the process where tiles cannot be used.
__attribute__((target("amx-tile"))) void touch_tiles() {
  alignas(64) uint8_t layout[64] = {1};  // palette 1
  layout[16] = 64;                       // bytes of a row of tile 0
  layout[48] = 16;                       // rows of tile 0
  _tile_loadconfig(layout);
  _tile_zero(0);
  _tile_release();
}

}  // namespace

double read_bandwidth(int64_t bytes) {
  bytes = bytes / 4096 * 4096;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  LCKV_CHECK(memory != MAP_FAILED);
  madvise(memory, bytes, MADV_HUGEPAGE);
  const auto* data = static_cast<const std::byte*>(memory);
  const int64_t share = bytes / omp_get_max_threads() / 4096 * 4096;
#pragma omp parallel
  std::memset(static_cast<std::byte*>(memory) + omp_get_thread_num() * share, 1, share);
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  double best = 1e30;
  int64_t sum = 0;
  for (int i = 0; i < 5; ++i) {
    const absl::Time began = absl::Now();
#pragma omp parallel reduction(^ : sum)
    {
      const std::byte* part = data + omp_get_thread_num() * share;
      sum ^= avx512 ? read_avx512(part, share) : read_plain(part, share);
    }
    best = std::min(best, absl::ToDoubleSeconds(absl::Now() - began));
  }
  volatile int64_t keep = sum;
  (void)keep;
  munmap(memory, bytes);
  return static_cast<double>(share) * omp_get_max_threads() / best;
}

double matmul_peak(const std::vector<MatmulShape>& shapes) {
  double best = 0;
  for (const MatmulShape& shape : shapes) {
    const double operations = 2.0 * static_cast<double>(shape.rows) *
                              static_cast<double>(shape.n) * static_cast<double>(shape.k);
    best = std::max(best, operations / seconds_of_product(shape));
  }
  return best;
}

bool has_amx() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  const pid_t child = fork();
  if (child == 0) {
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) _exit(1);
    touch_tiles();
    _exit(0);
  }
  int status = 1;
  return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace lckv
