#include "kernels/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/mapped_table.h"
#include "kernels/rope_frequencies.h"
#include "kernels/sampling.h"
#include "kernels/weight_values.h"

namespace lckv {
namespace {

class HostBuffer final : public DeviceBuffer {
 public:
  explicit HostBuffer(size_t bytes) : bytes_((bytes + 3) / 4), size_(bytes) {}
  std::byte* data() override { return reinterpret_cast<std::byte*>(bytes_.data()); }
  size_t bytes() const override { return size_; }

 private:
  std::vector<float> bytes_;
  size_t size_;
};

class FloatWeight final : public PackedWeight {
 public:
  int64_t n() const override { return rows; }
  int64_t k() const override { return columns; }
  size_t bytes() const override { return values.size() * sizeof(float); }
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> values;  // [n, k], rounded to the compute dtype
};

float load(const void* data, DType dtype, int64_t index) {
  return weight_value({.data = data, .dtype = dtype}, index);
}

void store(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        dtype == DType::kBFloat16 ? float_to_bfloat16(value) : float_to_float16(value);
  }
}

class ReferenceOps final : public Ops {
 public:
  explicit ReferenceOps(DType dtype) : dtype_(dtype) {}

  DType dtype() const override { return dtype_; }
  const char* numerics() const override { return "reference"; }
  int32_t free_rows() const override { return 1; }

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    return std::make_unique<HostBuffer>(bytes);
  }

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) override {
    auto weight = std::make_unique<FloatWeight>();
    for (const WeightSource& source : sources) {
      LCKV_CHECK(weight->columns == 0 || weight->columns == source.k);
      weight->rows += source.n;
      weight->columns = source.k;
      for (int64_t i = 0; i < source.n * source.k; ++i) {
        weight->values.push_back(rounded(weight_value(source, i), dtype_));
      }
    }
    return weight;
  }

  std::unique_ptr<EmbeddingTable> pack_table(const WeightSource& source,
                                             const PackedWeight*) override {
    return std::make_unique<MappedTable>(source);
  }

  std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) override {
    std::vector<float> values;
    for (const WeightSource& source : sources) {
      for (int64_t i = 0; i < source.n * source.k; ++i) {
        values.push_back(weight_value(source, i));
      }
    }
    auto buffer = allocate(values.size() * sizeof(float));
    std::memcpy(buffer->data(), values.data(), values.size() * sizeof(float));
    return buffer;
  }

  void embed(const EmbeddingTable& table, std::span<const TokenId> tokens, int32_t first,
             float* out) override {
    const WeightSource& source = dynamic_cast<const MappedTable&>(table).source();
    for (const TokenId& token : tokens) {
      const int64_t row = id_of(token) - first;
      const bool is_there = row >= 0 && row < source.n;
      for (int64_t i = 0; i < source.k; ++i) {
        *out++ = is_there ? rounded(weight_value(source, row * source.k + i), dtype_) : 0.0F;
      }
    }
  }

  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden,
                std::byte* operand) override {
    auto* out = reinterpret_cast<float*>(operand);
    for (int64_t row = 0; row < rows; ++row, x += hidden, out += hidden) {
      float sum = 0.0F;
      for (int64_t i = 0; i < hidden; ++i) sum += x[i] * x[i];
      const float scale = 1.0F / std::sqrt(sum / static_cast<float>(hidden) + eps);
      for (int64_t i = 0; i < hidden; ++i) out[i] = x[i] * scale * weight[i];
    }
  }

  void matmul(const PackedWeight& weight, const std::byte* operand, int64_t rows, float* y,
              const float* bias, bool accumulate) override {
    const auto* const x = reinterpret_cast<const float*>(operand);
    const auto& matrix = dynamic_cast<const FloatWeight&>(weight);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t n = 0; n < matrix.rows; ++n) {
        float sum = 0.0F;
        for (int64_t k = 0; k < matrix.columns; ++k) {
          sum +=
              rounded(x[row * matrix.columns + k], dtype_) * matrix.values[n * matrix.columns + k];
        }
        if (bias != nullptr) sum += bias[n];
        float& target = y[row * matrix.rows + n];
        target = accumulate ? target + sum : sum;
      }
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
    const int32_t half = head_dim / 2;
    const float* const cos = table.floats();
    const float* const sin = cos + table.bytes() / sizeof(float) / 2;
    for (const int32_t position : positions) {
      for (int32_t head = 0; head < heads; ++head) {
        float* const low = x + static_cast<int64_t>(head) * head_dim;
        for (int32_t i = 0; i < half; ++i) {
          const float c = cos[static_cast<int64_t>(position) * half + i];
          const float s = sin[static_cast<int64_t>(position) * half + i];
          const float a = low[i];
          const float b = low[i + half];
          low[i] = a * c - b * s;
          low[i + half] = b * c + a * s;
        }
      }
      x += row_stride;
    }
  }

  void silu_mul(const float* gate_up, int64_t rows, int64_t inner, std::byte* operand) override {
    auto* out = reinterpret_cast<float*>(operand);
    for (int64_t row = 0; row < rows; ++row, gate_up += 2 * inner, out += inner) {
      for (int64_t i = 0; i < inner; ++i) {
        out[i] = gate_up[i] / (1.0F + std::exp(-gate_up[i])) * gate_up[inner + i];
      }
    }
  }

  void gather_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                   float* out) override {
    for (const int32_t id : ids) {
      std::copy_n(x + id * hidden, hidden, out);
      out += hidden;
    }
  }

  void scatter_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                    float* out) override {
    for (const int32_t id : ids) {
      std::copy_n(x, hidden, out + id * hidden);
      x += hidden;
    }
  }

  void stage_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged) override {
    const int64_t width = row_width(layout);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0) continue;
      for (int64_t j = 0; j < width; ++j) {
        const int64_t from = static_cast<int64_t>(i) * row_stride + j;
        store(staged.k, layout.dtype, ids[i] * width + j, k[from]);
        store(staged.v, layout.dtype, ids[i] * width + j, v[from]);
      }
    }
  }

  void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
               const KvRows& staged) override {
    const size_t bytes = row_bytes(layout);
    for (const int32_t id : ids) {
      std::memset(staged.k + id * bytes, 0, bytes);
      std::memset(staged.v + id * bytes, 0, bytes);
    }
  }

  void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) override {
    const size_t bytes = row_bytes(layout);
    for (const int32_t id : ids) {
      std::memcpy(to.k + id * bytes, from.k + id * bytes, bytes);
      std::memcpy(to.v + id * bytes, from.v + id * bytes, bytes);
    }
  }

  void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                  const KvRows& read, KvDistance* out) override {
    const size_t bytes = row_bytes(layout);
    const int64_t width = row_width(layout);
    for (const int32_t id : ids) {
      KvDistance distance;
      for (const auto& [now, before] : {std::pair(fresh.k, read.k), std::pair(fresh.v, read.v)}) {
        for (int64_t j = id * width; j < (id + 1) * width; ++j) {
          const float value = load(now, layout.dtype, j);
          const float difference = value - load(before, layout.dtype, j);
          distance.difference_squared += difference * difference;
          distance.norm_squared += value * value;
        }
      }
      const bool identical = std::memcmp(fresh.k + id * bytes, read.k + id * bytes, bytes) == 0 &&
                             std::memcmp(fresh.v + id * bytes, read.v + id * bytes, bytes) == 0;
      distance.differs = identical ? 0.0F : 1.0F;
      *out++ = distance;
    }
  }

  void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    const int64_t width = row_width(layout);
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i] < 0) continue;
      for (int64_t j = 0; j < width; ++j) {
        const int64_t from = static_cast<int64_t>(i) * row_stride + j;
        store_slot(layout, blocks[i], slots[i], j, k[from], v[from]);
      }
    }
  }

  void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    const int64_t width = row_width(layout);
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const int64_t from = ids[i] * width + j;
        store_slot(layout, blocks[i], slots[i], j, load(staged.k, layout.dtype, from),
                   load(staged.v, layout.dtype, from));
      }
    }
  }

  void attention(const AttentionArgs& args) override {
    for (const AttentionSegment& segment : args.segments) {
      for (int32_t row = segment.row_begin; row < segment.row_end; ++row) {
        for (int32_t head = 0; head < args.num_heads; ++head) attend(args, segment, row, head);
      }
    }
  }

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
    for (const LogprobArgs& row : rows) row_logprobs(row, vocabulary);
  }

  void sample(std::span<const SampleArgs> rows) override {
    for (const SampleArgs& row : rows) *row.drawn = draw_token(row);
  }

 private:
  static int64_t row_width(const KvLayout& layout) {
    return static_cast<int64_t>(layout.kv_heads) * layout.head_dim;
  }
  static size_t row_bytes(const KvLayout& layout) {
    return static_cast<size_t>(row_width(layout)) * dtype_bytes(layout.dtype);
  }
  // Index of element j of a slot's key within its block; the value lies half a block's values
  // further.
  static int64_t slot_index(const KvLayout& layout, int32_t slot, int64_t j) {
    const int64_t head = j / layout.head_dim;
    return (head * layout.slots_per_block + slot) * layout.head_dim + j % layout.head_dim;
  }
  static void store_slot(const KvLayout& layout, int32_t block, int32_t slot, int64_t j, float k,
                         float v) {
    std::byte* const base = layout.base + block * layout.block_bytes;
    const int64_t index = slot_index(layout, slot, j);
    store(base, layout.dtype, index, k);
    store(base, layout.dtype, row_width(layout) * layout.slots_per_block + index, v);
  }

  // One visible key and value, as element pointers into slots or staged rows.
  struct Seen {
    const std::byte* base_k;
    const std::byte* base_v;
    int64_t index;
  };

  std::vector<Seen> visible(const AttentionArgs& args, const AttentionSegment& segment,
                            int32_t position, int32_t kv_head) const {
    const KvLayout& layout = args.layout;
    std::vector<Seen> seen;
    const auto sees = [&](int32_t j) {
      if (j > position || (args.strict && j == position)) return false;
      return args.window == 0 || j > position - args.window || j < args.num_sinks;
    };
    for (int32_t i = 0; i < segment.num_slots; ++i) {
      if (!sees(segment.slot_positions[i])) continue;
      const std::byte* const base =
          layout.base + segment.blocks[i / layout.slots_per_block] * layout.block_bytes;
      const int64_t values = row_width(layout) * layout.slots_per_block;
      seen.push_back({base, base + values * static_cast<int64_t>(dtype_bytes(layout.dtype)),
                      slot_index(layout, i % layout.slots_per_block,
                                 static_cast<int64_t>(kv_head) * layout.head_dim)});
    }
    for (int32_t i = 0; i < segment.num_staged; ++i) {
      if (!sees(segment.staged_positions[i])) continue;
      seen.push_back({args.staged.k, args.staged.v,
                      segment.staged_rows[i] * row_width(layout) +
                          static_cast<int64_t>(kv_head) * layout.head_dim});
    }
    return seen;
  }

  void attend(const AttentionArgs& args, const AttentionSegment& segment, int32_t row,
              int32_t head) const {
    const KvLayout& layout = args.layout;
    const int32_t size = layout.head_dim;
    const int64_t at = static_cast<int64_t>(row) * args.num_heads + head;
    const float* const q = args.q + at * size;
    float* const out = reinterpret_cast<float*>(args.out) + at * size;
    const bool official = args.official_decode != nullptr && args.official_decode[row] != 0;
    const int32_t position = args.positions[row];
    // Keys that count as one position newer: the row sees what the one before it would.
    const std::vector<Seen> seen = visible(args, segment, official ? position - 1 : position,
                                           head / (args.num_heads / layout.kv_heads));
    const bool zero_key = official && position > 0 && (args.window == 0 || position < args.window);

    std::vector<float> scores;
    for (const Seen& key : seen) {
      float score = 0.0F;
      for (int32_t i = 0; i < size; ++i) {
        score += q[i] * load(key.base_k, layout.dtype, key.index + i);
      }
      scores.push_back(score * args.scale);
    }
    float top = zero_key ? 0.0F : -std::numeric_limits<float>::infinity();
    for (const float score : scores) top = std::max(top, score);
    float sum = zero_key ? std::exp(-top) : 0.0F;
    for (float& score : scores) sum += score = std::exp(score - top);
    std::fill_n(out, size, 0.0F);
    for (size_t j = 0; j < seen.size(); ++j) {
      for (int32_t i = 0; i < size; ++i) {
        out[i] += scores[j] / sum * load(seen[j].base_v, layout.dtype, seen[j].index + i);
      }
    }
    if (args.log_sum_exp != nullptr) args.log_sum_exp[at] = top + std::log(sum);
  }

  const DType dtype_;
};

}  // namespace

std::unique_ptr<Ops> open_reference_ops(DType dtype) {
  return std::make_unique<ReferenceOps>(dtype);
}

}  // namespace lckv
