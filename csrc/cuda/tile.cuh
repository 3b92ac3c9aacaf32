// Blocks of half-precision rows in shared memory, their products, and the entries left out.
//
// An operand row is WIDTH halves, then WIDTH more with what the first left over where SPLIT. A row
// in shared memory keeps its 16-byte chunk c at place c ^ (row % 8), so that matrix loads meet no
// bank conflict.
#pragma once

#include "device.cuh"

constexpr int LANES = 32;
constexpr int THREADS = 128;
constexpr int MOST_SHARED = 99 * 1024;  // bytes a block may have on every chip from sm_80 on
constexpr int CHUNK = 8;  // halves in 16 bytes
constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.693147181f;

using Half = uint16_t;

// What the device decided about a product's range; see ranges.cuh.
struct Ranges {
  float factor;        // products of operands times this are base-2 logits
  float shift;         // subtracted from base-2 logits where `safe`
  float safe;          // 1: no sum of exp2(logit - shift) leaves the range of float
  float weight_scale;  // what brings the weights of the gradient pass into the range of half
  float sums_scale;    // what takes weights times operands back
};

// Which entries are left out; see Excluded in tiles.py. `any` is 0 for none.
struct Exclusion {
  int any, offset, half;
};

DEVICE bool is_excluded(const Exclusion& e, int row, int column) {
  const int away = column - row - e.offset;
  return e.any && (away == 0 || (e.half && away == (row < e.half ? e.half : -e.half)));
}

// May rows first..first+rows-1 and the columns alike hold an excluded entry?
DEVICE bool may_exclude(const Exclusion& e, int row, int rows, int column, int columns) {
  if (!e.any) return false;
  const int least = column - (row + rows - 1) - e.offset;
  const int most = column + columns - 1 - row - e.offset;
  return (least <= 0 && most >= 0) ||
         (e.half && ((least <= e.half && most >= e.half) || (least <= -e.half && most >= -e.half)));
}

template <int WIDTH, bool SPLIT>
struct Operand {
  static constexpr int CHUNKS = WIDTH * (SPLIT ? 2 : 1) / CHUNK;
  static constexpr int BYTES = CHUNKS * 16;

  // Starts to copy rows first..first+ROWS-1; those from `count` on become zeros.
  template <int ROWS>
  DEVICE static void fetch(char* to, const Half* from, int first, int count) {
#pragma unroll 4
    for (int i = device::thread(); i < ROWS * CHUNKS; i += THREADS) {
      const int row = i / CHUNKS, chunk = i % CHUNKS, source = first + row;
      const bool wanted = source < count;
      const int64_t place = wanted ? static_cast<int64_t>(source) * CHUNKS + chunk : 0;
      device::copy_later(to + row * BYTES + (chunk ^ (row % 8)) * 16, from + place * CHUNK, wanted);
    }
  }

  // This lane's place for matrix loads: in row `row` + `lane_row`, chunk `lane_chunk` (0 or 1) of a
  // pair of chunks. `row` counts in eights, so it moves no bits of the swizzle.
  DEVICE static int place(int row, int lane_row, int lane_chunk) {
    return (row + lane_row) * BYTES + (lane_chunk ^ lane_row % 8) * 16;
  }

  // The same place in the pair of chunks from `chunk` on, an even number.
  DEVICE static const char* at(const char* block, int place, int chunk) {
    return block + (place ^ chunk % 8 * 16) + chunk / 8 * 128;
  }

  // (16, 16) fragment of A: rows from `row`, halves from `chunk` * 8.
  DEVICE static void left(uint32_t (&a)[4], const char* block, int row, int chunk) {
    const int lane = device::thread() % LANES;
    device::load_matrices(a, at(block, place(row, lane % 16, lane / 16), chunk));
  }

  // Two (16, 8) fragments of B whose columns are rows of the block: b[0..1] and b[2..3].
  DEVICE static void right(uint32_t (&b)[4], const char* block, int row, int chunk) {
    const int lane = device::thread() % LANES;
    device::load_matrices(b, at(block, place(row, lane % 8 + lane / 16 * 8, lane / 8 % 2), chunk));
  }

  // Two (16, 8) fragments of B whose rows are rows of the block, columns from `chunk` * 8.
  DEVICE static void right_rows(uint32_t (&b)[4], const char* block, int row, int chunk) {
    const int lane = device::thread() % LANES;
    device::load_transposed(b, at(block, place(row, lane % 16, lane / 16), chunk));
  }

  // s = A B^T for MT * 16 rows of `a` and NT * 8 rows of `b`. The small products of SPLIT come
  // first: sums of tensor cores are truncated, which costs least while they are small.
  template <int MT, int NT>
  DEVICE static void scores(float (&s)[MT][NT][4], const char* a, int a_row, const char* b,
                            int b_row) {
    constexpr int LOW = WIDTH / CHUNK;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
    if constexpr (SPLIT) {
      add_products(s, a, a_row, LOW, b, b_row, 0);
      add_products(s, a, a_row, 0, b, b_row, LOW);
    }
    add_products(s, a, a_row, 0, b, b_row, 0);
  }

 private:
  template <int MT, int NT>
  DEVICE static void add_products(float (&s)[MT][NT][4], const char* a, int a_row, int a_chunk,
                                  const char* b, int b_row, int b_chunk) {
    static_assert(NT % 2 == 0, "fragments of B come in pairs");
#pragma unroll (SPLIT ? 2 : 4)
    for (int k = 0; k < WIDTH / CHUNK; k += 2) {
      uint32_t left_parts[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) left(left_parts[m], a, a_row + 16 * m, a_chunk + k);
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        uint32_t pair[4];
        right(pair, b, b_row + 8 * n, b_chunk + k);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          device::multiply_add(s[m][n], left_parts[m], pair[0], pair[1]);
          device::multiply_add(s[m][n + 1], left_parts[m], pair[2], pair[3]);
        }
      }
    }
  }
};

// Sums and largest values over the 4 lanes that share a row of a sum fragment, or over a warp.
DEVICE float sum_quad(float v) {
  v += device::shuffle_xor(v, 1);
  return v + device::shuffle_xor(v, 2);
}

DEVICE float max_warp(float v) {
  for (int lanes = 1; lanes < LANES; lanes *= 2) v = fmaxf(v, device::shuffle_xor(v, lanes));
  return v;
}

DEVICE float max_quad(float v) {
  v = fmaxf(v, device::shuffle_xor(v, 1));
  return fmaxf(v, device::shuffle_xor(v, 2));
}

// Where this lane's entry e of fragment (m, n) lies in its warp's tile.
DEVICE int row_in_warp(int m, int e) {
  return 16 * m + device::thread() % LANES / 4 + 8 * (e / 2);
}

DEVICE int column_in_warp(int n, int e) { return 8 * n + 2 * (device::thread() % 4) + e % 2; }
