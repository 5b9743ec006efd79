#include "kernels/cuda/sampling.h"

#include "kernels/check.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/sampling.h"

namespace lckv {
namespace {

constexpr int kThreads = 512;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

// A row of logits, and the questions that are asked about it. Every thread of the block asks, and
// every one gets the answer.
class Row {
 public:
  struct Shared {
    Mass digits[kDigits];
    Mass shares[kThreads];
    Mass largest[kThreads / kWarpThreads];
    // The answer of the thread that found it.
    uint32_t key;
    int32_t id;
    Mass before;
  };

  __device__ Row(const float* logits, int32_t vocabulary, Shared& shared)
      : logits_(logits),
        vocabulary_(vocabulary),
        thread_(static_cast<int32_t>(threadIdx.x)),
        shared_(shared) {}

  __device__ uint32_t key(int32_t id) const { return ordered_key(logits_[id]); }

  __device__ int32_t most_likely() {
    Mass best = 0;
    for (int32_t id = thread_; id < vocabulary_; id += kThreads) {
      best = larger(best, likeliest_first(key(id), id));
    }
    for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
      best = larger(best, __shfl_xor_sync(~0U, best, distance));
    }
    if (thread_ % kWarpThreads == 0) shared_.largest[thread_ / kWarpThreads] = best;
    __syncthreads();
    for (const Mass other : shared_.largest) best = larger(best, other);
    __syncthreads();
    return id_of(best);
  }

  template <class Value, class ValueOf>
  __device__ Value sum(const ValueOf& value_of) {
    Value sum = 0;
    for (int32_t id = thread_; id < vocabulary_; id += kThreads) sum += value_of(id);
    return block_sum<kThreads>(sum);
  }

  // Going from the largest key down: the key at which the running sum of masses passes `target`,
  // and the sum before it. The sum of all masses must pass it.
  struct KeyFound {
    uint32_t key;
    Mass before;
  };
  template <class MassOf>
  __device__ KeyFound find_key(const MassOf& mass_of, Mass target) {
    uint32_t prefix = 0;
    Mass before = 0;
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
      for (int digit = thread_; digit < kDigits; digit += kThreads) shared_.digits[digit] = 0;
      __syncthreads();
      for (int32_t id = thread_; id < vocabulary_; id += kThreads) {
        const uint32_t key = this->key(id);
        // Of 64 bits, because nothing is left of the first digit.
        if (uint64_t{key ^ prefix} >> (shift + kDigitBits) != 0) continue;
        if (const Mass mass = mass_of(id); mass > 0) {
          atomicAdd(&shared_.digits[key >> shift & (kDigits - 1)], mass);
        }
      }
      __syncthreads();
      if (thread_ == 0) {
        uint32_t digit = kDigits - 1;
        while (digit > 0 && before + shared_.digits[digit] <= target) {
          before += shared_.digits[digit];
          --digit;
        }
        shared_.key = prefix | digit << shift;
        shared_.before = before;
      }
      __syncthreads();
      prefix = shared_.key;
      before = shared_.before;
      __syncthreads();
    }
    return {prefix, before};
  }

  // Going from the lowest id up: the one at which the running sum of masses passes `target`.
  template <class MassOf>
  __device__ int32_t find_id(const MassOf& mass_of, Mass target) {
    const int32_t share = (vocabulary_ + kThreads - 1) / kThreads;
    const int32_t begin = thread_ * share;
    const int32_t end = begin + share < vocabulary_ ? begin + share : vocabulary_;
    Mass own = 0;
    for (int32_t id = begin; id < end; ++id) own += mass_of(id);
    shared_.shares[thread_] = own;
    __syncthreads();
    Mass before = 0;
    for (int32_t i = 0; i < thread_; ++i) before += shared_.shares[i];
    if (before <= target && target < before + own) {
      int32_t id = begin;
      for (Mass sum = before + mass_of(id); sum <= target; sum += mass_of(id)) ++id;
      shared_.id = id;
    }
    __syncthreads();
    const int32_t found = shared_.id;
    __syncthreads();
    return found;
  }

  // The `rank`-th id, from 0 on, of those with the key.
  __device__ int32_t find_equal(uint32_t key, Mass rank) {
    return find_id([&](int32_t id) { return this->key(id) == key ? Mass{1} : Mass{0}; }, rank);
  }

 private:
  __device__ static Mass larger(Mass left, Mass right) { return left < right ? right : left; }

  const float* const logits_;
  const int32_t vocabulary_;
  const int32_t thread_;
  Shared& shared_;
};

struct Weights {
  float top;
  float temperature;
  float min_p;
  int bits;

  __device__ Mass mass(float logit) const {
    // The difference of two equal infinities is not a number.
    const double weight =
        logit == top ? 1.0
                     : exp((static_cast<double>(logit) - top) / static_cast<double>(temperature));
    return weight < static_cast<double>(min_p) ? 0 : mass_of_weight(weight, bits);
  }
};

