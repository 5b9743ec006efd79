#include "kernels/cpu/onednn_product.h"

#include <cpuid.h>

#include <algorithm>
#include <dnnl.hpp>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kernels/bfloat16.h"
#include "kernels/check.h"
#include "kernels/cpu/memory.h"

namespace lckv {
namespace {

using dnnl::memory;

memory::data_type onednn_type(DType dtype) {
  return dtype == DType::kFloat32 ? memory::data_type::f32 : memory::data_type::bf16;
}

class OnednnWeight final : public PackedWeight {
 public:
  OnednnWeight(int64_t n, int64_t k, DType dtype, memory::desc layout)
      : n_(n), k_(k), dtype_(dtype), layout_(std::move(layout)), memory_(layout_.get_size()) {}
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  size_t bytes() const override { return memory_.bytes(); }
  DType dtype() const { return dtype_; }
  const memory::desc& layout() const { return layout_; }
  std::byte* data() const { return memory_.data(); }

 private:
  const int64_t n_;
  const int64_t k_;
  const DType dtype_;
  const memory::desc layout_;
  const AnonymousMemory memory_;
};

// The largest number of rows, at most `rows`, that a primitive is made for: few sizes, so that few
// primitives are kept, and no row is padded.
int64_t primitive_rows(int64_t rows) {
  if (rows < 16) return rows;
  if (rows < 64) return rows / 16 * 16;
  return rows / 64 * 64;
}

// All sources stacked, row-major, in `dtype`.
std::vector<std::byte> stacked(std::span<const WeightSource> sources, DType dtype) {
  std::vector<std::byte> out;
  for (const WeightSource& source : sources) {
    const auto count = static_cast<size_t>(source.n * source.k);
    const size_t first = out.size();
    out.resize(first + count * dtype_bytes(dtype));
    std::byte* const to = out.data() + first;
    if (source.dtype == dtype) {
      std::copy_n(static_cast<const std::byte*>(source.data), count * dtype_bytes(dtype), to);
      continue;
    }
    LCKV_CHECK(source.dtype != DType::kFloat16);
    for (size_t i = 0; i < count; ++i) {
      if (dtype == DType::kFloat32) {
        reinterpret_cast<float*>(to)[i] =
            bfloat16_to_float(static_cast<const uint16_t*>(source.data)[i]);
      } else {
        reinterpret_cast<uint16_t*>(to)[i] =
            float_to_bfloat16(static_cast<const float*>(source.data)[i]);
      }
    }
  }
  return out;
}

}  // namespace

void cap_onednn_instruction_set() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  const bool palette = __get_cpuid_count(0x1D, 0, &a, &b, &c, &d) != 0 && a != 0;
  // Too late is an error that changes nothing: then oneDNN has run before and works.
  if (!palette) (void)dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
}

class OnednnProducts::Impl {
 public:
  Impl() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources, DType dtype) {
    int64_t n = 0;
    const int64_t k = sources.front().k;
    for (const WeightSource& source : sources) {
      LCKV_CHECK(source.k == k);
      n += source.n;
    }
    const memory::desc any({k, n}, onednn_type(dtype), memory::format_tag::any);
    constexpr int64_t kTypicalRows = 64;
    const auto description = describe(dtype, kTypicalRows, n, k, any, false, false);
    auto weight = std::make_unique<OnednnWeight>(n, k, dtype, description.weights_desc());
    std::vector<std::byte> plain = stacked(sources, dtype);
    const memory::desc plain_layout({k, n}, onednn_type(dtype), memory::format_tag::ba);
    memory from(plain_layout, engine_, plain.data());
    memory to(weight->layout(), engine_, weight->data());
    dnnl::reorder(from, to).execute(stream_, from, to);
    stream_.wait();
    return weight;
  }

  void multiply(const OnednnWeight& weight, const std::byte* x, int64_t rows, float* y,
                const float* bias, bool accumulate) {
    while (rows > 0) {
      const int64_t count = primitive_rows(rows);
      run(weight, x, count, y, bias, accumulate);
      x += count * weight.k() * static_cast<int64_t>(dtype_bytes(weight.dtype()));
      y += count * weight.n();
      rows -= count;
    }
  }

 private:
  // dtype, rows, n, k, bias, accumulate
  using Key = std::tuple<DType, int64_t, int64_t, int64_t, bool, bool>;

  dnnl::matmul::primitive_desc describe(DType dtype, int64_t rows, int64_t n, int64_t k,
                                        const memory::desc& weights, bool bias,
                                        bool accumulate) {
    const auto f32 = memory::data_type::f32;
    const auto ab = memory::format_tag::ab;
    const memory::desc x({rows, k}, onednn_type(dtype), ab);
    const memory::desc y({rows, n}, f32, ab);
    dnnl::primitive_attr attributes;
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const memory::desc bias_desc({1, n}, f32, ab);
    return bias ? dnnl::matmul::primitive_desc({x, weights, bias_desc, y}, attributes, engine_)
                : dnnl::matmul::primitive_desc({x, weights, y}, attributes, engine_);
  }

  void run(const OnednnWeight& weight, const std::byte* x, int64_t rows, float* y,
           const float* bias, bool accumulate) {
    const Key key{weight.dtype(), rows, weight.n(), weight.k(), bias != nullptr, accumulate};
    auto found = products_.find(key);
    if (found == products_.end()) {
      const auto description = describe(weight.dtype(), rows, weight.n(), weight.k(),
                                        weight.layout(), bias != nullptr, accumulate);
      found = products_.emplace(key, description).first;
    }
    const auto& description = found->second.get_primitive_desc();
    const auto desc = [&](dnnl::query query, int index) {
      return memory::desc(*dnnl_primitive_desc_query_md(
          description, static_cast<dnnl_query_t>(query), index));
    };
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, memory(desc(dnnl::query::src_md, 0), engine_,
                              const_cast<std::byte*>(x))},
        {DNNL_ARG_WEIGHTS, memory(weight.layout(), engine_, weight.data())},
        {DNNL_ARG_DST, memory(desc(dnnl::query::dst_md, 0), engine_, y)}};
    if (bias != nullptr) {
      arguments.emplace(DNNL_ARG_BIAS, memory(desc(dnnl::query::weights_md, 1), engine_,
                                              const_cast<float*>(bias)));
    }
    found->second.execute(stream_, arguments);
    stream_.wait();
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Key, dnnl::matmul> products_;
};

OnednnProducts::OnednnProducts() : impl_(std::make_unique<Impl>()) {}
OnednnProducts::~OnednnProducts() = default;

std::unique_ptr<PackedWeight> OnednnProducts::pack(std::span<const WeightSource> sources,
                                                   DType dtype) {
  return impl_->pack(sources, dtype);
}

void OnednnProducts::multiply(const PackedWeight& weight, const std::byte* x, int64_t rows,
                              float* y, const float* bias, bool accumulate) {
  impl_->multiply(dynamic_cast<const OnednnWeight&>(weight), x, rows, y, bias, accumulate);
}

}  // namespace lckv
