// One task computes the query heads of one KV head for a few neighbouring rows of one sequence: a
// tile's keys and values are widened once for all of them. Every score and every sum of one query
// is built in an order that its own position, window and history give, so grouping rows changes no
// bit.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/attention_tile.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/exponential-inl.h"

#ifndef LCKV_ATTENTION_TASK
#define LCKV_ATTENTION_TASK
namespace lckv {

struct AttentionTask {
  const AttentionArgs* args = nullptr;
  const AttentionSegment* segment = nullptr;
  int32_t row_begin = 0;
  int32_t row_end = 0;
  int32_t kv_head = 0;
  float* scratch = nullptr;
};

// Queries of a task: enough to make widening a tile cheap, few enough to stay in the nearest
// caches.
constexpr int32_t kTaskQueries = 32;

inline int32_t rows_together(const AttentionArgs& args) {
  return std::max(1, kTaskQueries / (args.num_heads / args.layout.kv_heads));
}

// A tile's keys and values, then of each query: itself spread fourfold, its sums, its scores.
inline int64_t task_floats(const AttentionArgs& args) {
  const int64_t size = args.layout.head_dim;
  const int64_t queries =
      static_cast<int64_t>(rows_together(args)) * (args.num_heads / args.layout.kv_heads);
  return 2 * kTilePositions * size + queries * (5 * size + kTilePositions);
}

}  // namespace lckv
#endif

HWY_BEFORE_NAMESPACE();
namespace lckv {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR
// Highway compiles this target for x86 processors without SSSE3; they are not served.
void RunTask(const AttentionTask&) { LCKV_CHECK(!"SSSE3"); }
#else

// Head sizes are multiples of 16 and tiles of 64: no vector has a tail.
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr int32_t kLanes = static_cast<int32_t>(hn::MaxLanes(D()));
constexpr int32_t kQuads = kTilePositions / 4;
// Blocks of sums that fill the registers.
constexpr int kQueryBlock = 4;
constexpr int kVectorBlock = kLanes == 16 ? 4 : 2;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

HWY_INLINE V load_values(const float* from) { return hn::LoadU(D(), from); }
HWY_INLINE V load_values(const uint16_t* from) {
  const hn::Rebind<uint16_t, D> narrow;
  const hn::RebindToUnsigned<D> wide;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(narrow, from))));
}

// Adds the groups of four lanes and stores the four sums.
template <class Tag>
HWY_INLINE void store_quad(Tag d, hn::Vec<Tag> sums, float* to) {
  if constexpr (hn::MaxLanes(Tag()) <= 4) {
    hn::StoreU(sums, d, to);
  } else {
    const hn::Half<Tag> half;
    store_quad(half, hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums)), to);
  }
}

template <class Value>
class RowGroup {
 public:
  explicit RowGroup(const AttentionTask& task)
      : args_(*task.args),
        segment_(*task.segment),
        row_begin_(task.row_begin),
        rows_(task.row_end - task.row_begin),
        size_(args_.layout.head_dim),
        heads_(args_.num_heads / args_.layout.kv_heads),
        first_head_(task.kv_head * heads_),
        queries_(rows_ * heads_),
        walk_(args_, segment_, task.kv_head),
        keys_(task.scratch),
        values_(keys_ + kTilePositions * size_),
        spread_(values_ + kTilePositions * size_),
        sums_(spread_ + int64_t{4} * queries_ * size_),
        scores_(sums_ + static_cast<int64_t>(queries_) * size_),
        views_(rows_),
        masks_(rows_),
        tops_(queries_, kLowest),
        norms_(queries_, 0.0F) {}

  void run() {
    std::fill_n(sums_, static_cast<int64_t>(queries_) * size_, 0.0F);
    spread_queries();
    int32_t sinks = 0;
    int32_t begin = INT32_MAX;
    int32_t end = 0;
    for (int32_t row = 0; row < rows_; ++row) {
      // Keys that count as one position newer: the row sees what the one before it would.
      const RowView& view = views_[row] = RowView(args_, position(row) - (official(row) ? 1 : 0));
      sinks = std::max(sinks, view.sinks);
      begin = std::min(begin, view.begin);
      end = std::max(end, view.end);
    }
    while (walk_.next(sinks, begin, end)) add_tile();
    for (int32_t row = 0; row < rows_; ++row) {
      if (official(row) && sees_zero_key(args_, position(row))) add_zero_key(row);
      for (int32_t head = 0; head < heads_; ++head) write(row, head);
    }
  }

