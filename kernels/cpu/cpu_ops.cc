#include "kernels/cpu/cpu_ops.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/bfloat16.h"
#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/onednn_product.h"
#include "kernels/cpu/row_product.h"
#include "kernels/rope_frequencies.h"
#include "kernels/sampling.h"

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

class PanelWeight final : public PackedWeight {
 public:
  PanelWeight(int64_t n, int64_t k, size_t bytes) : n_(n), k_(k), memory_(bytes) {}
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  size_t bytes() const override { return memory_.bytes(); }
  std::byte* panels() const { return memory_.data(); }

 private:
  const int64_t n_;
  const int64_t k_;
  const AnonymousMemory memory_;
};

int64_t row_width(const KvLayout& layout) {
  return static_cast<int64_t>(layout.kv_heads) * layout.head_dim;
}

int64_t row_bytes(const KvLayout& layout) {
  return row_width(layout) * static_cast<int64_t>(dtype_bytes(layout.dtype));
}

void convert_row(const float* from, int64_t size, DType dtype, std::byte* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
  } else {
    float_to_bfloat16_row(from, size, reinterpret_cast<uint16_t*>(to));
  }
}

template <class Value>
float widen(Value value) {
  if constexpr (sizeof(Value) == 2) {
    return bfloat16_to_float(value);
  } else {
    return value;
  }
}

template <class Value>
void add_distance(const std::byte* fresh, const std::byte* read, int64_t size,
                  KvDistance& distance) {
  const auto* const now = reinterpret_cast<const Value*>(fresh);
  const auto* const before = reinterpret_cast<const Value*>(read);
  for (int64_t i = 0; i < size; ++i) {
    const float value = widen(now[i]);
    const float difference = value - widen(before[i]);
    distance.difference_squared += difference * difference;
    distance.norm_squared += value * value;
  }
}

