#include "kernels/cuda/sampling.h"

#include <type_traits>

#include "kernels/check.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/sampling.h"

namespace lckv {
namespace {

constexpr int kThreads = 512;
// Logits that a thread asks for before it uses the first of them.
constexpr int kAtOnce = 8;

// Keys are looked at digit by digit, the first one first. Logits differ little in sign and
// exponent: with less beside these in the first digit, nearly all of them would be added up at one
// place.
constexpr int kKeyBits = 32;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
struct Digit {
  int shift;
  int bits;

  __device__ uint32_t of(uint32_t key) const { return key >> shift & ((1U << bits) - 1); }
};

// Masses by digit. In two words: of shared memory, only additions of 32 bits are the hardware's.
struct MassTable {
  uint32_t low[kDigits];
  uint32_t high[kDigits];

  __device__ Mass at(int digit) const { return Mass{high[digit]} << 32 | low[digit]; }
  __device__ void clear(int digit) { low[digit] = high[digit] = 0; }
  __device__ void add(uint32_t digit, Mass mass) {
    const auto own = static_cast<uint32_t>(mass);
    const uint32_t carry = atomicAdd(&low[digit], own) > ~own ? 1 : 0;
    const uint32_t above = static_cast<uint32_t>(mass >> 32) + carry;
    if (above != 0) atomicAdd(&high[digit], above);
  }
};

// A row of logits, and the questions that are asked about it. Every thread of the block asks, and
// every one gets the answer.
class Row {
 public:
  struct Shared {
    MassTable masses;
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
    for_each([&](int32_t id, uint32_t key) {
      const Mass place = likeliest_first(key, id);
      best = best < place ? place : best;
    });
    return id_of(block_max<kThreads>(best));
  }

  // Of value_of(id, key), each thread's in the order of ids.
  template <class Value, class ValueOf>
  __device__ Value sum(const ValueOf& value_of) {
    Value sum = 0;
    for_each([&](int32_t id, uint32_t key) { sum += value_of(id, key); });
    return block_sum<kThreads>(sum);
  }

  // Calls visit(id, key) for the thread's part of the vocabulary.
  template <class Visit>
  __device__ void for_each(const Visit& visit) const {
    in_batches([&](int32_t first, auto count) {
      uint32_t keys[count];
      load_keys(first, keys);
#pragma unroll
      for (int i = 0; i < count; ++i) visit(first + i * kThreads, keys[i]);
    });
  }

  // Going from the largest key down: the key at which the running sum of masses passes `target`,
  // and the sum before it. The sum of all masses must pass it.
  struct KeyFound {
    uint32_t key;
    Mass before;
  };
  template <class MassOf>
  __device__ KeyFound find_key(const MassOf& mass_of, Mass target) {
    KeyFound found{};
    for (int left = kKeyBits; left > 0;) {
      const int bits = left < kDigitBits ? left : kDigitBits;
      left -= bits;
      const Digit digit{left, bits};
      for (int i = thread_; i < kDigits; i += kThreads) shared_.masses.clear(i);
      __syncthreads();
      add_masses(mass_of, digit, found.key);
      __syncthreads();
      found = find_digit(digit, found, target);
    }
    return found;
  }

  // Going from the lowest id up: the one at which the running sum of masses passes `target`.
  template <class MassOf>
  __device__ int32_t find_id(const MassOf& mass_of, Mass target) {
    const int32_t share = (vocabulary_ + kThreads - 1) / kThreads;
    const int32_t begin = thread_ * share;
    const int32_t end = begin + share < vocabulary_ ? begin + share : vocabulary_;
    Mass own = 0;
    for (int32_t id = begin; id < end; ++id) own += mass_of(id);
    const Mass before = block_sum_before<kThreads>(own);
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
  // Calls visit(first, count) for ids first, first + kThreads and so on.
  template <class Visit>
  __device__ void in_batches(const Visit& visit) const {
    int32_t id = thread_;
    for (; id < vocabulary_ - (kAtOnce - 1) * kThreads; id += kAtOnce * kThreads) {
      visit(id, std::integral_constant<int, kAtOnce>());
    }
    for (; id < vocabulary_; id += kThreads) visit(id, std::integral_constant<int, 1>());
  }

  template <int kCount>
  __device__ void load_keys(int32_t first, uint32_t (&keys)[kCount]) const {
    float logits[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) logits[i] = logits_[first + i * kThreads];
#pragma unroll
    for (int i = 0; i < kCount; ++i) keys[i] = ordered_key(logits[i]);
  }

  // To the table, the masses of keys that begin as `prefix` does.
  template <class MassOf>
  __device__ void add_masses(const MassOf& mass_of, const Digit& digit, uint32_t prefix) {
    in_batches([&](int32_t first, auto count) {
      uint32_t keys[count];
      load_keys(first, keys);
      Mass masses[count];
#pragma unroll
      for (int i = 0; i < count; ++i) {
        // Of 64 bits, because nothing is left of the first digit.
        const bool is_met = uint64_t{keys[i] ^ prefix} >> (digit.shift + digit.bits) == 0;
        masses[i] = is_met ? mass_of(first + i * kThreads) : 0;
      }
#pragma unroll
      for (int i = 0; i < count; ++i) {
        if (masses[i] > 0) shared_.masses.add(digit.of(keys[i]), masses[i]);
      }
    });
  }

  // The table's digit at which the running sum from the largest down passes the target.
  __device__ KeyFound find_digit(const Digit& digit, KeyFound found, Mass target) {
    constexpr int kOwn = kDigits / kThreads;
    const int first = kDigits - 1 - thread_ * kOwn;
    Mass own = 0;
    for (int i = 0; i < kOwn; ++i) own += shared_.masses.at(first - i);
    Mass before = found.before + block_sum_before<kThreads>(own);
    if (before <= target && (target < before + own || thread_ == kThreads - 1)) {
      int at = first;
      for (; at > 0 && before + shared_.masses.at(at) <= target; --at) {
        before += shared_.masses.at(at);
      }
      shared_.key = found.key | static_cast<uint32_t>(at) << digit.shift;
      shared_.before = before;
    }
    __syncthreads();
    found = {shared_.key, shared_.before};
    __syncthreads();
    return found;
  }

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
  Mass left = row.sum<Mass>(
      [&](int32_t id, uint32_t key) { return masses[id] = weights.mass(logit_of_key(key)); });
  const auto mass_of = [&](int32_t id) { return masses[id]; };
  const bool cuts_top_k = args.top_k > 0 && args.top_k < static_cast<uint32_t>(vocabulary);
  if (cuts_top_k) {
    const auto last = row.find_key([](int32_t) { return Mass{1}; }, args.top_k - 1);
    const Mass above = row.sum<Mass>(
        [&](int32_t id, uint32_t key) { return key > last.key ? masses[id] : Mass{0}; });
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
  const double sum = row.sum<double>(
      [&](int32_t id, uint32_t) { return exp(static_cast<double>(logits[id]) - most); });
  const double norm = most + log(sum);
  if (thread == 0) {
    *logged.own = static_cast<float>(logits[id_of(logged.token)] - norm);
    num_found = 0;
  }
  if (logged.num_top == 0) return;
  const Mass others = static_cast<Mass>(logged.num_top) - 1;
  const auto last = row.find_key([](int32_t) { return Mass{1}; }, others);
  const int32_t last_id = row.find_equal(last.key, others - last.before);
  row.for_each([&](int32_t id, uint32_t key) {
    if (key < last.key || (key == last.key && id > last_id)) return;
    logged.top[atomicAdd(&num_found, 1U)] = {id, static_cast<float>(logits[id] - norm)};
  });
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