 private:
  int32_t position(int32_t row) const { return args_.positions[row_begin_ + row]; }
  bool official(int32_t row) const {
    return args_.official_decode != nullptr && args_.official_decode[row_begin_ + row] != 0;
  }
  int64_t head_of(int32_t row, int32_t head) const {
    return static_cast<int64_t>(row_begin_ + row) * args_.num_heads + first_head_ + head;
  }

  // Each value of a query four times, to meet the same element of four keys.
  void spread_queries() {
    for (int32_t query = 0; query < queries_; ++query) {
      const float* const q = args_.q + head_of(query / heads_, query % heads_) * size_;
      float* const to = spread_ + int64_t{4} * query * size_;
      for (int32_t i = 0; i < size_; ++i) std::fill_n(to + 4 * i, 4, q[i]);
    }
  }

  void add_tile() {
    uint64_t seen = 0;
    bool equal = true;
    for (int32_t row = 0; row < rows_; ++row) {
      masks_[row] = walk_.present & views_[row].lanes(walk_.base);
      seen |= masks_[row];
      equal = equal && masks_[row] == masks_[0];
    }
    if (seen == 0) return;
    widen_tile(seen);
    score_tile(seen);
    for (int32_t query = 0; query < queries_; ++query) weigh(query, masks_[query / heads_]);
    // Rows that see the same share the loads; others must not meet what only a neighbour sees.
    if (equal) {
      add_values(0, queries_, masks_[0]);
    } else {
      for (int32_t row = 0; row < rows_; ++row) {
        add_values(row * heads_, (row + 1) * heads_, masks_[row]);
      }
    }
  }

