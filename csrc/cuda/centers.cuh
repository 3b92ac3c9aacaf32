// Centres about their mean, before a search: scores of moved rows do not cancel on offset data.
#pragma once

#include "numbers.cuh"

constexpr int SUMMED_CENTERS = 256;  // centres that a block of `sum_centers` adds
constexpr int MOVING_THREADS = 512;
constexpr int SLICES = MOVING_THREADS / THREADS;       // threads that share a column of the mean
constexpr int MOVED_CENTERS = MOVING_THREADS / LANES;  // centres that a block of `move_centers` moves
constexpr int WIDEST_MOVED = 4096;                     // columns whose mean fits in shared memory
static_assert(SLICES * WIDEST_MOVED * int(sizeof(float)) <= MOST_SHARED, "the mean does not fit");

// Sum of a column over rows first..last-1, of the active ones where there are flags.
DEVICE float add_rows(const float* column, int64_t stride, const uint8_t* active, int first,
                      int last) {
  float total = 0;
#pragma unroll 8
  for (int row = first; row < last; ++row)
    if (!active || active[row]) total += column[row * stride];
  return total;
}

DEVICE int count_active(const uint8_t* active, int first, int last) {
  if (!active) return last - first;
  int many = 0;
  for (int row = first; row < last; ++row) many += active[row] != 0;
  return many;
}

// For more centres than a block should add by itself. Grid: (parts, columns / THREADS, up).
struct SumCenters {
  const float* centers;   // (count, width)
  const uint8_t* active;  // (count,) or null
  float* sums;            // (parts, width + 1), the last column is how many were added
  int count, width;
};

KERNEL(THREADS, 1) sum_centers(ARGUMENT(SumCenters) a) {
  const int column = device::block_y() * THREADS + device::thread();
  const int first = device::block_x() * SUMMED_CENTERS;
  const int last = min(first + SUMMED_CENTERS, a.count);
  if (column > a.width) return;
  a.sums[device::block_x() * static_cast<int64_t>(a.width + 1) + column] =
      column == a.width ? static_cast<float>(count_active(a.active, first, last))
                        : add_rows(a.centers + column, a.width, a.active, first, last);
}

// Grid: (places / MOVED_CENTERS). Every block finds the mean anew, in the same order.
struct MoveCenters {
  const float* centers;   // (count, width)
  const uint8_t* active;  // (count,) or null
  const float* sums;      // (parts, width + 1) from `sum_centers`, or null: adds the centres
  float* origin;          // (padded,) mean of the active centres, then zeros
  float* moved;           // (count, padded) centres less the mean; zeros where not active
  float* added;           // (places,) what scores add to -2 products; inf where not active or none
  int count, width, padded, parts, places;
  int exact;  // products are with rows as they are: |c'|^2 + 2 oc' is added, else |c'|^2
};

KERNEL(MOVING_THREADS, 1) move_centers(ARGUMENT(MoveCenters) a) {
  float* mean = reinterpret_cast<float*>(device::shared_memory());  // (SLICES, padded)
  const int slice = device::thread() / THREADS;
  const int rows = a.sums ? a.parts : a.count, stride = a.width + (a.sums ? 1 : 0);
  const float* from = a.sums ? a.sums : a.centers;
  const uint8_t* flags = a.sums ? nullptr : a.active;
  const int share = (rows + SLICES - 1) / SLICES;
  const int first = min(slice * share, rows), last = min(first + share, rows);
  for (int d = device::thread() % THREADS; d < a.width; d += THREADS)
    mean[slice * a.padded + d] = add_rows(from + d, stride, flags, first, last);
  const float many = a.sums ? add_rows(a.sums + a.width, stride, nullptr, 0, rows)
                            : static_cast<float>(count_active(flags, 0, rows));
  device::sync_block();
  for (int d = device::thread(); d < a.padded; d += MOVING_THREADS) {
    float total = 0;
    if (d < a.width)
      for (int i = 0; i < SLICES; ++i) total += mean[i * a.padded + d];
    mean[d] = total / fmaxf(many, 1);
    if (device::block_x() == 0) a.origin[d] = mean[d];
  }
  device::sync_block();

  const int center = device::block_x() * MOVED_CENTERS + device::thread() / LANES;
  const bool there = center < a.count, chosen = there && (!a.active || a.active[center]);
  float added = 0;
  for (int d = device::thread() % LANES; there && d < a.padded; d += LANES) {
    const int64_t row = center;
    const float value = chosen && d < a.width ? a.centers[row * a.width + d] - mean[d] : 0;
    added = fmaf(value, a.exact ? value + 2 * mean[d] : value, added);
    a.moved[row * a.padded + d] = value;
  }
  for (int lanes = 1; lanes < LANES; lanes *= 2) added += device::shuffle_xor(added, lanes);
  if (device::thread() % LANES == 0) a.added[center] = chosen ? added : INFINITY;
}
