#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_scalar.cuh"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// Adds up the shares of a split history in its order. A share that saw nothing is passed over, so
// that one share alone, alone or among empty ones, keeps its bits. Grid: merges by (KV heads and
// chunks) by queries.
__global__ void merge_kernel(const DeviceAttention args) {
  const MergeItem item = args.merges[blockIdx.x];
  const BlockQueries queries(args, item.row_begin, item.num_rows);
  const auto query = static_cast<int32_t>(blockIdx.z);
  if (!queries.contains(query)) return;
  const auto share = [&](int32_t piece) {
    return queries.share(item.first_partial + piece * item.num_rows, query);
  };
  float top = kNothing;
  for (int32_t i = 0; i < item.num_pieces; ++i) {
    if (args.partial_norms[2 * share(i) + 1] != 0.0F) {
      top = fmaxf(top, args.partial_norms[2 * share(i)]);
    }
  }
  const int64_t head_row = queries.head_row(args, query);
  const int32_t head_dim = args.layout.head_dim;
  for (auto at = static_cast<int32_t>(threadIdx.x); at < head_dim; at += kAttentionThreads) {
    float sum = 0.0F;
    float norm = 0.0F;
    for (int32_t i = 0; i < item.num_pieces; ++i) {
      const float own = args.partial_norms[2 * share(i) + 1];
      if (own == 0.0F) continue;
      const float factor = expf(args.partial_norms[2 * share(i)] - top);
      norm = fmaf(own, factor, norm);
      sum = fmaf(args.partial_sums[share(i) * head_dim + at], factor, sum);
    }
    const QueryTotal total(args.seen[queries.row(query)], top, norm);
    args.out[head_row * head_dim + at] = total.element(sum);
    if (at == 0 && args.log_sum_exp != nullptr) {
      args.log_sum_exp[head_row] = total.log_sum_exp();
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

// Copies arrays one after the other.
class Packer {
 public:
  explicit Packer(std::byte* to) : to_(to) {}
  template <class Value>
  size_t add(const std::vector<Value>& values) {
    const size_t offset = offset_;
    if (!values.empty()) {
      std::memcpy(to_ + offset, values.data(), values.size() * sizeof(Value));
    }
    offset_ += array_bytes<Value>(values.size());
    return offset;
  }

 private:
  std::byte* const to_;
  size_t offset_ = 0;
};

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
      shares_(std::make_unique<CudaBuffer>(options.max_share_bytes, stream, Cleared::kNo)) {}

CudaAttention::~CudaAttention() = default;

void CudaAttention::end_batch() {
  in_batch_ = false;
  sent_.clear();
}

const CudaAttention::SentPlans* CudaAttention::find_sent(const AttentionArgs& args) const {
  const auto found = std::find_if(sent_.begin(), sent_.end(), [&](const SentPlans& sent) {
    return share_plan(sent.args, args) && uploads_.has_since(sent.when);
  });
  return found == sent_.end() ? nullptr : &*found;
}

void CudaAttention::run(const AttentionArgs& args) {
  if (const SentPlans* const sent = find_sent(args)) {
    for (const SentPlan& plan : sent->plans) launch_plan(args, plan);
    return;
  }
  SentPlans sent{.args = args, .when = uploads_.now()};
  for (const AttentionPlan& plan : plan_attention(args, options_)) {
    sent.plans.push_back(send(args, plan));
    launch_plan(args, sent.plans.back());
  }
  if (in_batch_) sent_.push_back(std::move(sent));
}

CudaAttention::SentPlan CudaAttention::send(const AttentionArgs& args, const AttentionPlan& plan) {
  Packer packer(uploads_.take(plan.upload_bytes()));
  const size_t blocks = packer.add(plan.blocks);
  const size_t staged_rows = packer.add(plan.staged_rows);
  const size_t runs = packer.add(plan.runs);
  const size_t segments = packer.add(plan.segments);
  const size_t seen = packer.add(plan.seen);
  const size_t items = packer.add(plan.items);
  const size_t merges = packer.add(plan.merges);
  const std::byte* const base = uploads_.send();
  SentPlan sent{.device = {.num_heads = args.num_heads, .shape = query_shape(args)},
                .num_items = static_cast<unsigned>(plan.items.size()),
                .num_merges = static_cast<unsigned>(plan.merges.size()),
                .num_partials = plan.num_partials};
  sent.device.blocks = reinterpret_cast<const int32_t*>(base + blocks);
  sent.device.staged_rows = reinterpret_cast<const int32_t*>(base + staged_rows);
  sent.device.runs = reinterpret_cast<const HistoryRun*>(base + runs);
  sent.device.segments = reinterpret_cast<const SegmentPlan*>(base + segments);
  // Rows are counted over the whole call.
  sent.device.seen = reinterpret_cast<const SeenRange*>(base + seen) - plan.first_row;
  sent.device.items = reinterpret_cast<const AttentionItem*>(base + items);
  sent.device.merges = reinterpret_cast<const MergeItem*>(base + merges);
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
  const auto queries = static_cast<unsigned>(device.shape.rows * device.shape.heads);
  launch("attention", stream_,
         {.grid = dim3(plan.num_items, across),
          .threads = attention.threads,
          .shared_bytes = attention.shared_bytes},
         attention.kernel, device);
  launch("merging attention", stream_,
         {.grid = dim3(plan.num_merges, across, queries), .threads = kAttentionThreads},
         merge_kernel, device);
}

}  // namespace lckv
