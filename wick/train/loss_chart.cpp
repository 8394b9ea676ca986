// Axes with round steps, two lines, a legend.
#include "wick/train/loss_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace wick {

namespace {

constexpr size_t kMostDots = 40;
constexpr double kWidth = 800;
constexpr double kHeight = 420;
constexpr double kLeft = 64;
constexpr double kRight = 20;
constexpr double kTop = 28;
constexpr double kBottom = 48;
constexpr const char* kTrainColour = "#2878c8";
constexpr const char* kValidColour = "#e07818";

// A range of an axis and the distance of its marks: 1, 2 or 5 times a power of ten.
struct Axis {
  double low = 0;
  double high = 1;
  double mark = 1;
};

Axis axis_over(double low, double high, int marks) {
  const double span = std::max(high - low, 1e-9 + 1e-6 * std::abs(high));
  const double rough = span / marks;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double mark = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) {
      mark = factor * power;
      break;
    }
  }
  return {std::floor(low / mark) * mark, std::ceil(high / mark) * mark, mark};
}

struct Frame {
  Axis x;
  Axis y;
  double at_x(double value) const {
    return kLeft + (value - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  }
  double at_y(double value) const {
    return kHeight - kBottom - (value - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  }
};

Frame frame_of(std::span<const LossPoint> train, std::span<const LossPoint> valid) {
  double low = HUGE_VAL;
  double high = -HUGE_VAL;
  int64_t last = 1;
  for (const auto series : {train, valid}) {
    for (const LossPoint& point : series) {
      last = std::max(last, point.step);
      if (std::isfinite(point.loss)) {
        low = std::min(low, point.loss);
        high = std::max(high, point.loss);
      }
    }
  }
  if (low > high) {
    low = 0;
    high = 1;
  }
  return {axis_over(0, static_cast<double>(last), 6), axis_over(low, high, 6)};
}

std::string grid(const Frame& frame) {
  std::string svg;
  const double bottom = kHeight - kBottom;
  const auto count = [](const Axis& axis) {
    return static_cast<int>(std::lround((axis.high - axis.low) / axis.mark));
  };
  for (int i = 0; i <= count(frame.y); ++i) {
    const double value = frame.y.low + i * frame.y.mark;
    svg += fmt::format(
        "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" class=\"grid\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:.4g}</text>\n",
        kLeft, kWidth - kRight, frame.at_y(value), kLeft - 8, frame.at_y(value) + 4,
        std::abs(value) < frame.y.mark / 2 ? 0.0 : value);
  }
  for (int i = 0; i <= count(frame.x); ++i) {
    const double value = frame.x.low + i * frame.x.mark;
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.6g}</text>\n",
                       frame.at_x(value), bottom + 18, value);
  }
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 10);
  return svg;
}

// With a dot at each point where they are few: a line of one point would not be seen.
std::string line(const Frame& frame, std::span<const LossPoint> points, const char* colour) {
  std::string path;
  std::string dots;
  for (const LossPoint& point : points) {
    if (std::isfinite(point.loss)) {
      const double x = frame.at_x(static_cast<double>(point.step));
      const double y = frame.at_y(point.loss);
      path += fmt::format("{:.1f},{:.1f} ", x, y);
      if (points.size() <= kMostDots) {
        dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n", x, y,
                            colour);
      }
    }
  }
  if (path.empty()) {
    return {};
  }
  path.pop_back();
  return fmt::format(
             "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" "
             "stroke-linejoin=\"round\"/>\n",
             path, colour) +
         dots;
}

std::string legend_entry(double x, const char* colour, const char* name) {
  return fmt::format(
      "<line x1=\"{0}\" x2=\"{1}\" y1=\"14\" y2=\"14\" stroke=\"{2}\" stroke-width=\"3\"/>"
      "<text x=\"{3}\" y=\"18\">{4}</text>\n",
      x, x + 22, colour, x + 28, name);
}

}  // namespace

std::string draw_loss_chart(std::span<const LossPoint> train, std::span<const LossPoint> valid) {
  const Frame frame = frame_of(train, valid);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<style>text{{fill:#444}} .grid{{stroke:#8884}} rect{{fill:#fff}}\n"
      "@media (prefers-color-scheme:dark){{text{{fill:#ccc}} rect{{fill:#181818}}}}</style>\n"
      "<rect width=\"{0}\" height=\"{1}\"/>\n",
      kWidth, kHeight);
  svg += grid(frame);
  svg += line(frame, train, kTrainColour) + line(frame, valid, kValidColour);
  svg += legend_entry(kLeft, kTrainColour, "training loss");
  if (!valid.empty()) {
    svg += legend_entry(kLeft + 140, kValidColour, "validation loss");
  }
  return svg + "</svg>\n";
}

}  // namespace wick
