// Gradients of the squared distance to the nearest centre, or of the MAD loss on it.
#pragma once

#include "numbers.cuh"

constexpr int GRADIENT_ROWS = THREADS / 4;

struct NearestGradient {
  const float* grad;      // one for every row, `grad_stride` apart
  const void* x;          // (rows, width) of the kernel's number, `stride` of them between rows
  const float* centers;   // (count, width)
  const int64_t* labels;  // (rows,), or null: of the distance itself
  const float* squared;   // (rows,)
  const int64_t* index;   // (rows,)
  void* by_x;             // (rows, width) of the kernel's number
  const int64_t* order;   // (rows,) the rows of centre 0, then those of 1 ...
  const int64_t* bounds;  // (count + 1,) where each centre's rows begin in it
  float* parts;           // (splits, count, width) of the gradient by centers
  int64_t rows, stride, grad_stride;
  int count, width, splits, x_whole, centers_whole;
  float eta, eps;
};

// The gradient by a row is this times (row - centre).
DEVICE float coefficient(const NearestGradient& a, int64_t row) {
  if (a.index[row] < 0) return NAN;
  const float slope = 2 * a.grad[row * a.grad_stride];
  if (!a.labels) return slope;
  const int64_t label = a.labels[row];
  const float distance = a.squared[row] + a.eps;
  // Divided twice: the square of a small eps is 0 in float.
  const float steep = -a.eta / distance / distance;
  return slope * (label == 0 ? 1 : label == 1 ? a.eta : label == -1 ? steep : NAN);
}

DEVICE const float* nearest_of(const NearestGradient& a, int64_t row) {
  return a.centers + (a.index[row] < 0 ? 0 : a.index[row]) * a.width;
}

// Four lanes take a row. Grid: (rows / GRADIENT_ROWS, up).
template <class Number>
KERNEL(THREADS, 4) nearest_by_rows(ARGUMENT(NearestGradient) a) {
  using Stored = typename Number::Stored;
  const int64_t row = static_cast<int64_t>(device::block_x()) * GRADIENT_ROWS +
                      device::thread() / 4;
  if (row >= a.rows) return;
  const float by = coefficient(a, row);
  const float* center = nearest_of(a, row);
  const Stored* x = static_cast<const Stored*>(a.x) + row * a.stride;
  Stored* to = static_cast<Stored*>(a.by_x) + row * a.width;
#pragma unroll 4
  for (int d = device::thread() % 4 * 4; d < a.width; d += 16) {
    const float4 v = difference(read_four<Number>(x, d, a.width, a.x_whole != 0),
                                read_four<SingleNumber>(center, d, a.width, a.centers_whole != 0));
    write_four<Number>(to, d, a.width, a.x_whole != 0,
                       make_float4(by * v.x, by * v.y, by * v.z, by * v.w));
  }
}

// A part of the rows of a centre, added in their order. Grid: (count, splits).
template <class Number>
KERNEL(THREADS, 4) nearest_by_centers(ARGUMENT(NearestGradient) a) {
  const int center = device::block_x();
  const int64_t begin = a.bounds[center], end = a.bounds[center + 1];
  const int64_t share = (end - begin + a.splits - 1) / a.splits;
  const int64_t first = begin + device::block_y() * share;
  const int64_t last = first + share < end ? first + share : end;
  const int64_t place = static_cast<int64_t>(device::block_y()) * a.count + center;
  for (int d = device::thread(); d < a.width; d += THREADS) {
    const float c = a.centers[static_cast<int64_t>(center) * a.width + d];
    double total = 0;
#pragma unroll 4
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = a.order[i];
      const auto* x = static_cast<const typename Number::Stored*>(a.x) + row * a.stride;
      total -= coefficient(a, row) * (Number::value(x[d]) - c);
    }
    a.parts[place * a.width + d] = static_cast<float>(total);
  }
}
