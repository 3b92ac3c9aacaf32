// What is done row by row: division by the length, its way back, products of pairs of rows.
#include <limits>

#include "contrastive.h"
#include "tile.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

// Rows of one task.
constexpr int64_t kRun = 256;

// a * b + c as the compiler makes it of vectors: rounded once where the processor can.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline double fused(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Products of rows, summed in the order of `similarities`.
template <class T>
void dots(const Dots& arguments) {
  const T* x = static_cast<const T*>(arguments.x);
  const T* y = static_cast<const T*>(arguments.y);
  for (int64_t row = 0; row < arguments.rows; ++row, x += arguments.width, y += arguments.width) {
    T total = 0;
    for (int64_t k = 0; k < arguments.width; k += kDepth) {
      T part = 0;
      const int64_t end = smaller_of(k + kDepth, arguments.width);
      for (int64_t at = k; at < end; ++at) part = fused(x[at], y[at], part);
      total = k > 0 ? total + part : part;
    }
    static_cast<T*>(arguments.of_rows)[row] = total;
  }
}

template <class T>
void normalize_row(const T* from, int64_t width, T* unit, T* inverse) {
  T largest = 0;
  for (int64_t k = 0; k < width; ++k) {
    const T size = from[k] < 0 ? -from[k] : from[k];
    // A NaN is never dropped: it has to spoil its row.
    if (size > largest || size != size) largest = size;
  }
  if (largest < std::numeric_limits<T>::min()) {
    for (int64_t k = 0; k < width; ++k) unit[k] = 0;
    *inverse = 0;
    return;
  }
  // Divided by the largest entry first, no square under- or overflows.
  const double scale = static_cast<double>(largest);
  double square = 0;
  for (int64_t k = 0; k < width; ++k) {
    const double value = static_cast<double>(from[k]) / scale;
    square += value * value;
  }
  const double length = __builtin_sqrt(square);
  for (int64_t k = 0; k < width; ++k) {
    unit[k] = static_cast<T>(static_cast<double>(from[k]) / scale / length);
  }
  *inverse = static_cast<T>(1 / (length * scale));
}

template <class T>
void normalize(const Normalize& a) {
  for_tasks(a.threads, ceil_div(a.rows, kRun), [&](int64_t task, int64_t) {
    for (int64_t row = task * kRun; row < smaller_of(a.rows, (task + 1) * kRun); ++row) {
      normalize_row(static_cast<const T*>(a.z) + row * a.width, a.width,
                    static_cast<T*>(a.unit) + row * a.width, static_cast<T*>(a.inverse) + row);
    }
  });
}

template <class T>
void finish_row(const Finish& a, int64_t row) {
  const T* sums = static_cast<const T*>(a.sums) + row * a.width;
  const T* unit = static_cast<const T*>(a.unit) + row * a.width;
  const T temperature = *static_cast<const T*>(a.temperature);
  T* to = static_cast<T*>(a.gradient) + row * a.width;
  double along = 0;
  for (int64_t k = 0; k < a.width; ++k) {
    T value = sums[k];
    if (a.partner != nullptr) {
      value += static_cast<const T*>(a.coefficient)[row] *
               static_cast<const T*>(a.partner)[row * a.width + k];
    }
    to[k] = value / temperature;
    along += static_cast<double>(to[k]) * static_cast<double>(unit[k]);
  }
  if (a.inverse == nullptr) return;
  const T inverse = static_cast<const T*>(a.inverse)[row];
  for (int64_t k = 0; k < a.width; ++k) to[k] = (to[k] - static_cast<T>(along) * unit[k]) * inverse;
}

template <class T>
void finish(const Finish& a) {
  for_tasks(a.threads, ceil_div(a.rows, kRun), [&](int64_t task, int64_t) {
    for (int64_t row = task * kRun; row < smaller_of(a.rows, (task + 1) * kRun); ++row) {
      finish_row<T>(a, row);
    }
  });
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(dots, selftaught::Dots, selftaught::SELFTAUGHT_ISA::dots)
SELFTAUGHT_KERNEL(normalize, selftaught::Normalize, selftaught::SELFTAUGHT_ISA::normalize)
SELFTAUGHT_KERNEL(finish, selftaught::Finish, selftaught::SELFTAUGHT_ISA::finish)
