// One task computes all query heads of one KV head for one row: keys and values are loaded once for the
// group. History is reduced in tiles of 64 positions counted from position 0, whatever blocks or staged
// rows hold them, so the order of every sum is a function of the row's position and window alone.
#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lckv {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Head sizes are multiples of 16 and tiles of 64: no vector has a tail.
using D = hn::CappedTag<float, 16>;
constexpr int32_t kLanes = static_cast<int32_t>(hn::MaxLanes(D()));
constexpr int32_t kTile = 64;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

HWY_INLINE hn::Vec<D> load_values(const float* from) { return hn::LoadU(D(), from); }
HWY_INLINE hn::Vec<D> load_values(const uint16_t* from) {
  const hn::Rebind<uint16_t, D> narrow;
  const hn::RebindToUnsigned<D> wide;
  return hn::BitCast(D(), hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(narrow, from))));
}

template <class Value>
class RowTask {
 public:
  RowTask(const AttentionArgs& args, const AttentionSegment& segment, int32_t row,
          int32_t kv_head)
      : args_(args),
        segment_(segment),
        kv_head_(kv_head),
        size_(args.layout.head_dim),
        group_(args.num_heads / args.layout.kv_heads),
        first_head_(static_cast<int64_t>(row) * args.num_heads + kv_head * group_),
        q_(args.q + first_head_ * size_) {
    std::fill_n(&sums_[0][0], group_ * kMaxHeadDim, 0.0F);
    std::fill_n(norms_, group_, 0.0F);
    std::fill_n(tops_, group_, kLowest);
  }

  void run(int32_t position, bool official) {
    int32_t end = args_.strict ? position : position + 1;
    if (official && end > 0) {
      --end;  // the newest is dropped, a zero key with a zero value joins
      std::fill_n(norms_, group_, 1.0F);
      std::fill_n(tops_, group_, 0.0F);
    }
    const int32_t begin = args_.window > 0 ? std::max(0, position - args_.window + 1) : 0;
    const int32_t sinks = std::min(args_.num_sinks, begin);
    visit(0, std::min(sinks, end));
    visit(begin, end);
    flush();
    write();
  }

 private:
  // Positions [begin, end) of slots, then of staged rows.
  void visit(int32_t begin, int32_t end) {
    if (begin >= end) return;
    const KvLayout& layout = args_.layout;
    const int32_t* const slots = segment_.slot_positions;
    const int64_t width = static_cast<int64_t>(layout.kv_heads) * size_;
    const int64_t values = width * layout.slots_per_block;
    for (const int32_t* at = std::lower_bound(slots, slots + segment_.num_slots, begin);
         at != slots + segment_.num_slots && *at < end; ++at) {
      const auto i = static_cast<int32_t>(at - slots);
      const auto* const base = reinterpret_cast<const Value*>(
          layout.base + segment_.blocks[i / layout.slots_per_block] * layout.block_bytes);
      const int64_t offset =
          (static_cast<int64_t>(kv_head_) * layout.slots_per_block + i % layout.slots_per_block) *
          size_;
      add(*at, base + offset, base + values + offset);
    }
    const int32_t* const staged = segment_.staged_positions;
    for (const int32_t* at = std::lower_bound(staged, staged + segment_.num_staged, begin);
         at != staged + segment_.num_staged && *at < end; ++at) {
      const int64_t offset =
          segment_.staged_rows[at - staged] * width + static_cast<int64_t>(kv_head_) * size_;
      add(*at, reinterpret_cast<const Value*>(args_.staged.k) + offset,
          reinterpret_cast<const Value*>(args_.staged.v) + offset);
    }
  }

  void add(int32_t position, const Value* key, const Value* value) {
    if (position / kTile != tile_) {
      flush();
      tile_ = position / kTile;
      for (int32_t head = 0; head < group_; ++head) std::fill_n(scores_[head], kTile, kLowest);
      std::fill_n(values_, kTile, nullptr);
    }
    const int32_t lane = position % kTile;
    values_[lane] = value;
    score(lane, key);
  }

  void score(int32_t lane, const Value* key) {
    const D d;
    hn::Vec<D> parts[kMaxHeadDim / kLanes];
    for (int32_t i = 0; i < size_ / kLanes; ++i) parts[i] = load_values(key + i * kLanes);
    for (int32_t head = 0; head < group_; ++head) {
      const float* const q = q_ + static_cast<int64_t>(head) * size_;
      auto sum = hn::Zero(d);
      for (int32_t i = 0; i < size_ / kLanes; ++i) {
        sum = hn::MulAdd(parts[i], hn::LoadU(d, q + i * kLanes), sum);
      }
      scores_[head][lane] = hn::GetLane(hn::SumOfLanes(d, sum)) * args_.scale;
    }
  }

