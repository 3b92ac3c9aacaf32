// Square tiles of similarities: packed operands, the register-blocked product, what is left out.
#pragma once

#include "library.h"
#include "simd.h"

namespace selftaught::SELFTAUGHT_ISA {

// Rows and columns of a tile.
constexpr int kBlock = 96;
// Width that is multiplied at once. Products are summed in this order everywhere, so equal rows
// have equal similarities to the bit.
constexpr int64_t kDepth = 128;

// The register block is kRows<T> rows by kVectors<T> vectors; kRows divides kPanel, kPanel kBlock.
#if defined(__AVX512F__)
template <class T>
constexpr int kRows = 8;
template <class T>
constexpr int kVectors = 3;
#elif defined(__aarch64__)
template <class T>
constexpr int kRows = 4;
template <class T>
constexpr int kVectors = sizeof(T) == 4 ? 6 : 4;
#elif defined(__AVX2__)
template <class T>
constexpr int kRows = 4;
template <class T>
constexpr int kVectors = 3;
#else
template <class T>
constexpr int kRows = sizeof(T) == 4 ? 4 : 2;
template <class T>
constexpr int kVectors = sizeof(T) == 4 ? 3 : 4;
#endif

template <class T>
constexpr int kPanel = kVectors<T> * kLanes<T>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

// c (kRows rows of kAcross vectors) = or += sum over steps of a column of a times a row of b. a is
// addressed by the two strides, b holds kAcross vectors a step.
template <class T, int kAcross, int kRowStride, int kStepStride>
inline void multiply(int64_t steps, const T* __restrict a, const T* __restrict b, T* __restrict c,
                     int64_t c_stride, bool add) {
  V<T> sums[kRows<T>][kAcross] = {};
  for (int64_t step = 0; step < steps; ++step) {
    V<T> right[kAcross];
#pragma GCC unroll 8
    for (int v = 0; v < kAcross; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int row = 0; row < kRows<T>; ++row) {
      const V<T> left = all<T>(a[row * kRowStride]);
#pragma GCC unroll 8
      for (int v = 0; v < kAcross; ++v) sums[row][v] += left * right[v];
    }
    a += kStepStride;
    b += kAcross * kLanes<T>;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows<T>; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < kAcross; ++v) {
      T* to = c + row * c_stride + v * kLanes<T>;
      store<T>(to, add ? load(to) + sums[row][v] : sums[row][v]);
    }
  }
}

// Product of two rows, as a double.
template <class T>
double product(const T* x, const T* y, int64_t width) {
  constexpr int kTogether = 8;
  double parts[kTogether] = {}, result = 0;
  int64_t k = 0;
  for (; k + kTogether <= width; k += kTogether) {
    for (int lane = 0; lane < kTogether; ++lane) {
      parts[lane] += static_cast<double>(x[k + lane]) * static_cast<double>(y[k + lane]);
    }
  }
  for (; k < width; ++k) result += static_cast<double>(x[k]) * static_cast<double>(y[k]);
  for (const double part : parts) result += part;
  return result;
}

// Rows packed for `similarities`: per block of kBlock rows, per panel of kPanel rows, the panel's
// values side by side for each position of the width; zeros behind the last row. Also finds the
// largest row length of each block.
template <class T>
class Packed {
 public:
  Packed(const T* rows, int64_t count, int64_t width, int64_t threads)
      : width_(width),
        blocks_(ceil_div(count, kBlock)),
        data_(blocks_ * kBlock * width),
        squares_(blocks_) {
    for_tasks(threads, blocks_, [&](int64_t block, int64_t) { pack(rows, count, block); });
  }

  const T* block(int64_t index) const { return data_.get() + index * kBlock * width_; }

  // Length of the longest row, NaN where any value is.
  double longest() const {
    double result = 0;
    for (int64_t block = 0; block < blocks_; ++block) {
      result = longer(result, squares_[block]);
    }
    return __builtin_sqrt(result);
  }

 private:
  // The larger one; NaN where one is.
  static double longer(double a, double b) { return a != a || a > b ? a : b; }

  void pack(const T* rows, int64_t count, int64_t block) {
    double longest = 0;
    for (int64_t row = 0; row < kBlock; ++row) {
      const int64_t index = block * kBlock + row;
      T* to = data_.get() + block * kBlock * width_ + row / kPanel<T> * kPanel<T> * width_ +
              row % kPanel<T>;
      if (index >= count) {
        for (int64_t k = 0; k < width_; ++k) to[k * kPanel<T>] = 0;
        continue;
      }
      const T* from = rows + index * width_;
      for (int64_t k = 0; k < width_; ++k) to[k * kPanel<T>] = from[k];
      longest = longer(longest, product(from, from, width_));
    }
    squares_[block] = longest;
  }

  int64_t width_, blocks_;
  Buffer<T> data_;
  Buffer<double> squares_;
};

// Tile (row-major, kBlock wide) of the similarities of two packed blocks.
template <class T>
void similarities(const T* x, const T* y, int64_t width, int64_t rows, int64_t columns, T* tile) {
  for (int64_t k = 0; k < width; k += kDepth) {
    const int64_t steps = smaller_of(kDepth, width - k);
    for (int64_t column = 0; column < columns; column += kPanel<T>) {
      const T* right = y + column * width + k * kPanel<T>;
      for (int64_t row = 0; row < rows; row += kRows<T>) {
        const T* left = x + row / kPanel<T> * kPanel<T> * width + k * kPanel<T> + row % kPanel<T>;
        multiply<T, kVectors<T>, 1, kPanel<T>>(steps, left, right, tile + row * kBlock + column, kBlock, k > 0);
      }
    }
  }
}

// Which entries are left out; see Excluded in selftaught/kernels/tiles.py.
struct Pattern {
  int64_t any, offset, half, columns;

  // Left-out columns of a row, or -1.
  int64_t own(int64_t row) const { return any ? row + offset : -1; }
  int64_t partner(int64_t row) const {
    if (!any || !half) return -1;
    return row + offset + (row < half ? half : -half);
  }

  // Does the tile hold left-out entries, or columns behind the last?
  bool touches(int64_t first_row, int64_t first_column) const {
    if (first_column + kBlock > columns) return true;
    if (!any) return false;
    const int64_t distance = first_row + offset - first_column;
    return near(distance) || (half && (near(distance + half) || near(distance - half)));
  }

 private:
  static bool near(int64_t distance) { return distance > -kBlock && distance < kBlock; }
};

// -1 for the columns first_column, ... of a row that count.
template <class T>
inline I<T> counting(const Pattern& pattern, int64_t row, int64_t first_column) {
  using Integer = typename Vector<T>::Integer;
  const auto place = [&](int64_t column) {
    const int64_t relative = column - first_column;
    return static_cast<Integer>(relative < -1 ? -1 : smaller_of(relative, kBlock));
  };
  const I<T> lane = iota<T>();
  return (lane < place(pattern.columns)) & (lane != place(pattern.own(row))) &
         (lane != place(pattern.partner(row)));
}

}  // namespace selftaught::SELFTAUGHT_ISA
