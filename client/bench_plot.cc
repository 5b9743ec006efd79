#include "client/bench_plot.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lckv {
namespace {

constexpr double kWidth = 720;
constexpr double kHeight = 620;
// A panel's plot area.
constexpr double kLeft = 70;
constexpr double kRight = 700;
constexpr double kPanelHeight = 220;
constexpr double kLatencyTop = 50;
constexpr double kTokensTop = 360;

struct Curve {
  const char* name;
  const char* colour;
  const Summary* summary;
};

struct Point {
  double x = 0;
  double y = 0;
};

std::string polyline(const std::vector<Point>& points, const char* colour) {
  std::string text = "<polyline fill=\"none\" stroke-width=\"2\" points=\"";
  for (const Point& point : points) absl::StrAppendFormat(&text, "%.1f,%.1f ", point.x, point.y);
  return absl::StrCat(text, "\" stroke=\"", colour, "\"/>\n");
}

std::string label(Point at, const char* anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", at.x, at.y,
                         anchor, text);
}

std::string line(Point from, Point to) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", from.x,
                         from.y, to.x, to.y);
}

// Milliseconds by powers of ten.
struct LogScale {
  double least = 0;  // the power
  double most = 1;

  explicit LogScale(const std::vector<Curve>& curves) {
    double low = INFINITY;
    double high = 0;
    for (const Curve& curve : curves) {
      if (curve.summary->percentiles.empty()) continue;
      low = std::min(low, milliseconds(curve.summary->percentiles.front()));
      high = std::max(high, milliseconds(curve.summary->percentiles.back()));
    }
    if (high == 0) return;
    least = std::floor(std::log10(low));
    most = std::max(std::ceil(std::log10(high)), least + 1);
  }
  // A delivery may follow the one before it at once.
  static double milliseconds(double seconds) { return std::max(seconds * 1e3, 1e-3); }
  double x(double ms) const {
    return kLeft + (kRight - kLeft) * (std::log10(ms) - least) / (most - least);
  }
};

std::string latency_panel(const BenchReport& report) {
  const std::vector<Curve> curves = {{"TTFT", "#1f77b4", &report.ttft},
                                     {"TPOT", "#2ca02c", &report.tpot},
                                     {"ITL", "#d62728", &report.itl},
                                     {"end-to-end", "#9467bd", &report.end_to_end}};
  const LogScale scale(curves);
  const double bottom = kLatencyTop + kPanelHeight;
  std::string svg = label({kLeft, kLatencyTop - 15}, "start", "share of requests within a latency");
  for (int percent = 0; percent <= 100; percent += 25) {
    const double y = bottom - kPanelHeight * percent / 100;
    absl::StrAppend(&svg, line({kLeft, y}, {kRight, y}),
                    label({kLeft - 8, y + 4}, "end", absl::StrCat(percent, " %")));
  }
  for (double power = scale.least; power <= scale.most; ++power) {
    const double ms = std::pow(10, power);
    absl::StrAppend(&svg, line({scale.x(ms), kLatencyTop}, {scale.x(ms), bottom}),
                    label({scale.x(ms), bottom + 16}, "middle", absl::StrFormat("%g ms", ms)));
  }
  double x = kLeft + 10;
  for (const Curve& curve : curves) {
    std::vector<Point> points;
    for (size_t i = 0; i < curve.summary->percentiles.size(); ++i) {
      points.push_back({scale.x(LogScale::milliseconds(curve.summary->percentiles[i])),
                        bottom - kPanelHeight * static_cast<double>(i) / 100});
    }
    absl::StrAppend(&svg, polyline(points, curve.colour), "<g fill=\"", curve.colour, "\">",
                    label({x, bottom + 38}, "start", curve.name), "</g>");
    x += 110;
  }
  return svg;
}

std::string tokens_panel(const BenchReport& report) {
  const std::vector<int64_t>& seconds = report.tokens_by_second;
  const auto most = static_cast<double>(
      seconds.empty() ? 1
                      : std::max<int64_t>(*std::max_element(seconds.begin(), seconds.end()), 1));
  const auto count = static_cast<double>(std::max<size_t>(seconds.size(), 1));
  const double bottom = kTokensTop + kPanelHeight;
  std::string svg = label({kLeft, kTokensTop - 15}, "start", "output tokens per second");
  for (int quarter = 0; quarter <= 4; ++quarter) {
    const double y = bottom - kPanelHeight * quarter / 4;
    absl::StrAppend(&svg, line({kLeft, y}, {kRight, y}),
                    label({kLeft - 8, y + 4}, "end", absl::StrFormat("%.0f", most * quarter / 4)));
  }
  absl::StrAppend(&svg, label({kLeft, bottom + 16}, "middle", "0 s"),
                  label({kRight, bottom + 16}, "middle", absl::StrFormat("%.0f s", count)));
  std::vector<Point> points;
  for (size_t i = 0; i < seconds.size(); ++i) {
    points.push_back({kLeft + (kRight - kLeft) * (static_cast<double>(i) + 0.5) / count,
                      bottom - kPanelHeight * static_cast<double>(seconds[i]) / most});
  }
  return absl::StrCat(svg, polyline(points, "#1f77b4"));
}

}  // namespace

std::string bench_svg(const BenchReport& report) {
  return absl::StrCat(
      absl::StrFormat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
                      "font-family=\"sans-serif\" font-size=\"12\">\n",
                      kWidth, kHeight),
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      "<style>line { stroke: #ddd }</style>\n", latency_panel(report), tokens_panel(report),
      "</svg>\n");
}

}  // namespace lckv
