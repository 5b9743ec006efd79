#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_scalar.cuh"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// Adds up the shares of one query's split history in their order.
class Merge {
 public:
  // Of a share, relative to the top of all; nothing of one that saw nothing.
  struct Weight {
    float norm;
    float factor;
  };
  using Weights = Weight[kAttentionThreads];  // of neighbouring pieces

  // `first_share`: of the first piece; the next one's lies `stride` behind it.
  __device__ Merge(const DeviceAttention& args, int32_t num_pieces, int64_t first_share,
                   int64_t stride, Weights& weights)
      : args_(args),
        num_pieces_(num_pieces),
        first_share_(first_share),
        stride_(stride),
        element_stride_(stride * args.layout.head_dim),
        thread_(static_cast<int32_t>(threadIdx.x)),
        weights_(weights) {
    float top = kNothing;
    for (int32_t i = thread_; i < num_pieces_; i += kAttentionThreads) {
      if (const float2 own = top_and_norm(i); own.y != 0.0F) top = fmaxf(top, own.x);
    }
    top_ = block_max<kAttentionThreads>(top);
  }

  // What the thread has of an element; all threads are to ask, also those that have none. A share
  // that saw nothing is passed over, so that one alone, alone or among empty ones, keeps its bits.
  struct Sums {
    float top;
    float norm;
    float element;
  };
  __device__ Sums sums(int32_t at) {
    Sums sums{top_, 0.0F, 0.0F};
    const int32_t head_dim = args_.layout.head_dim;
    const float* element =
        args_.partial_sums + first_share_ * head_dim + (at < head_dim ? at : head_dim - 1);
    for (int32_t begin = 0; begin < num_pieces_; begin += kAttentionThreads) {
      weigh(begin + thread_);
      const int32_t left = num_pieces_ - begin;
      const int32_t count = left < kAttentionThreads ? left : kAttentionThreads;
      int32_t i = 0;
      for (; i + kAtOnce <= count; i += kAtOnce, element += kAtOnce * element_stride_) {
        add<kAtOnce>(weights_ + i, element, sums);
      }
      for (; i < count; ++i, element += element_stride_) add<1>(weights_ + i, element, sums);
    }
    return sums;
  }

 private:
  // Elements that a thread asks for before it uses the first of them.
  static constexpr int kAtOnce = 8;

  __device__ int64_t share(int32_t piece) const { return first_share_ + piece * stride_; }
  __device__ float2 top_and_norm(int32_t piece) const {
    return reinterpret_cast<const float2*>(args_.partial_norms)[share(piece)];
  }

  __device__ void weigh(int32_t piece) {
    __syncthreads();  // all are done with what is overwritten
    if (piece < num_pieces_) {
      const float2 own = top_and_norm(piece);
      weights_[thread_] = own.y != 0.0F ? Weight{own.y, expf(own.x - top_)} : Weight{};
    }
    __syncthreads();
  }

  // `element`: of the first share.
  template <int kCount>
  __device__ void add(const Weight* weights, const float* element, Sums& sums) const {
    float elements[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) elements[i] = element[i * element_stride_];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool saw = weights[i].norm != 0.0F;
      sums.norm = fmaf(weights[i].norm, weights[i].factor, sums.norm);
      sums.element = fmaf(saw ? elements[i] : 0.0F, weights[i].factor, sums.element);
    }
  }

  const DeviceAttention& args_;
  const int32_t num_pieces_;
  const int64_t first_share_;
  const int64_t stride_;
  const int64_t element_stride_;
  const int32_t thread_;
  float top_;
  Weights& weights_;
};

// Grid: merges by (KV heads and chunks) by heads of a row in one block.
template <class Value>
__global__ void __launch_bounds__(kAttentionThreads) merge_kernel(const DeviceAttention args) {
  __shared__ Merge::Weights weights;
  const MergeItem item = args.merges[blockIdx.x];
  const BlockQueries queries(args, item.row_begin, item.num_rows);
  const int32_t head_dim = args.layout.head_dim;
  for (auto query = static_cast<int32_t>(blockIdx.z); queries.contains(query);
       query += static_cast<int32_t>(gridDim.z)) {
    const int64_t first = queries.share(item.first_partial, query);
    const int64_t stride = queries.share(item.first_partial + item.num_rows, query) - first;
    Merge merge(args, item.num_pieces, first, stride, weights);
    const int64_t head_row = queries.head_row(args, query);
    for (int32_t begin = 0; begin < head_dim; begin += kAttentionThreads) {
      const auto at = begin + static_cast<int32_t>(threadIdx.x);
      const Merge::Sums sums = merge.sums(at);
      const QueryTotal total(args.seen[queries.row(query)], sums.top, sums.norm);
      if (at < head_dim) {
        reinterpret_cast<Value*>(args.out)[head_row * head_dim + at] =
            narrowed<Value>(total.element(sums.element));
      }
      if (at == 0 && args.log_sum_exp != nullptr) args.log_sum_exp[head_row] = total.log_sum_exp();
    }
  }
}

