// One pass over rows, a warp per row: lengths and half-precision operands, products, gradients.
#pragma once

#include "tile.cuh"

constexpr int WIDEST_ROW = 256;
constexpr int PER_LANE = WIDEST_ROW / LANES;
constexpr float TINY = 1.17549435e-38f;  // rows with nothing larger count as zero

DEVICE float sum_warp(float v) {
  for (int lanes = 1; lanes < LANES; lanes *= 2) v += device::shuffle_xor(v, lanes);
  return v;
}

DEVICE int row_of_warp() {
  return device::block_x() * (THREADS / LANES) + device::thread() / LANES;
}

struct Prepare {
  const float* raw;    // (count, width)
  const float* scale;  // power of two that the operands carry; one number
  float* unit;         // (count, width) rows of length 1 or 0, or null: not normalised
  float* inverse;      // (count,) inverse lengths, with `unit`
  float* length;       // (count,) lengths of the rows that are used
  Half* operands;      // (count, padded) or (count, 2 padded) where split
  int count, width, padded, split;
};

KERNEL(THREADS, 1) prepare(ARGUMENT(Prepare) a) {
  const int row = row_of_warp(), lane = device::thread() % LANES;
  if (row >= a.count) return;
  float v[PER_LANE], most = 0;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + LANES * i;
    v[i] = d < a.width ? a.raw[static_cast<int64_t>(row) * a.width + d] : 0;
    most = fmaxf(most, fabsf(v[i]));
  }
  most = max_warp(most);
  const bool zero = most < TINY;
  // Dividing by the largest entry first keeps squares from under- and overflowing.
  float squares = 0;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const float scaled = zero ? 0 * v[i] : v[i] / most;
    squares += scaled * scaled;
    if (a.unit) v[i] = scaled;
  }
  const float root = zero ? 1 : sqrtf(sum_warp(squares));
  const float scale = *a.scale;
  Half* operands = a.operands + static_cast<int64_t>(row) * a.padded * (a.split ? 2 : 1);
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + LANES * i;
    if (a.unit) v[i] /= root;
    if (a.unit && d < a.width) a.unit[static_cast<int64_t>(row) * a.width + d] = v[i];
    if (d >= a.padded) continue;
    const Half high = static_cast<Half>(device::pack(v[i] * scale, 0));
    operands[d] = high;
    if (a.split)
      operands[a.padded + d] =
          static_cast<Half>(device::pack(v[i] * scale - device::half_value(high), 0));
  }
  if (lane != 0) return;
  if (a.unit) a.inverse[row] = zero ? 0 : 1 / (root * most);
  a.length[row] = zero ? 0 : a.unit ? 1 : root * most;
}

struct Dots {
  const float* x;
  const float* y;
  float* result;
  int count, width;
};

KERNEL(THREADS, 1) dots(ARGUMENT(Dots) a) {
  const int row = row_of_warp(), lane = device::thread() % LANES;
  if (row >= a.count) return;
  const int64_t first = static_cast<int64_t>(row) * a.width;
  float sum = 0;
  for (int d = lane; d < a.width; d += LANES) sum += a.x[first + d] * a.y[first + d];
  sum = sum_warp(sum);
  if (lane == 0) a.result[row] = sum;
}

struct Finish {
  const float* sums;
  const float* unit;
  const float* inverse;      // or null: rows were not normalised
  const float* temperature;
  const float* partner;      // or null
  const float* coefficient;  // (count,), with `partner`
  float* gradient;
  int count, width;
};

KERNEL(THREADS, 1) finish(ARGUMENT(Finish) a) {
  const int row = row_of_warp(), lane = device::thread() % LANES;
  if (row >= a.count) return;
  const int64_t first = static_cast<int64_t>(row) * a.width;
  const float coefficient = a.partner ? a.coefficient[row] : 0, temperature = *a.temperature;
  float g[PER_LANE], u[PER_LANE], along = 0;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + LANES * i;
    const bool there = d < a.width;
    g[i] = there ? a.sums[first + d] : 0;
    if (there && a.partner) g[i] = fmaf(coefficient, a.partner[first + d], g[i]);
    g[i] /= temperature;
    u[i] = there && a.inverse ? a.unit[first + d] : 0;
    along = fmaf(g[i], u[i], along);
  }
  along = sum_warp(along);
  const float inverse = a.inverse ? a.inverse[row] : 1;
#pragma unroll
  for (int i = 0; i < PER_LANE; ++i) {
    const int d = lane + LANES * i;
    if (d < a.width) a.gradient[first + d] = (g[i] - along * u[i]) * inverse;
  }
}