  // Keys of four lanes interleaved element by element, [quad][head_dim][4]; values as they are.
  void widen_tile(uint64_t seen) {
    const D d;
    for (int32_t quad = 0; quad < kQuads; ++quad) {
      const uint64_t lanes = seen >> (4 * quad) & 0xF;
      if (lanes == 0) continue;
      const Value* from[4];
      // A lane that nobody sees repeats one that somebody does; its scores are dropped.
      const int32_t some = 4 * quad + std::countr_zero(lanes);
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t lane = (lanes >> i & 1) != 0 ? 4 * quad + i : some;
        from[i] = reinterpret_cast<const Value*>(walk_.keys[lane]);
      }
      float* const to = keys_ + int64_t{4} * quad * size_;
      for (int32_t i = 0; i < size_; i += kLanes) {
        hn::StoreInterleaved4(load_values(from[0] + i), load_values(from[1] + i),
                              load_values(from[2] + i), load_values(from[3] + i), d, to + 4 * i);
      }
    }
    for (uint64_t left = seen; left != 0; left &= left - 1) {
      const int32_t lane = std::countr_zero(left);
      const auto* const from = reinterpret_cast<const Value*>(walk_.values[lane]);
      float* const to = values_ + static_cast<int64_t>(lane) * size_;
      for (int32_t i = 0; i < size_; i += kLanes) hn::StoreU(load_values(from + i), d, to + i);
    }
  }

  void score_tile(uint64_t seen) {
    for (int32_t quad = 0; quad < kQuads; quad += kVectorBlock) {
      if ((seen >> (4 * quad) & ((uint64_t{1} << (4 * kVectorBlock)) - 1)) == 0) continue;
      int32_t query = 0;
      for (; query + kQueryBlock <= queries_; query += kQueryBlock) {
        score_block<kQueryBlock>(query, quad);
      }
      for (; query < queries_; ++query) score_block<1>(query, quad);
    }
  }

  // Unseen quads of the block hold what an earlier tile left; their scores are dropped.
  template <int kCount>
  void score_block(int32_t query, int32_t quad) {
    const D d;
    V sums[kCount][kVectorBlock];
    for (int i = 0; i < kCount; ++i) {
      for (int j = 0; j < kVectorBlock; ++j) sums[i][j] = hn::Zero(d);
    }
    const int64_t stride = int64_t{4} * size_;
    const float* const q = spread_ + query * stride;
    const float* const k = keys_ + quad * stride;
    for (int32_t at = 0; at < 4 * size_; at += kLanes) {
      V keys[kVectorBlock];
      for (int j = 0; j < kVectorBlock; ++j) keys[j] = hn::LoadU(d, k + j * stride + at);
      for (int i = 0; i < kCount; ++i) {
        const V value = hn::LoadU(d, q + i * stride + at);
        for (int j = 0; j < kVectorBlock; ++j) {
          sums[i][j] = hn::MulAdd(value, keys[j], sums[i][j]);
        }
      }
    }
    for (int i = 0; i < kCount; ++i) {
      for (int j = 0; j < kVectorBlock; ++j) {
        store_quad(d, sums[i][j],
                   scores_ + static_cast<int64_t>(query + i) * kTilePositions + 4 * (quad + j));
      }
    }
  }

  static float exponential_of(float x) { return hn::GetLane(exponential(D(), hn::Set(D(), x))); }

  // Online softmax: turns scores into weights relative to the new maximum.
  void weigh(int32_t query, uint64_t mask) {
    if (mask == 0) return;
    const D d;
    float* const scores = scores_ + static_cast<int64_t>(query) * kTilePositions;
    const V scale = hn::Set(d, args_.scale);
    V most = hn::Set(d, kLowest);
    for (int32_t i = 0; i < kTilePositions; i += kLanes) {
      const V score = hn::IfThenElse(lanes_of(mask >> i), hn::Mul(hn::LoadU(d, scores + i), scale),
                                     hn::Set(d, kLowest));
      hn::StoreU(score, d, scores + i);
      most = hn::Max(most, score);
    }
    const float top = std::max(tops_[query], hn::GetLane(hn::MaxOfLanes(d, most)));
    const float shrink = exponential_of(tops_[query] - top);
    V norm = hn::Zero(d);
    for (int32_t i = 0; i < kTilePositions; i += kLanes) {
      const V weight = hn::IfThenElseZero(
          lanes_of(mask >> i), exponential(d, hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, top))));
      hn::StoreU(weight, d, scores + i);
      norm = hn::Add(norm, weight);
    }
    norms_[query] = norms_[query] * shrink + hn::GetLane(hn::SumOfLanes(d, norm));
    tops_[query] = top;
    shrink_sums(query, shrink);
  }

  static hn::Mask<D> lanes_of(uint64_t mask) {
    uint8_t bits[8];
    std::memcpy(bits, &mask, sizeof(bits));
    return hn::LoadMaskBits(D(), bits);
  }

  void shrink_sums(int32_t query, float factor) {
    if (factor == 1.0F) return;
    const D d;
    float* const sums = sums_ + static_cast<int64_t>(query) * size_;
    for (int32_t i = 0; i < size_; i += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, sums + i), hn::Set(d, factor)), d, sums + i);
    }
  }

  void add_values(int32_t begin, int32_t end, uint64_t mask) {
    int32_t query = begin;
    for (; query + kQueryBlock <= end; query += kQueryBlock) add_to<kQueryBlock>(query, mask);
    for (; query < end; ++query) add_to<1>(query, mask);
  }

  template <int kCount>
  void add_to(int32_t query, uint64_t mask) {
    int32_t i = 0;
    for (; i + kVectorBlock * kLanes <= size_; i += kVectorBlock * kLanes) {
      add_block<kCount, kVectorBlock>(query, i, mask);
    }
    for (; i < size_; i += kLanes) add_block<kCount, 1>(query, i, mask);
  }

  template <int kCount, int kVectors>
  void add_block(int32_t query, int32_t at, uint64_t mask) {
    const D d;
    V sums[kCount][kVectors];
    float* const to = sums_ + static_cast<int64_t>(query) * size_ + at;
    const float* const weights = scores_ + static_cast<int64_t>(query) * kTilePositions;
    for (int i = 0; i < kCount; ++i) {
      for (int j = 0; j < kVectors; ++j) sums[i][j] = hn::LoadU(d, to + i * size_ + j * kLanes);
    }
    for (; mask != 0; mask &= mask - 1) {
      const int32_t lane = std::countr_zero(mask);
      const float* const from = values_ + static_cast<int64_t>(lane) * size_ + at;
      V values[kVectors];
      for (int j = 0; j < kVectors; ++j) values[j] = hn::LoadU(d, from + j * kLanes);
      for (int i = 0; i < kCount; ++i) {
        const V weight = hn::Set(d, weights[i * kTilePositions + lane]);
        for (int j = 0; j < kVectors; ++j) {
          sums[i][j] = hn::MulAdd(weight, values[j], sums[i][j]);
        }
      }
    }
    for (int i = 0; i < kCount; ++i) {
      for (int j = 0; j < kVectors; ++j) hn::StoreU(sums[i][j], d, to + i * size_ + j * kLanes);
    }
  }

  // Its score is zero and so is its value.
  void add_zero_key(int32_t row) {
    for (int32_t query = row * heads_; query < (row + 1) * heads_; ++query) {
      const float top = std::max(tops_[query], 0.0F);
      const float shrink = exponential_of(tops_[query] - top);
      norms_[query] = norms_[query] * shrink + exponential_of(-top);
      tops_[query] = top;
      shrink_sums(query, shrink);
    }
  }

  void write(int32_t row, int32_t head) const {
    const int32_t query = row * heads_ + head;
    const float* const sums = sums_ + static_cast<int64_t>(query) * size_;
    const float norm = norms_[query];
    float* const out = reinterpret_cast<float*>(args_.out) + head_of(row, head) * size_;
    // NaN is not nothing: it must reach the output.
    const bool seen = norm != 0.0F;
    for (int32_t i = 0; i < size_; ++i) out[i] = seen ? sums[i] / norm : 0.0F;
    if (args_.log_sum_exp != nullptr) {
      args_.log_sum_exp[head_of(row, head)] = seen ? tops_[query] + std::log(norm) : kLowest;
    }
  }

  const AttentionArgs& args_;
  const AttentionSegment& segment_;
  const int32_t row_begin_;
  const int32_t rows_;
  const int32_t size_;
  const int32_t heads_;  // query heads of the KV head
  const int32_t first_head_;
  const int32_t queries_;  // rows by heads
  TileWalk walk_;
  float* const keys_;
  float* const values_;
  float* const spread_;
  float* const sums_;
  float* const scores_;
  std::vector<RowView> views_;
  std::vector<uint64_t> masks_;
  std::vector<float> tops_;
  std::vector<float> norms_;
};

