#include "kernels/cpu/cpu_ops.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/bfloat16.h"
#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/kv_rows.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/onednn_product.h"
#include "kernels/cpu/products.h"
#include "kernels/mapped_table.h"
#include "kernels/rope_frequencies.h"
#include "kernels/sampling.h"
#include "kernels/weight_values.h"

namespace lckv {
namespace {

class CpuBuffer final : public DeviceBuffer {
 public:
  explicit CpuBuffer(size_t bytes) : memory_(bytes) {}
  std::byte* data() override { return memory_.data(); }
  size_t bytes() const override { return memory_.bytes(); }

 private:
  AnonymousMemory memory_;
};

// Of one thread. A draw takes the time to find the largest logit, and some ten times that where its
// temperature is not 0; so do log-probabilities.
constexpr double kNanosecondsPerFloat = 0.2;
constexpr double kNanosecondsPerLogit = 1.0;

class CpuOps final : public Ops {
 public:
  CpuOps(const CpuOpsOptions& options, int threads)
      : dtype_(options.dtype),
        threads_(threads),
        products_(options, threads_),
        attention_(threads_),
        numerics_("cpu " + products_.numerics() + ", vectors of " +
                  std::to_string(vector_lanes())) {}

  DType dtype() const override { return dtype_; }
  const char* numerics() const override { return numerics_.c_str(); }
  int32_t free_rows() const override { return products_.free_rows(); }

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    return std::make_unique<CpuBuffer>(bytes);
  }

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) override {
    return products_.pack(sources);
  }

  std::unique_ptr<EmbeddingTable> pack_table(const WeightSource& source,
                                             const PackedWeight*) override {
    return std::make_unique<MappedTable>(source);
  }