AttentionLaunch scalar_attention(int32_t head_dim, bool has_window) {
  return with_head_dim(head_dim, [=](auto size) -> AttentionLaunch {
    return {.kernel = has_window ? scalar_attention_kernel<size, WindowMask>
                                 : scalar_attention_kernel<size, CausalMask>};
  });
}

AttentionLaunch attention_over(DType dtype, int32_t head_dim, bool has_window) {
  switch (dtype) {
    case DType::kBFloat16:
      return tensor_attention<BFloat16>(head_dim, has_window);
    case DType::kFloat16:
      return tensor_attention<Float16>(head_dim, has_window);
    case DType::kFloat32:
      break;
  }
  return scalar_attention(head_dim, has_window);
}

// Where arrays lie that follow each other, each in its room.
class Offsets {
 public:
  template <class Value>
  size_t next(size_t count) {
    return std::exchange(offset_, offset_ + array_bytes<Value>(count));
  }

 private:
  size_t offset_ = 0;
};

template <class Value>
void write_array(const std::vector<Value>& values, size_t room, std::byte* to) {
  LCKV_CHECK(values.size() <= room);
  auto* const array = reinterpret_cast<Value*>(to);
  std::fill(std::copy(values.begin(), values.end(), array), array + room, Value{});
}

// Whether a plan for one is a plan for the other, while no array changes.
bool share_plan(const AttentionArgs& left, const AttentionArgs& right) {
  const auto cut = [](const AttentionArgs& args) {
    return std::tuple(args.segments.data(), args.segments.size(), args.positions,
                      args.official_decode, args.num_heads, args.strict, args.window,
                      args.num_sinks, args.layout.slots_per_block, args.layout.kv_heads,
                      args.layout.head_dim, args.layout.dtype);
  };
  return cut(left) == cut(right);
}

}  // namespace

void write_plan(const AttentionPlan& plan, const PlanRoom& room, std::byte* to) {
  const PlanSize& size = room.size;
  Offsets at;
  write_array(plan.blocks, size.blocks, to + at.next<int32_t>(size.blocks));
  write_array(plan.staged_rows, size.staged_rows, to + at.next<int32_t>(size.staged_rows));
  write_array(plan.runs, size.runs, to + at.next<HistoryRun>(size.runs));
  write_array(plan.segments, size.segments, to + at.next<SegmentPlan>(size.segments));
  write_array(plan.seen, size.seen, to + at.next<SeenRange>(size.seen));
  write_array(plan.items, size.items, to + at.next<AttentionItem>(size.items));
  write_array(plan.merges, size.merges, to + at.next<MergeItem>(size.merges));
}

// A plan on the device.
struct CudaAttention::SentPlan {
  DeviceAttention device;  // of the call that it was made for
  unsigned num_items = 0;
  unsigned num_merges = 0;
  int32_t num_partials = 0;
};

struct CudaAttention::SentPlans {
  AttentionArgs args;  // of the call that they were made for
  std::vector<SentPlan> plans;
  uint64_t when = 0;
};

CudaAttention::CudaAttention(const AttentionPlanOptions& options, UploadRing& uploads,
                             cudaStream_t stream)
    : options_(options),
      uploads_(uploads),
      stream_(stream),
      shares_(std::make_unique<CudaBuffer>(options.max_share_bytes, stream, Cleared::kNo)) {
  // The first history that is split may be one of a batch that is being recorded, and whether a
  // kernel can be loaded then is nowhere said.
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    with_values(dtype, [](auto value) {
      cudaFuncAttributes attributes;
      check_cuda(cudaFuncGetAttributes(&attributes, merge_kernel<decltype(value)>),
                 "loading a kernel");
    });
  }
}

CudaAttention::~CudaAttention() = default;

void CudaAttention::begin_batch(std::span<const PlacedPlan> placed) {
  in_batch_ = true;
  is_placed_ = !placed.empty();
  for (const PlacedPlan& plan : placed) {
    sent_.push_back({.args = plan.args, .plans = {place(plan.args, plan.room, plan.at, 0)}});
  }
}

void CudaAttention::end_batch() {
  in_batch_ = false;
  is_placed_ = false;
  sent_.clear();
}

