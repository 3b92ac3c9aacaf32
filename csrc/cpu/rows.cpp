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

// Products of kCount rows, each summed in the order of `similarities`.
template <class T, int kCount>
void dot_rows(const T* x, const T* y, int64_t width, T* to) {
  for (int64_t k = 0; k < width; k += kDepth) {
    T part[kCount] = {};
    const int64_t end = smaller_of(k + kDepth, width);
    for (int64_t at = k; at < end; ++at) {
#pragma GCC unroll 8
      for (int row = 0; row < kCount; ++row) {
        part[row] = fused(x[row * width + at], y[row * width + at], part[row]);
      }
    }
    for (int row = 0; row < kCount; ++row) to[row] = k > 0 ? to[row] + part[row] : part[row];
  }
}

template <class T>
void dots(const Dots& a) {
  constexpr int kTogether = 8;  // their sums do not wait for each other
  const T *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
  T* to = static_cast<T*>(a.of_rows);
  int64_t row = 0;
  for (; row + kTogether <= a.rows; row += kTogether) {
    dot_rows<T, kTogether>(x + row * a.width, y + row * a.width, a.width, to + row);
  }
  for (; row < a.rows; ++row) {
    dot_rows<T, 1>(x + row * a.width, y + row * a.width, a.width, to + row);
  }
}

// The larger size; a NaN is never dropped: it has to spoil its row.
template <class T>
T larger_size(T largest, T value) {
  const T size = value < 0 ? -value : value;
  return size > largest || size != size ? size : largest;
}

template <class T>
T largest_size(const T* from, int64_t width) {
  V<T> sizes{};
  int64_t k = 0;
  for (; k + kLanes<T> <= width; k += kLanes<T>) {
    const V<T> value = load(from + k), size = choose<T>(value < V<T>{}, -value, value);
    sizes = choose<T>((size > sizes) | (size != size), size, sizes);
  }
  T result = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) result = larger_size(result, sizes[lane]);
  for (; k < width; ++k) result = larger_size(result, from[k]);
  return result;
}

template <class T>
void normalize_row(const T* from, int64_t width, T* unit, T* inverse) {
  constexpr int kTogether = 8;
  const T largest = largest_size(from, width);
  if (largest < std::numeric_limits<T>::min()) {
    for (int64_t k = 0; k < width; ++k) unit[k] = 0;
    *inverse = 0;
    return;
  }
  // Divided by the largest entry first, no square under- or overflows. A float's inverse is exact
  // enough as a double.
  const double scale = static_cast<double>(largest), of_scale = 1 / scale;
  const auto scaled = [&](T value) {
    const double wide = static_cast<double>(value);
    return sizeof(T) == 4 ? wide * of_scale : wide / scale;
  };
  double squares[kTogether] = {}, square = 0;
  int64_t k = 0;
  for (; k + kTogether <= width; k += kTogether) {
    for (int lane = 0; lane < kTogether; ++lane) {
      const double value = scaled(from[k + lane]);
      squares[lane] += value * value;
    }
  }
  for (; k < width; ++k) square += scaled(from[k]) * scaled(from[k]);
  for (const double part : squares) square += part;
  const double length = __builtin_sqrt(square), of_length = 1 / length;
  for (int64_t at = 0; at < width; ++at) {
    const double value = scaled(from[at]);
    unit[at] = static_cast<T>(sizeof(T) == 4 ? value * of_length : value / length);
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
  if (a.partner == nullptr) {
    for (int64_t k = 0; k < a.width; ++k) to[k] = sums[k] / temperature;
  } else {
    const T* partner = static_cast<const T*>(a.partner) + row * a.width;
    const T coefficient = static_cast<const T*>(a.coefficient)[row];
    for (int64_t k = 0; k < a.width; ++k) to[k] = (sums[k] + coefficient * partner[k]) / temperature;
  }
  if (a.inverse == nullptr) return;
  const double along = product(to, unit, a.width);
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
