#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/check.h"
#include "kernels/philox.h"

namespace lckv {
namespace {

// Larger first, equal ones by id.
struct ByLogit {
  const float* logits;
  bool operator()(int32_t left, int32_t right) const {
    if (logits[left] != logits[right]) return logits[left] > logits[right];
    return left < right;
  }
};

// The `count` largest, in order.
std::vector<int32_t> largest(const float* logits, int32_t vocabulary, int32_t count) {
  std::vector<int32_t> ids(vocabulary);
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, vocabulary);
  if (count < vocabulary) {
    std::nth_element(ids.begin(), ids.begin() + count, ids.end(), ByLogit{logits});
    ids.resize(count);
  }
  std::sort(ids.begin(), ids.end(), ByLogit{logits});
  return ids;
}

// In [0, 1), from the seed, the choice and the position alone.
double uniform(const SampleArgs& args) {
  const auto words = philox_4x32_10({args.position, args.choice, 0, 0},
                                    {static_cast<uint32_t>(args.seed),
                                     static_cast<uint32_t>(args.seed >> 32)});
  const uint64_t bits = (static_cast<uint64_t>(words[0]) << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// Candidates in order of falling probability, cut by top-k, min-p and top-p in this order; weights are
// relative to the most likely one.
struct Candidates {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

Candidates candidates(const SampleArgs& args) {
  const bool cut = args.top_k > 0 && args.top_k < static_cast<uint32_t>(args.vocabulary);
  const int32_t count = cut ? static_cast<int32_t>(args.top_k) : args.vocabulary;
  Candidates out{.ids = largest(args.logits, args.vocabulary, count), .weights = {}};
  const double top = args.logits[out.ids.front()];
  double sum = 0.0;
  for (const int32_t id : out.ids) {
    const double weight = std::exp((args.logits[id] - top) / args.temperature);
    if (weight == 0.0 || weight < static_cast<double>(args.min_p)) break;
    out.weights.push_back(weight);
    sum += weight;
  }
  if (args.top_p < 1.0F) {
    double reached = 0.0;
    size_t kept = 0;
    while (kept < out.weights.size() && reached < static_cast<double>(args.top_p) * sum) {
      reached += out.weights[kept++];
    }
    out.weights.resize(std::max<size_t>(kept, 1));
  }
  out.ids.resize(out.weights.size());
  return out;
}

}  // namespace

void row_logprobs(const float* logits, int32_t vocabulary, std::span<const int32_t> ids, float* own,
                  int32_t num_top, TopEntry* top) {
  const float most = *std::max_element(logits, logits + vocabulary);
  double sum = 0.0;
  for (int32_t i = 0; i < vocabulary; ++i) sum += std::exp(static_cast<double>(logits[i]) - most);
  const double norm = most + std::log(sum);
  for (size_t i = 0; i < ids.size(); ++i) own[i] = static_cast<float>(logits[ids[i]] - norm);
  if (num_top == 0) return;
  for (const int32_t id : largest(logits, vocabulary, num_top)) {
    *top++ = {id, static_cast<float>(logits[id] - norm)};
  }
}

int32_t draw_token(const SampleArgs& args) {
  LCKV_CHECK(args.vocabulary > 0);
  if (args.temperature == 0.0F) {
    return static_cast<int32_t>(std::max_element(args.logits, args.logits + args.vocabulary) -
                                args.logits);
  }
  const Candidates cut = candidates(args);
  const double sum = std::accumulate(cut.weights.begin(), cut.weights.end(), 0.0);
  double left = uniform(args) * sum;
  for (size_t i = 0; i < cut.ids.size(); ++i) {
    left -= cut.weights[i];
    if (left < 0.0) return cut.ids[i];
  }
  return cut.ids.back();
}

}  // namespace lckv
