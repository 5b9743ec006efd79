#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cstring>
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

// Fills in where the plan's arrays lie once they are on the device.
void upload_plan(const AttentionPlan& plan, UploadRing& uploads, DeviceAttention& args) {
  Packer packer(uploads.take(plan.upload_bytes()));
  const size_t blocks = packer.add(plan.blocks);
  const size_t staged_rows = packer.add(plan.staged_rows);
  const size_t runs = packer.add(plan.runs);
  const size_t segments = packer.add(plan.segments);
  const size_t seen = packer.add(plan.seen);
  const size_t items = packer.add(plan.items);
  const size_t merges = packer.add(plan.merges);
  const std::byte* const base = uploads.send();
  args.blocks = reinterpret_cast<const int32_t*>(base + blocks);
  args.staged_rows = reinterpret_cast<const int32_t*>(base + staged_rows);
  args.runs = reinterpret_cast<const HistoryRun*>(base + runs);
  args.segments = reinterpret_cast<const SegmentPlan*>(base + segments);
  // Rows are counted over the whole call.
  args.seen = reinterpret_cast<const SeenRange*>(base + seen) - plan.first_row;
  args.items = reinterpret_cast<const AttentionItem*>(base + items);
  args.merges = reinterpret_cast<const MergeItem*>(base + merges);
}

}  // namespace

CudaAttention::CudaAttention(const AttentionPlanOptions& options, UploadRing& uploads,
                             cudaStream_t stream)
    : options_(options),
      uploads_(uploads),
      stream_(stream),
      shares_(std::make_unique<CudaBuffer>(options.max_share_bytes, stream, Cleared::kNo)) {}

void CudaAttention::run(const AttentionArgs& args) {
  const KvLayout& layout = args.layout;
  LCKV_CHECK(layout.dtype != DType::kFloat16);
  LCKV_CHECK(layout.kv_heads > 0 && args.num_heads % layout.kv_heads == 0);
  const AttentionLaunch attention = layout.dtype == DType::kFloat32
                                        ? scalar_attention(layout.head_dim, args.window > 0)
                                        : tensor_attention(layout.head_dim, args.window > 0);
  LCKV_CHECK(attention.kernel != nullptr);
  DeviceAttention device{.q = args.q,
                         .out = args.out,
                         .log_sum_exp = args.log_sum_exp,
                         .num_heads = args.num_heads,
                         .scale = args.scale,
                         .shape = query_shape(args),
                         .layout = layout,
                         .staged = args.staged};
  const auto across = static_cast<unsigned>(layout.kv_heads * device.shape.chunks);
  const auto queries = static_cast<unsigned>(device.shape.rows * device.shape.heads);
  for (const AttentionPlan& plan : plan_attention(args, options_)) {
    upload_plan(plan, uploads_, device);
    const size_t bytes = static_cast<size_t>(plan.num_partials) * share_bytes(args);
    grow(shares_, bytes, stream_);  // only where one row's are more than there is
    device.partial_sums = shares_->floats();
    device.partial_norms =
        device.partial_sums + bytes / sizeof(float) / (layout.head_dim + 2) * layout.head_dim;
    launch("attention", stream_,
           {.grid = dim3(static_cast<unsigned>(plan.items.size()), across),
            .threads = attention.threads,
            .shared_bytes = attention.shared_bytes},
           attention.kernel, device);
    launch("merging attention", stream_,
           {.grid = dim3(static_cast<unsigned>(plan.merges.size()), across, queries),
            .threads = kAttentionThreads},
           merge_kernel, device);
  }
}

}  // namespace lckv
