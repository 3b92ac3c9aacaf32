// What is decided on the device before a pass: shifts, scales, and whether one exp is enough.
#pragma once

#include "tile.cuh"

// Base-2 logits lie in [-bound, bound] and up to 2^count of exp2 of them are added. With the shift
// below, sums stay under 2^110 and single terms above 2^-110. A side's factor in the gradient pass
// is at most 2^14 exp2(shift + bound), which then is below 2^125.
constexpr float HIGHEST_SUM = 110;
constexpr float WIDEST = 220;  // of 2 bound + count
constexpr int WEIGHT_EXPONENT = 13;
constexpr int SETUP_THREADS = 1024;

struct Setup {
  const float* temperature;
  const float* x_scale;    // operands of x are its rows times this power of two; one number
  const float* y_scale;
  const float* x_lengths;  // (rows,) at least the lengths of the rows
  const float* y_lengths;  // (columns,)
  const float* row_weight;  // (rows,) gradients by the losses, or null
  const float* column_weight;
  Ranges* ranges;
  int rows, columns;
};

// Largest magnitude of a vector, in every thread; NaN does not count. `room`: a float per warp.
DEVICE float largest(const float* values, int count, float* room) {
  float most = 0;
  if (values)
    for (int i = device::thread(); i < count; i += SETUP_THREADS)
      most = fmaxf(most, fabsf(values[i]));
  most = max_warp(most);
  if (device::thread() % LANES == 0) room[device::thread() / LANES] = most;
  device::sync_block();
  for (int i = 0; i < SETUP_THREADS / LANES; ++i) most = fmaxf(most, room[i]);
  device::sync_block();
  return most;
}

KERNEL(SETUP_THREADS, 1) set_ranges(ARGUMENT(Setup) a) {
  float* room = reinterpret_cast<float*>(device::shared_memory());
  const float x_length = largest(a.x_lengths, a.rows, room);
  const float y_length = largest(a.y_lengths, a.columns, room);
  const float weight = fmaxf(largest(a.row_weight, a.rows, room),
                             largest(a.column_weight, a.columns, room));
  if (device::thread() != 0) return;
  const float per_dot = LOG2_E / *a.temperature;
  // Rounded operands may be a little longer than the rows.
  const float bound = 1.01f * x_length * y_length * per_dot;
  const float count = log2f(fmaxf(a.rows, a.columns));
  Ranges r;
  r.factor = per_dot / *a.x_scale / *a.y_scale;
  r.shift = fmaxf(0.0f, bound + count - HIGHEST_SUM);
  r.safe = bound + count <= HIGHEST_SUM || 2 * bound + count <= WIDEST;
  const bool usual = weight > 0 && weight < INFINITY;
  // Kept within 2^100, so that the scales themselves are ordinary numbers.
  const int exponent = usual ? WEIGHT_EXPONENT - ilogbf(weight) : 0;
  const int kept = exponent > 100 ? 100 : exponent < -100 ? -100 : exponent;
  r.weight_scale = ldexpf(1, kept);
  r.sums_scale = ldexpf(1, -kept) / *a.y_scale;
  *a.ranges = r;
}

// One row's or column's part in the weights of the gradient pass, ready to use.
//   x: weight * exp2(shift - total), scaled; with it w = exp2(logit - shift) * (row.x + column.x)
//   y: weight, scaled;  z: base-2 total, +inf where nothing is to be added;  w: share, scaled
struct Sides {
  const float* weight;  // (count,), or null: all zeros
  const float* total;
  const float* share;   // or null
  const Ranges* ranges;
  float4* side;         // (count,)
  int count;
};

KERNEL(THREADS, 1) set_sides(ARGUMENT(Sides) a) {
  const int i = device::block_x() * THREADS + device::thread();
  if (i >= a.count) return;
  const Ranges r = *a.ranges;
  float4 side = make_float4(0, 0, INFINITY, 0);
  if (a.weight && a.weight[i] != 0) {
    const float total = a.total[i] * LOG2_E;
    side.y = a.weight[i] * r.weight_scale;
    // A total of -inf: nothing was summed, so there is nothing to weigh.
    side.z = total == -INFINITY ? INFINITY : total;
    side.x = side.y * device::exp2_fast(r.shift - side.z);
  }
  if (a.weight && a.share) side.w = a.share[i] * r.weight_scale;
  a.side[i] = side;
}
