#include "kernels/cpu/threads.h"

#include <omp.h>

#include <algorithm>
#include <array>

namespace lckv {
namespace {

constexpr double kNanoseconds = 1e9;
// Between two operations: the threads have found nothing to do.
constexpr double kPause = 50e-6;
// Of work that is never shared out.
constexpr double kLeastWork = 6500;

// Seconds of a region in which nothing is done; the median, since others use the cores too.
double empty_region(int threads) {
  std::array<double, 11> taken;
  for (double& time : taken) {
    const double begin = omp_get_wtime();
    while (omp_get_wtime() < begin + kPause) {
    }
    time = -omp_get_wtime();
#pragma omp parallel num_threads(threads)
    asm volatile("");
    time += omp_get_wtime();
  }
  std::nth_element(taken.begin(), taken.begin() + taken.size() / 2, taken.end());
  return taken[taken.size() / 2];
}

// With n threads, work of t takes t/n and the region: less than t if t > region n / (n - 1).
double least_work(int threads) {
  if (threads < 2) return kLeastWork;
  const double shared = kNanoseconds * empty_region(threads) * threads / (threads - 1);
  return std::max(kLeastWork, shared);
}

}  // namespace

CpuThreads::CpuThreads(int count) : count_(count), least_work_(least_work(count)) {}

}  // namespace lckv