// One thread's share of rows is worth starting the others for.
constexpr int64_t kParallelFloats = 16384;

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const CpuOpsOptions& options)
      : dtype_(options.dtype), reproducible_(options.reproducible) {
    LCKV_CHECK(dtype_ != DType::kFloat16);
    if (options.threads > 0) omp_set_num_threads(options.threads);
    const bool native = has_avx512_bf16();
    kernel_ = dtype_ == DType::kFloat32 ? multiply_float32
              : native                  ? multiply_bfloat16_avx512
                                        : multiply_bfloat16_wide;
    if (!reproducible_) onednn_ = std::make_unique<OnednnProducts>();
    numerics_ = reproducible_ ? "cpu rows" : "cpu onednn";
    numerics_ += dtype_ == DType::kFloat32 ? " float32" : native ? " avx512_bf16" : " wide";
    numerics_ += " lanes " + std::to_string(vector_lanes());
  }

  DType dtype() const override { return dtype_; }
  const char* numerics() const override { return numerics_.c_str(); }

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    return std::make_unique<CpuBuffer>(bytes);
  }

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) override {
    if (!reproducible_) return onednn_->pack(sources, dtype_);
    int64_t n = 0;
    for (const WeightSource& source : sources) n += source.n;
    const int64_t k = sources.front().k;
    auto weight = std::make_unique<PanelWeight>(n, k, panel_bytes(dtype_, n, k));
    pack_panels(sources, dtype_, weight->panels());
    return weight;
  }

  std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) override {
    int64_t count = 0;
    for (const WeightSource& source : sources) count += source.n * source.k;
    auto buffer = allocate(static_cast<size_t>(count) * sizeof(float));
    float* to = buffer->floats();
    for (const WeightSource& source : sources) {
      widen_values(source, 0, source.n * source.k, to);
      to += source.n * source.k;
    }
    return buffer;
  }

  void embed(const WeightSource& table, std::span<const int32_t> ids, float* out) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      LCKV_CHECK(ids[i] >= 0 && ids[i] < table.n);
      widen_values(table, ids[i] * table.k, table.k, out + static_cast<int64_t>(i) * table.k);
    }
  }

  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden,
                float* out) override {
#pragma omp parallel for schedule(static) if (rows * hidden > kParallelFloats)
    for (int64_t row = 0; row < rows; ++row) {
      rms_norm_row(x + row * hidden, weight, eps, hidden, out + row * hidden);
    }
  }

  void matmul(const PackedWeight& weight, const float* x, int64_t rows, float* y,
              const float* bias, bool accumulate) override {
    if (rows == 0) return;
    const std::byte* const input = rounded_input(x, rows, weight.k());
    if (!reproducible_) return onednn_->multiply(weight, input, rows, y, bias, accumulate);
    const auto& panels = dynamic_cast<const PanelWeight&>(weight);
    const PanelProduct product{.panels = panels.panels(),
                               .x = input,
                               .y = y,
                               .bias = bias,
                               .rows = rows,
                               .n = panels.n(),
                               .k = panels.k(),
                               .accumulate = accumulate};
    const int64_t num_panels = (panels.n() + kPanelColumns - 1) / kPanelColumns;
#pragma omp parallel
    {
      const int64_t threads = omp_get_num_threads();
      const int64_t thread = omp_get_thread_num();
      kernel_(product, num_panels * thread / threads, num_panels * (thread + 1) / threads);
    }
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
#pragma omp parallel for schedule(static) if (rows * heads * head_dim > kParallelFloats)
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = positions[row] * half;
      for (int32_t head = 0; head < heads; ++head) {
        rotate_row(x + row * row_stride + static_cast<int64_t>(head) * head_dim, cos + at,
                   sin + at, half);
      }
    }
  }

  void silu_mul(const float* gate_up, int64_t rows, int64_t inner, float* out) override {
#pragma omp parallel for schedule(static) if (rows * inner > kParallelFloats)
    for (int64_t row = 0; row < rows; ++row) {
      const float* const gate = gate_up + row * 2 * inner;
      silu_mul_row(gate, gate + inner, inner, out + row * inner);
    }
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
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t from = static_cast<int64_t>(i) * row_stride;
      const int64_t to = ids[i] * row_bytes(layout);
      convert_row(k + from, row_width(layout), layout.dtype, staged.k + to);
      convert_row(v + from, row_width(layout), layout.dtype, staged.v + to);
    }
  }

  void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
               const KvRows& staged) override {
    const int64_t bytes = row_bytes(layout);
    for (const int32_t id : ids) {
      std::memset(staged.k + id * bytes, 0, static_cast<size_t>(bytes));
      std::memset(staged.v + id * bytes, 0, static_cast<size_t>(bytes));
    }
  }

  void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) override {
    const int64_t bytes = row_bytes(layout);
    for (const int32_t id : ids) {
      std::memcpy(to.k + id * bytes, from.k + id * bytes, static_cast<size_t>(bytes));
      std::memcpy(to.v + id * bytes, from.v + id * bytes, static_cast<size_t>(bytes));
    }
  }

  void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                  const KvRows& read, KvDistance* out) override {
    const int64_t bytes = row_bytes(layout);
    for (const int32_t id : ids) {
      const int64_t at = id * bytes;
      KvDistance distance;
      for (const auto& [now, before] :
           {std::pair(fresh.k + at, read.k + at), std::pair(fresh.v + at, read.v + at)}) {
        if (layout.dtype == DType::kFloat32) {
          add_distance<float>(now, before, row_width(layout), distance);
        } else {
          add_distance<uint16_t>(now, before, row_width(layout), distance);
        }
      }
      distance.identical =
          std::memcmp(fresh.k + at, read.k + at, static_cast<size_t>(bytes)) == 0 &&
          std::memcmp(fresh.v + at, read.v + at, static_cast<size_t>(bytes)) == 0;
      *out++ = distance;
    }
  }

  void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    const auto size = static_cast<int64_t>(dtype_bytes(layout.dtype));
    for (size_t i = 0; i < blocks.size(); ++i) {
      const int64_t from = static_cast<int64_t>(i) * row_stride;
      for (int32_t head = 0; head < layout.kv_heads; ++head) {
        std::byte* const key = slot_key(layout, blocks[i], slots[i], head);
        const int64_t at = from + static_cast<int64_t>(head) * layout.head_dim;
        convert_row(k + at, layout.head_dim, layout.dtype, key);
        convert_row(v + at, layout.head_dim, layout.dtype,
                    key + row_width(layout) * layout.slots_per_block * size);
      }
    }
  }

  void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    const auto size = static_cast<int64_t>(dtype_bytes(layout.dtype));
    const int64_t head_bytes = layout.head_dim * size;
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int32_t head = 0; head < layout.kv_heads; ++head) {
        std::byte* const key = slot_key(layout, blocks[i], slots[i], head);
        const int64_t at = ids[i] * row_bytes(layout) + head * head_bytes;
        std::memcpy(key, staged.k + at, static_cast<size_t>(head_bytes));
        std::memcpy(key + row_width(layout) * layout.slots_per_block * size, staged.v + at,
                    static_cast<size_t>(head_bytes));
      }
    }
  }

  void attention(const AttentionArgs& args) override { cpu_attention(args); }

  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    std::memcpy(to, from, bytes);
  }

  void logprobs(const float* logits, int32_t vocabulary, std::span<const int32_t> ids, float* own,
                int32_t num_top, TopEntry* top) override {
    row_logprobs(logits, vocabulary, ids, own, num_top, top);
  }

  int32_t sample(const SampleArgs& args) override { return draw_token(args); }

 private:
  static std::byte* slot_key(const KvLayout& layout, int32_t block, int32_t slot, int32_t head) {
    const int64_t index =
        (static_cast<int64_t>(head) * layout.slots_per_block + slot) * layout.head_dim;
    return layout.base + block * layout.block_bytes +
           index * static_cast<int64_t>(dtype_bytes(layout.dtype));
  }

  static void widen_values(const WeightSource& source, int64_t first, int64_t count, float* out) {
    if (source.dtype == DType::kFloat32) {
      std::copy_n(static_cast<const float*>(source.data) + first, count, out);
      return;
    }
    LCKV_CHECK(source.dtype == DType::kBFloat16);
    const auto* const from = static_cast<const uint16_t*>(source.data) + first;
    for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(from[i]);
  }

  // x in the compute dtype; the buffer grows to the largest input once.
  const std::byte* rounded_input(const float* x, int64_t rows, int64_t k) {
    if (dtype_ == DType::kFloat32) return reinterpret_cast<const std::byte*>(x);
    if (input_.size() < static_cast<size_t>(rows * k)) input_.resize(rows * k);
#pragma omp parallel for schedule(static) if (rows * k > kParallelFloats)
    for (int64_t row = 0; row < rows; ++row) {
      float_to_bfloat16_row(x + row * k, k, input_.data() + row * k);
    }
    return reinterpret_cast<const std::byte*>(input_.data());
  }

  const DType dtype_;
  const bool reproducible_;
  std::string numerics_;
  PanelKernel kernel_ = nullptr;
  std::unique_ptr<OnednnProducts> onednn_;
  std::vector<uint16_t> input_;
};

}  // namespace

std::unique_ptr<Ops> open_cpu_ops(const CpuOpsOptions& options) {
  cap_onednn_instruction_set();
  return std::make_unique<CpuOps>(options);
}

}  // namespace lckv
