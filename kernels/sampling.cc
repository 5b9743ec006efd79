#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/check.h"

namespace lckv {
namespace {

// NaN counts as the least likely, so that the order below is one.
float rank_of(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

// Larger first, equal ones by id.
struct ByLogit {
  const float* logits;
  bool operator()(int32_t left, int32_t right) const {
    const float a = rank_of(logits[left]);
    const float b = rank_of(logits[right]);
    return a != b ? a > b : left < right;
  }
};

int32_t most_likely(const float* logits, int32_t vocabulary) {
  int32_t best = 0;
  for (int32_t id = 1; id < vocabulary; ++id) {
    if (rank_of(logits[id]) > rank_of(logits[best])) best = id;
  }
  return best;
}

// Brings the `count` first of `ids` to the front, in order.
void order_first(const float* logits, std::vector<int32_t>& ids, size_t count) {
  const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(count, ids.size()));
  if (end != ids.end()) std::nth_element(ids.begin(), end, ids.end(), ByLogit{logits});
  std::sort(ids.begin(), end, ByLogit{logits});
}

// In [0, 1).
double uniform(const SampleArgs& args) {
  return static_cast<double>(draw_bits(args.seed, args.choice, args.position)) * 0x1.0p-53;
}

// What may be drawn. Weights are relative to the most likely token's.
struct Candidates {
  std::vector<int32_t> ids;
  std::vector<double> weights;
  double sum = 0.0;
};

// The fewest most likely ones that together reach top_p. Their number is not known beforehand and
// mostly small against the vocabulary, so ever longer heads are put in order until one suffices.
void cut_top_p(const SampleArgs& args, Candidates& all) {
  const double wanted = static_cast<double>(args.top_p) * all.sum;
  std::vector<double> weight_of(static_cast<size_t>(args.vocabulary), 0.0);
  for (size_t i = 0; i < all.ids.size(); ++i) weight_of[all.ids[i]] = all.weights[i];
  for (size_t head = 64;; head *= 8) {
    head = std::min(head, all.ids.size());
    order_first(args.logits, all.ids, head);
    double reached = 0.0;
    size_t kept = 0;
    while (kept < head && (kept == 0 || reached < wanted)) reached += weight_of[all.ids[kept++]];
    if (reached < wanted && head < all.ids.size()) continue;
    all.ids.resize(kept);
    all.weights.resize(kept);
    for (size_t i = 0; i < kept; ++i) all.weights[i] = weight_of[all.ids[i]];
    all.sum = reached;
    return;
  }
}

Candidates candidates(const SampleArgs& args) {
  std::vector<int32_t> ids(static_cast<size_t>(args.vocabulary));
  std::iota(ids.begin(), ids.end(), 0);
  if (args.top_k > 0 && args.top_k < ids.size()) {
    order_first(args.logits, ids, args.top_k);
    ids.resize(args.top_k);
  }
  const float top = rank_of(args.logits[most_likely(args.logits, args.vocabulary)]);
  Candidates kept;
  for (const int32_t id : ids) {
    const float logit = rank_of(args.logits[id]);
    // The difference of two equal infinities is not a number.
    const double weight =
        logit == top
            ? 1.0
            : std::exp((static_cast<double>(logit) - top) / static_cast<double>(args.temperature));
    if (weight == 0.0 || weight < static_cast<double>(args.min_p)) continue;
    kept.ids.push_back(id);
    kept.weights.push_back(weight);
    kept.sum += weight;
  }
  if (args.top_p < 1.0F) cut_top_p(args, kept);
  return kept;
}

}  // namespace

void row_logprobs(const LogprobArgs& row, int32_t vocabulary) {
  const float* const logits = row.logits;
  const double most = logits[most_likely(logits, vocabulary)];
  double sum = 0.0;
  for (int32_t i = 0; i < vocabulary; ++i) sum += std::exp(static_cast<double>(logits[i]) - most);
  const double norm = most + std::log(sum);
  *row.own = static_cast<float>(logits[id_of(row.token)] - norm);
  if (row.num_top == 0) return;
  LCKV_CHECK(row.num_top <= vocabulary);
  std::vector<int32_t> order(static_cast<size_t>(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  order_first(logits, order, static_cast<size_t>(row.num_top));
  for (int32_t i = 0; i < row.num_top; ++i) {
    row.top[i] = {order[i], static_cast<float>(logits[order[i]] - norm)};
  }
}

int32_t draw_token(const SampleArgs& args) {
  LCKV_CHECK(args.vocabulary > 0 && args.temperature >= 0.0F);
  if (args.temperature == 0.0F) return most_likely(args.logits, args.vocabulary);
  const Candidates kept = candidates(args);
  double left = uniform(args) * kept.sum;
  for (size_t i = 0; i < kept.ids.size(); ++i) {
    left -= kept.weights[i];
    if (left < 0.0) return kept.ids[i];
  }
  return kept.ids.back();
}

}  // namespace lckv