  // Online softmax: takes the tile into the running maximum, norm and sum.
  void flush() {
    if (tile_ < 0) return;
    const D d;
    for (int32_t head = 0; head < group_; ++head) {
      float* const scores = scores_[head];
      auto most = hn::Set(d, kLowest);
      for (int32_t i = 0; i < kTile; i += kLanes) most = hn::Max(most, hn::Load(d, scores + i));
      const float top = std::max(tops_[head], hn::GetLane(hn::MaxOfLanes(d, most)));
      const float shrink = hn::GetLane(hn::Exp(d, hn::Set(d, tops_[head] - top)));
      auto norm = hn::Zero(d);
      for (int32_t i = 0; i < kTile; i += kLanes) {
        const auto logits = hn::Load(d, scores + i);
        const auto weights = hn::IfThenElseZero(hn::Gt(logits, hn::Set(d, kLowest)),
                                                hn::Exp(d, hn::Sub(logits, hn::Set(d, top))));
        hn::Store(weights, d, scores + i);
        norm = hn::Add(norm, weights);
      }
      norms_[head] = norms_[head] * shrink + hn::GetLane(hn::SumOfLanes(d, norm));
      tops_[head] = top;
      if (shrink != 1.0F) scale_sum(head, shrink);
    }
    add_values();
    tile_ = -1;
  }

  void scale_sum(int32_t head, float factor) {
    const D d;
    for (int32_t i = 0; i < size_; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, sums_[head] + i), hn::Set(d, factor)), d, sums_[head] + i);
    }
  }

  void add_values() {
    const D d;
    for (int32_t lane = 0; lane < kTile; ++lane) {
      if (values_[lane] == nullptr) continue;
      hn::Vec<D> parts[kMaxHeadDim / kLanes];
      for (int32_t i = 0; i < size_ / kLanes; ++i) {
        parts[i] = load_values(values_[lane] + i * kLanes);
      }
      for (int32_t head = 0; head < group_; ++head) {
        const auto weight = hn::Set(d, scores_[head][lane]);
        for (int32_t i = 0; i < size_ / kLanes; ++i) {
          float* const sum = sums_[head] + i * kLanes;
          hn::Store(hn::MulAdd(weight, parts[i], hn::Load(d, sum)), d, sum);
        }
      }
    }
  }

  void write() const {
    for (int32_t head = 0; head < group_; ++head) {
      float* const out = args_.out + (first_head_ + head) * size_;
      const bool seen = norms_[head] > 0.0F;
      for (int32_t i = 0; i < size_; ++i) out[i] = seen ? sums_[head][i] / norms_[head] : 0.0F;
      if (args_.log_sum_exp != nullptr) {
        args_.log_sum_exp[first_head_ + head] =
            seen ? tops_[head] + std::log(norms_[head]) : kLowest;
      }
    }
  }

  const AttentionArgs& args_;
  const AttentionSegment& segment_;
  const int32_t kv_head_;
  const int32_t size_;
  const int32_t group_;
  const int64_t first_head_;  // among all rows' heads
  const float* const q_;
  int32_t tile_ = -1;
  alignas(64) float scores_[kMaxGroupHeads][kTile];  // logits, then weights
  alignas(64) float sums_[kMaxGroupHeads][kMaxHeadDim];
  const Value* values_[kTile];
  float norms_[kMaxGroupHeads];
  float tops_[kMaxGroupHeads];
};

void RunTask(const AttentionArgs& args, const AttentionSegment& segment, int32_t row,
             int32_t kv_head) {
  const bool official = args.official_decode != nullptr && args.official_decode[row] != 0;
  if (args.layout.dtype == DType::kFloat32) {
    RowTask<float>(args, segment, row, kv_head).run(args.positions[row], official);
  } else {
    RowTask<uint16_t>(args, segment, row, kv_head).run(args.positions[row], official);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lckv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lckv {

HWY_EXPORT(RunTask);

void cpu_attention(const AttentionArgs& args) {
  LCKV_CHECK(args.layout.dtype != DType::kFloat16);
  LCKV_CHECK(args.layout.head_dim % 16 == 0 && args.layout.head_dim <= kMaxHeadDim);
  LCKV_CHECK(args.num_heads % args.layout.kv_heads == 0);
  LCKV_CHECK(args.num_heads / args.layout.kv_heads <= kMaxGroupHeads);
  const int32_t kv_heads = args.layout.kv_heads;
  int32_t num_rows = 0;
  for (const AttentionSegment& segment : args.segments) {
    num_rows += segment.row_end - segment.row_begin;
  }
  std::vector<const AttentionSegment*> segment_of;
  std::vector<int32_t> rows;
  segment_of.reserve(num_rows);
  rows.reserve(num_rows);
  for (const AttentionSegment& segment : args.segments) {
    for (int32_t row = segment.row_begin; row < segment.row_end; ++row) {
      segment_of.push_back(&segment);
      rows.push_back(row);
    }
  }
#pragma omp parallel for schedule(dynamic, 4) if (num_rows * kv_heads > 1)
  for (int32_t task = 0; task < num_rows * kv_heads; ++task) {
    HWY_DYNAMIC_DISPATCH(RunTask)
    (args, *segment_of[task / kv_heads], rows[task / kv_heads], task % kv_heads);
  }
}

}  // namespace lckv
#endif  // HWY_ONCE