void RunTask(const AttentionTask& task) {
  if (task.args->layout.dtype == DType::kFloat32) {
    RowGroup<float>(task).run();
  } else {
    RowGroup<uint16_t>(task).run();
  }
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace lckv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lckv {
namespace {

HWY_EXPORT(RunTask);

constexpr double kNanosecondsPerProduct = 0.1;  // of one thread

int64_t products(const AttentionArgs& args) {
  int64_t total = 0;
  for (const AttentionSegment& segment : args.segments) {
    total += static_cast<int64_t>(segment.row_end - segment.row_begin) *
             (segment.num_slots + segment.num_staged);
  }
  return total * args.num_heads * args.layout.head_dim;
}

// Neighbouring tasks read the same keys and values.
std::vector<AttentionTask> tasks_of(const AttentionArgs& args) {
  const int32_t together = rows_together(args);
  std::vector<AttentionTask> tasks;
  for (const AttentionSegment& segment : args.segments) {
    for (int32_t kv_head = 0; kv_head < args.layout.kv_heads; ++kv_head) {
      for (int32_t row = segment.row_begin; row < segment.row_end; row += together) {
        tasks.push_back({.args = &args,
                         .segment = &segment,
                         .row_begin = row,
                         .row_end = std::min(row + together, segment.row_end),
                         .kv_head = kv_head});
      }
    }
  }
  return tasks;
}

}  // namespace

void CpuAttention::run(const AttentionArgs& args) {
  LCKV_CHECK(args.layout.dtype != DType::kFloat16);
  LCKV_CHECK(args.layout.head_dim % 16 == 0 && args.layout.kv_heads > 0);
  LCKV_CHECK(args.num_heads % args.layout.kv_heads == 0);
  const std::vector<AttentionTask> tasks = tasks_of(args);
  const int64_t floats = task_floats(args);
  const auto count = static_cast<int64_t>(tasks.size());
  const size_t bytes = static_cast<size_t>(floats * threads_.count()) * sizeof(float);
  if (scratch_ == nullptr || scratch_->bytes() < bytes) {
    scratch_ = std::make_unique<AnonymousMemory>(bytes);
  }
  auto* const scratch = reinterpret_cast<float*>(scratch_->data());
  threads_.share(count, kNanosecondsPerProduct * static_cast<double>(products(args)),
                 [&](int64_t begin, int64_t end, int thread) {
                   for (int64_t i = begin; i < end; ++i) {
                     AttentionTask task = tasks[i];
                     task.scratch = scratch + thread * floats;
                     HWY_DYNAMIC_DISPATCH(RunTask)(task);
                   }
                 });
}

}  // namespace lckv
#endif  // HWY_ONCE
