#include "kernels/cpu/onednn_product.h"

#include <cpuid.h>

#include <cstring>
#include <dnnl.hpp>
#include <map>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "kernels/check.h"
#include "kernels/cpu/row_product.h"

namespace lckv {
namespace {

using dnnl::inner_product_forward;
using dnnl::memory;

memory::data_type onednn_type(DType dtype) {
  return dtype == DType::kFloat32 ? memory::data_type::f32 : memory::data_type::bf16;
}

memory::format_tag panel_tag(DType dtype) {
  return dtype == DType::kFloat32 ? memory::format_tag::OI16i64o : memory::format_tag::OI8i64o2i;
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

  bool can_multiply(const OnednnProduct& product) {
    // Ours are padded further than oneDNN's where k is not a whole number of tiles.
    if (product.k != padded_k(product.dtype, product.k)) return false;
    return primitive(product).has_value();
  }

  void multiply(const OnednnProduct& product) {
    std::optional<inner_product_forward>& found = primitive(product);
    LCKV_CHECK(found.has_value());
    const Layouts layouts = layouts_of(product);
    const auto at = [&](const memory::desc& layout, const void* data) {
      return memory(layout, engine_, const_cast<void*>(data));
    };
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, at(layouts.x, product.x)},
        {DNNL_ARG_WEIGHTS, at(layouts.weights, product.panels)},
        {DNNL_ARG_DST, at(layouts.y, product.y)}};
    if (product.bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, at(layouts.bias, product.bias));
    found->execute(stream_, arguments);
    stream_.wait();
  }

 private:
  // dtype, rows, n, k, with bias, accumulate
  using Key = std::tuple<DType, int64_t, int64_t, int64_t, bool, bool>;

  struct Layouts {
    memory::desc x;
    memory::desc weights;
    memory::desc bias;
    memory::desc y;
  };

  static Layouts layouts_of(const OnednnProduct& product) {
    const auto type = onednn_type(product.dtype);
    const auto f32 = memory::data_type::f32;
    return {.x = {{product.rows, product.k}, type, memory::format_tag::nc},
            .weights = {{product.n, product.k}, type, panel_tag(product.dtype)},
            .bias = {{product.n}, f32, memory::format_tag::x},
            .y = {{product.rows, product.n}, f32, memory::format_tag::nc}};
  }

  // None where oneDNN has only a generic implementation.
  std::optional<inner_product_forward> create(const OnednnProduct& product) {
    const Layouts layouts = layouts_of(product);
    dnnl::primitive_attr attributes;
    if (product.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const auto kind = dnnl::prop_kind::forward_inference;
    try {
      const inner_product_forward::desc description =
          product.bias == nullptr
              ? inner_product_forward::desc(kind, layouts.x, layouts.weights, layouts.y)
              : inner_product_forward::desc(kind, layouts.x, layouts.weights, layouts.bias,
                                            layouts.y);
      const inner_product_forward::primitive_desc chosen(description, attributes, engine_);
      if (std::strstr(chosen.impl_info_str(), "brgemm") == nullptr) return std::nullopt;
      return inner_product_forward(chosen);
    } catch (const dnnl::error&) {
      return std::nullopt;
    }
  }

  std::optional<inner_product_forward>& primitive(const OnednnProduct& product) {
    const Key key{product.dtype,           product.rows,      product.n, product.k,
                  product.bias != nullptr, product.accumulate};
    const auto found = products_.find(key);
    if (found != products_.end()) return found->second;
    return products_.emplace(key, create(product)).first->second;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Key, std::optional<inner_product_forward>> products_;
};

OnednnProducts::OnednnProducts() : impl_(std::make_unique<Impl>()) {}
OnednnProducts::~OnednnProducts() = default;

bool OnednnProducts::can_multiply(const OnednnProduct& product) {
  return impl_->can_multiply(product);
}

void OnednnProducts::multiply(const OnednnProduct& product) { impl_->multiply(product); }

}  // namespace lckv