  std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) override {
    int64_t count = 0;
    for (const WeightSource& source : sources) count += source.n * source.k;
    auto buffer = allocate(static_cast<size_t>(count) * sizeof(float));
    float* to = buffer->floats();
    for (const WeightSource& source : sources) {
      for (int64_t i = 0; i < source.n * source.k; ++i) *to++ = weight_value(source, i);
    }
    return buffer;
  }

  void embed(const EmbeddingTable& table, std::span<const TokenId> tokens, int32_t first,
             float* out) override {
    const WeightSource& source = dynamic_cast<const MappedTable&>(table).source();
    for (size_t i = 0; i < tokens.size(); ++i) {
      float* const row = out + static_cast<int64_t>(i) * source.k;
      const int64_t from = id_of(tokens[i]) - first;
      if (from < 0 || from >= source.n) {
        std::fill_n(row, source.k, 0.0F);
        continue;
      }
      for (int64_t j = 0; j < source.k; ++j) row[j] = weight_value(source, from * source.k + j);
      if (dtype_ == DType::kBFloat16 && source.dtype != DType::kBFloat16) round_row(row, source.k);
    }
  }

  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden,
                std::byte* operand) override {
    auto* const out = reinterpret_cast<float*>(operand);
    share_rows(rows, hidden, [&](int64_t row) {
      rms_norm_row(x + row * hidden, weight, eps, hidden, out + row * hidden);
    });
  }

  void matmul(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
              const float* bias, bool accumulate) override {
    products_.multiply(weight, reinterpret_cast<const float*>(x), rows, y, bias, accumulate);
  }

  std::unique_ptr<DeviceBuffer> rope_table(const RopeOptions& options,
                                           int64_t max_positions) override {
    const std::vector<float> table = rope_cos_sin(options, max_positions);
    auto buffer = allocate(table.size() * sizeof(float));
    std::memcpy(buffer->data(), table.data(), table.size() * sizeof(float));
    return buffer;
  }

  void rope(float* x, int64_t row_stride, std::span<const int32_t> positions, int32_t heads,
            int32_t head_dim, DeviceBuffer& table) override {
    const int64_t half = head_dim / 2;
    const float* const cos = table.floats();
    const float* const sin = cos + table.bytes() / sizeof(float) / 2;
    const auto rows = static_cast<int64_t>(positions.size());
    share_rows(rows, int64_t{heads} * head_dim, [&](int64_t row) {
      const int64_t at = positions[row] * half;
      for (int32_t head = 0; head < heads; ++head) {
        rotate_row(x + row * row_stride + static_cast<int64_t>(head) * head_dim, cos + at, sin + at,
                   half);
      }
    });
  }

  void silu_mul(const float* gate_up, int64_t rows, int64_t inner, std::byte* operand) override {
    auto* const out = reinterpret_cast<float*>(operand);
    share_rows(rows, inner, [&](int64_t row) {
      const float* const gate = gate_up + row * 2 * inner;
      silu_mul_row(gate, gate + inner, inner, out + row * inner);
    });
  }

  void gather_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                   float* out) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      std::copy_n(x + ids[i] * hidden, hidden, out + static_cast<int64_t>(i) * hidden);
    }
  }

  void scatter_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                    float* out) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      std::copy_n(x + static_cast<int64_t>(i) * hidden, hidden, out + ids[i] * hidden);
    }
  }

  void stage_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged) override {
    stage_rows(k, v, row_stride, layout, ids, staged);
  }

  void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
               const KvRows& staged) override {
    zero_rows(layout, ids, staged);
  }

  void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) override {
    copy_rows(layout, ids, from, to);
  }

  void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                  const KvRows& read, KvDistance* out) override {
    for (const int32_t id : ids) *out++ = row_distance(layout, id, fresh, read);
  }

  void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    append_rows(k, v, row_stride, layout, blocks, slots);
  }

  void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    commit_rows(staged, ids, layout, blocks, slots);
  }

  void attention(const AttentionArgs& args) override { attention_.run(args); }

  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);  // empty arrays may have no address
  }
  void copy_columns(const float* from, int64_t from_stride, int64_t rows, int64_t width, float* to,
                    int64_t to_stride) override {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(from + row * from_stride, width, to + row * to_stride);
    }
  }

  void change_logits(float* logits, LogitChange change, std::span<const int32_t> ids,
                     std::span<const float> values) override {
    LCKV_CHECK(ids.size() == values.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      logits[ids[i]] = changed_logit(change, logits[ids[i]], values[i]);
    }
  }

  void logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) override {
    share_logits(rows.size(), vocabulary,
                 [&](int64_t row) { row_logprobs(rows[row], vocabulary); });
  }

  void sample(std::span<const SampleArgs> rows) override {
    if (rows.empty()) return;
    share_logits(rows.size(), rows[0].vocabulary,
                 [&](int64_t row) { *rows[row].drawn = draw_token(rows[row]); });
  }

 private:
  void share_rows(int64_t rows, int64_t width, absl::FunctionRef<void(int64_t row)> work) {
    share(rows, kNanosecondsPerFloat * static_cast<double>(rows * width), work);
  }
  void share_logits(size_t rows, int32_t vocabulary, absl::FunctionRef<void(int64_t row)> work) {
    const auto count = static_cast<int64_t>(rows);
    share(count, kNanosecondsPerLogit * static_cast<double>(count * vocabulary), work);
  }
  void share(int64_t rows, double nanoseconds, absl::FunctionRef<void(int64_t row)> work) {
    threads_.share(rows, nanoseconds, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) work(row);
    });
  }
  static void round_row(float* row, int64_t size) {
    for (int64_t i = 0; i < size; ++i) row[i] = bfloat16_to_float(float_to_bfloat16(row[i]));
  }

  const DType dtype_;
  CpuThreads threads_;
  CpuProducts products_;
  CpuAttention attention_;
  const std::string numerics_;
};

}  // namespace

std::unique_ptr<Ops> open_cpu_ops(const CpuOpsOptions& options) {
  LCKV_CHECK(options.dtype != DType::kFloat16);
  cap_onednn_instruction_set();
  return std::make_unique<CpuOps>(options,
                                  options.threads > 0 ? options.threads : omp_get_max_threads());
}

}  // namespace lckv