__device__ int32_t draw(const SampleArgs& args, Row& row, Mass* masses) {
  const int32_t vocabulary = args.vocabulary;
  const int32_t best = row.most_likely();
  if (args.temperature == 0.0F) return best;
  const Weights weights{.top = logit_of_key(row.key(best)),
                        .temperature = args.temperature,
                        .min_p = args.min_p,
                        .bits = mass_bits(vocabulary)};
  for (auto id = static_cast<int32_t>(threadIdx.x); id < vocabulary; id += kThreads) {
    masses[id] = weights.mass(logit_of_key(row.key(id)));
  }
  __syncthreads();
  const auto mass_of = [&](int32_t id) { return masses[id]; };
  Mass left = row.sum<Mass>(mass_of);
  const bool cuts_top_k = args.top_k > 0 && args.top_k < static_cast<uint32_t>(vocabulary);
  if (cuts_top_k) {
    const auto last = row.find_key([](int32_t) { return Mass{1}; }, args.top_k - 1);
    const Mass above =
        row.sum<Mass>([&](int32_t id) { return row.key(id) > last.key ? masses[id] : Mass{0}; });
    left = above + (args.top_k - last.before) * weights.mass(logit_of_key(last.key));
  }
  if (args.top_p < 1.0F) {
    const Mass wanted = share_of_mass(left, static_cast<double>(args.top_p));
    const auto last = row.find_key(mass_of, wanted - 1);
    const Mass each = weights.mass(logit_of_key(last.key));
    left = last.before + ((wanted - 1 - last.before) / each + 1) * each;
  }
  const Mass target = draw_target(left, draw_bits(args.seed, args.choice, args.position));
  if (!cuts_top_k && args.top_p >= 1.0F) return row.find_id(mass_of, target);
  // In the order of logits, in which what is left lies first.
  const auto drawn = row.find_key(mass_of, target);
  const Mass each = weights.mass(logit_of_key(drawn.key));
  return row.find_equal(drawn.key, (target - drawn.before) / each);
}

__global__ void __launch_bounds__(kThreads) draw_kernel(const DrawnRows args) {
  __shared__ Row::Shared shared;
  const SampleArgs& drawn = args.rows[blockIdx.x];
  Row row(drawn.logits, args.vocabulary, shared);
  const int32_t id = draw(drawn, row, args.masses + int64_t{blockIdx.x} * args.vocabulary);
  if (threadIdx.x == 0) *drawn.drawn = id;
}

__global__ void __launch_bounds__(kThreads) logprobs_kernel(const LoggedRows args) {
  __shared__ Row::Shared shared;
  __shared__ unsigned num_found;
  const LogprobArgs& logged = args.rows[blockIdx.x];
  const float* const logits = logged.logits;
  Row row(logits, args.vocabulary, shared);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const double most = logits[row.most_likely()];
  const double sum =
      row.sum<double>([&](int32_t id) { return exp(static_cast<double>(logits[id]) - most); });
  const double norm = most + log(sum);
  if (thread == 0) {
    *logged.own = static_cast<float>(logits[id_of(logged.token)] - norm);
    num_found = 0;
  }
  if (logged.num_top == 0) return;
  const Mass others = static_cast<Mass>(logged.num_top) - 1;
  const auto last = row.find_key([](int32_t) { return Mass{1}; }, others);
  const int32_t last_id = row.find_equal(last.key, others - last.before);
  for (int32_t id = thread; id < args.vocabulary; id += kThreads) {
    const uint32_t key = row.key(id);
    if (key < last.key || (key == last.key && id > last_id)) continue;
    logged.top[atomicAdd(&num_found, 1U)] = {id, static_cast<float>(logits[id] - norm)};
  }
}

__global__ void change_kernel(const ChangedLogits args) {
  const auto i = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= args.count) return;
  float& logit = args.logits[args.ids[i]];
  logit = changed_logit(args.change, logit, args.values[i]);
}

}  // namespace

void change_row_logits(const ChangedLogits& args, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((args.count + kThreads - 1) / kThreads);
  launch("change_logits", stream, {.grid = dim3(blocks), .threads = kThreads}, change_kernel, args);
}

void draw_rows(const DrawnRows& args, cudaStream_t stream) {
  LCKV_CHECK(args.vocabulary > 0);
  launch("sample", stream,
         {.grid = dim3(static_cast<unsigned>(args.num_rows)), .threads = kThreads}, draw_kernel,
         args);
}

void find_row_logprobs(const LoggedRows& args, cudaStream_t stream) {
  LCKV_CHECK(args.vocabulary > 0);
  launch("logprobs", stream,
         {.grid = dim3(static_cast<unsigned>(args.num_rows)), .threads = kThreads}, logprobs_kernel,
         args);
}

}  // namespace lckv
