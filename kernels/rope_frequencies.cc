#include "kernels/rope_frequencies.h"

#include <cmath>
#include <numbers>

namespace lckv {
namespace {

double llama3_frequency(const RopeOptions& options, double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const auto original = static_cast<double>(options.original_max_position);
  if (wavelength < original / options.high_freq_factor) return frequency;
  if (wavelength > original / options.low_freq_factor) return frequency / options.factor;
  const double smooth = (original / wavelength - options.low_freq_factor) /
                        (options.high_freq_factor - options.low_freq_factor);
  return (1.0 - smooth) * frequency / options.factor + smooth * frequency;
}

}  // namespace

std::vector<float> rope_cos_sin(const RopeOptions& options, int64_t max_positions) {
  const int64_t half = options.head_dim / 2;
  std::vector<float> table(static_cast<size_t>(2 * max_positions * half));
  for (int64_t i = 0; i < half; ++i) {
    double frequency = std::pow(options.theta, -2.0 * static_cast<double>(i) / options.head_dim);
    if (options.scaling == RopeOptions::Scaling::kLinear) frequency /= options.factor;
    if (options.scaling == RopeOptions::Scaling::kLlama3) {
      frequency = llama3_frequency(options, frequency);
    }
    // The angle is a float32 product, as in the reference code: both factors are rounded first.
    const auto rounded = static_cast<float>(frequency);
    for (int64_t position = 0; position < max_positions; ++position) {
      const float angle = static_cast<float>(position) * rounded;
      table[position * half + i] = std::cos(angle);
      table[(max_positions + position) * half + i] = std::sin(angle);
    }
  }
  return table;
}

}  // namespace lckv