std::vector<AttentionArgs> CudaAttention::planned() const {
  std::vector<AttentionArgs> all;
  for (const SentPlans& sent : sent_) {
    const bool is_new = std::none_of(all.begin(), all.end(), [&](const AttentionArgs& other) {
      return share_plan(other, sent.args);
    });
    if (is_new) all.push_back(sent.args);
  }
  return all;
}

std::optional<AttentionPlan> CudaAttention::plan_alone(const AttentionArgs& args) const {
  std::vector<AttentionPlan> plans = plan_attention(args, options_);
  if (plans.size() != 1 || plans.front().first_row != 0) return std::nullopt;
  return std::move(plans.front());
}

bool CudaAttention::has_shares(const AttentionArgs& args, const PlanRoom& room) const {
  return static_cast<size_t>(room.num_partials) * share_bytes(args) <= shares_->bytes();
}

const CudaAttention::SentPlans* CudaAttention::find_sent(const AttentionArgs& args) const {
  const auto found = std::find_if(sent_.begin(), sent_.end(), [&](const SentPlans& sent) {
    return share_plan(sent.args, args) && (is_placed_ || uploads_.has_since(sent.when));
  });
  return found == sent_.end() ? nullptr : &*found;
}

void CudaAttention::run(const AttentionArgs& args) {
  if (const SentPlans* const sent = find_sent(args)) {
    for (const SentPlan& plan : sent->plans) launch_plan(args, plan);
    return;
  }
  LCKV_CHECK(!is_placed_);
  SentPlans sent{.args = args, .when = uploads_.now()};
  for (const AttentionPlan& plan : plan_attention(args, options_)) {
    const PlanRoom room{plan.size(), plan.num_partials};
    write_plan(plan, room, uploads_.take(room.size.bytes()));
    sent.plans.push_back(place(args, room, uploads_.send(), plan.first_row));
    launch_plan(args, sent.plans.back());
  }
  if (in_batch_) sent_.push_back(std::move(sent));
}

CudaAttention::SentPlan CudaAttention::place(const AttentionArgs& args, const PlanRoom& room,
                                             const std::byte* at, int32_t first_row) {
  const PlanSize& size = room.size;
  SentPlan sent{.device = {.num_heads = args.num_heads, .shape = query_shape(args)},
                .num_items = static_cast<unsigned>(size.items),
                .num_merges = static_cast<unsigned>(size.merges),
                .num_partials = room.num_partials};
  Offsets offsets;
  const auto next = [&]<class Value>(const Value*& array, size_t count) {
    array = reinterpret_cast<const Value*>(at + offsets.next<Value>(count));
  };
  next(sent.device.blocks, size.blocks);
  next(sent.device.staged_rows, size.staged_rows);
  next(sent.device.runs, size.runs);
  next(sent.device.segments, size.segments);
  next(sent.device.seen, size.seen);
  sent.device.seen -= first_row;  // rows are counted over the whole call
  next(sent.device.items, size.items);
  next(sent.device.merges, size.merges);
  return sent;
}

void CudaAttention::launch_plan(const AttentionArgs& args, const SentPlan& plan) {
  const KvLayout& layout = args.layout;
  LCKV_CHECK(layout.kv_heads > 0 && args.num_heads % layout.kv_heads == 0);
  const AttentionLaunch attention = attention_over(layout.dtype, layout.head_dim, args.window > 0);
  LCKV_CHECK(attention.kernel != nullptr);
  const size_t bytes = static_cast<size_t>(plan.num_partials) * share_bytes(args);
  grow(shares_, bytes, stream_);  // only where one row's are more than there is
  DeviceAttention device = plan.device;
  device.q = args.q;
  device.out = args.out;
  device.log_sum_exp = args.log_sum_exp;
  device.scale = args.scale;
  device.layout = layout;
  device.staged = args.staged;
  device.partial_sums = shares_->floats();
  device.partial_norms =
      device.partial_sums + bytes / sizeof(float) / (layout.head_dim + 2) * layout.head_dim;
  const auto across = static_cast<unsigned>(layout.kv_heads * device.shape.chunks);
  const auto heads = static_cast<unsigned>(device.shape.heads);
  launch("attention", stream_,
         {.grid = dim3(plan.num_items, across),
          .threads = attention.threads,
          .shared_bytes = attention.shared_bytes},
         attention.kernel, device);
  with_values(layout.dtype, [&](auto value) {
    launch("merging attention", stream_,
           {.grid = dim3(plan.num_merges, across, heads), .threads = kAttentionThreads},
           merge_kernel<decltype(value)>, device);
  });
}

}  // namespace lckv
