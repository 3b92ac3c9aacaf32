// Log-sums of exp over rows and columns of X Y^T without the matrix, with no atomics.
//
// A block of threads owns F rows of x and walks over blocks of F rows of y, block (own + d) mod
// `circle` at distance d. Sums of the own rows stay in registers. With `walked` the same exps give
// the sums of y's rows: at a distance every block of y is met once, so each (distance, row) has
// one writer, and `merge` adds them in order. Where y is x, distances up to half the circle do.
#pragma once

#include "tile.cuh"

struct LogSums {
  const Half* x;
  const Half* y;
  const Ranges* ranges;
  float* own;     // (chunks, rows), one chunk per block_y
  float* walked;  // (distances of this launch, warps across, columns) or null
  int rows, columns;
  int circle;     // number of blocks on the circle
  int symmetric;  // y is x: distance 0 gives no walked sums
  int first, last, chunk;  // distances of this launch, and how many of them a block takes
  Exclusion excluded;
};

// Is the tile of blocks `own` and (own + distance) mod circle anybody's work?
BOTH bool is_visited(int own, int distance, int circle, int symmetric, int own_blocks,
                     int walked_blocks) {
  const int other = (own + distance) % circle;
  return own < own_blocks && other < walked_blocks &&
         !(symmetric && 2 * distance == circle && own >= circle / 2);
}

// Sums are plain (shift taken off) where safe, else base-2 logs.
constexpr float LOWEST = -1e38f;

template <int WIDTH_, bool SPLIT_, int F_, int W_, int STAGES_>
struct LogSumsShape {
  static constexpr int WIDTH = WIDTH_, F = F_, W = W_, STAGES = STAGES_;
  static constexpr int RESIDENT = SPLIT_ ? 2 : 3;  // more would spill registers
  using Rows = Operand<WIDTH, SPLIT_>;
  // 2 x 2 warps share a (W, F) tile: rows of y go down, own rows across.
  static constexpr int DOWN = 2, ACROSS = 2;
  static constexpr int MT = W / 16 / DOWN, NT = F / 8 / ACROSS;
  static constexpr int OWN = F * Rows::BYTES, WALKED = W * Rows::BYTES;
  static constexpr int BYTES = OWN + STAGES * WALKED + DOWN * F * int(sizeof(float));
  static_assert(BYTES <= MOST_SHARED, "a block has more shared memory than every chip");

  DEVICE static void sync() { device::sync_block(); }
};

template <class Shape, bool SAFE>
struct Walk {
  static constexpr int MT = Shape::MT, NT = Shape::NT;
  float sum[NT][2], most[NT][2];

  DEVICE void start() {
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) sum[n][e] = 0, most[n][e] = LOWEST;
  }

  // Base-2 logits, or exp2 of them less the shift where SAFE; what does not count becomes nothing.
  DEVICE static void exponents(float (&s)[MT][NT][4], const LogSums& a, const Ranges& r,
                               int walked_row, int own_row) {
    const bool whole = walked_row + 16 * MT <= a.columns && own_row + 8 * NT <= a.rows &&
                       !may_exclude(a.excluded, own_row, 8 * NT, walked_row, 16 * MT);
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[m][n][e] = SAFE ? device::exp2_fast(fmaf(s[m][n][e], r.factor, -r.shift))
                            : s[m][n][e] * r.factor;
    if (whole) return;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = walked_row + row_in_warp(m, e), row = own_row + column_in_warp(n, e);
          if (row >= a.rows || column >= a.columns || is_excluded(a.excluded, row, column))
            s[m][n][e] = SAFE ? 0.0f : -INFINITY;
        }
  }

  DEVICE void add_own(const float (&s)[MT][NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float base = 0;
        if constexpr (!SAFE) {
          base = most[n][e];
#pragma unroll
          for (int m = 0; m < MT; ++m) base = fmaxf(base, fmaxf(s[m][n][e], s[m][n][e + 2]));
          sum[n][e] *= device::exp2_fast(most[n][e] - base);
          most[n][e] = base;
        }
#pragma unroll
        for (int m = 0; m < MT; ++m)
          sum[n][e] += SAFE ? s[m][n][e] + s[m][n][e + 2]
                            : device::exp2_fast(s[m][n][e] - base) +
                                  device::exp2_fast(s[m][n][e + 2] - base);
      }
  }

  DEVICE static void write_walked(const float (&s)[MT][NT][4], float* to, int walked_row,
                                  int columns) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        float total = 0, base = LOWEST;
        if constexpr (!SAFE) {
#pragma unroll
          for (int n = 0; n < NT; ++n) base = fmaxf(base, fmaxf(s[m][n][e], s[m][n][e + 1]));
          base = max_quad(base);
        }
#pragma unroll
        for (int n = 0; n < NT; ++n)
          total += SAFE ? s[m][n][e] + s[m][n][e + 1]
                        : device::exp2_fast(s[m][n][e] - base) +
                              device::exp2_fast(s[m][n][e + 1] - base);
        total = sum_quad(total);
        const int row = walked_row + row_in_warp(m, e);
        if (device::thread() % 4 == 0 && row < columns)
          to[row] = SAFE ? total : base + log2f(total);
      }
  }

  // Adds the lanes and warps that share own rows and writes F sums; `room`: F floats per warp down.
  DEVICE void write_own(float* to, float* room, int own_first, int rows) {
    const int lane = device::thread() % LANES, warp = device::thread() / LANES;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float base = most[n][e], total = sum[n][e];
#pragma unroll
        for (int lanes = 4; lanes < LANES; lanes *= 2) {
          if constexpr (!SAFE) {
            const float higher = fmaxf(base, device::shuffle_xor(base, lanes));
            total *= device::exp2_fast(base - higher);
            base = higher;
          }
          total += device::shuffle_xor(total, lanes);
        }
        if (lane < 4)
          room[warp / Shape::ACROSS * Shape::F + warp % Shape::ACROSS * (8 * NT) +
               column_in_warp(n, e)] = SAFE ? total : base + log2f(total);
      }
    Shape::sync();
    const int i = device::thread();
    if (i >= Shape::F || own_first + i >= rows) return;
    float base = LOWEST, total = 0;
    if constexpr (!SAFE)
      for (int down = 0; down < Shape::DOWN; ++down) base = fmaxf(base, room[down * Shape::F + i]);
    for (int down = 0; down < Shape::DOWN; ++down) {
      const float part = room[down * Shape::F + i];
      total += SAFE ? part : device::exp2_fast(part - base);
    }
    to[own_first + i] = SAFE ? total : base + log2f(total);
  }
};

// The next of this block's tiles from number t on that is anybody's work, or `end`.
template <class Shape>
DEVICE int next_tile(const LogSums& a, int begin, int t, int end) {
  constexpr int PARTS = Shape::F / Shape::W;
  const int own_blocks = (a.rows + Shape::F - 1) / Shape::F;
  for (; t < end; ++t) {
    const int distance = begin + t / PARTS;
    const int row = (device::block_x() + distance) % a.circle * Shape::F + t % PARTS * Shape::W;
    if (row < a.columns && is_visited(device::block_x(), distance, a.circle, a.symmetric,
                                      own_blocks, a.circle))
      break;
  }
  return t;
}

template <class Shape, bool SAFE>
DEVICE void walk(const LogSums& a, const Ranges& r) {
  using Rows = typename Shape::Rows;
  constexpr int F = Shape::F, W = Shape::W, PARTS = F / W;
  char* own = device::shared_memory();
  char* walked = own + Shape::OWN;
  float* room = reinterpret_cast<float*>(walked + Shape::STAGES * Shape::WALKED);
  const int warp = device::thread() / LANES, own_first = device::block_x() * F;
  const int begin = a.first + device::block_y() * a.chunk;
  const int end = (min(begin + a.chunk, a.last) - begin) * PARTS;
  const auto row_of = [&](int t) {
    return (device::block_x() + begin + t / PARTS) % a.circle * F + t % PARTS * W;
  };

  Walk<Shape, SAFE> state;
  state.start();
  int t = next_tile<Shape>(a, begin, 0, end), stage = 0;
  Rows::template fetch<F>(own, a.x, own_first, a.rows);
  if (t < end) Rows::template fetch<W>(walked, a.y, row_of(t), a.columns);
  while (t < end) {
    const int after = next_tile<Shape>(a, begin, t + 1, end);
    device::await_copies();
    device::sync_block();
    const char* now = walked + stage * Shape::WALKED;
    if (Shape::STAGES == 2) {
      stage ^= 1;
      if (after < end)
        Rows::template fetch<W>(walked + stage * Shape::WALKED, a.y, row_of(after), a.columns);
    }
    float s[Shape::MT][Shape::NT][4];
    const int down = warp / 2 * (W / 2), across = warp % 2 * (F / 2);
    Rows::scores(s, now, down, own, across);
    const int walked_row = row_of(t) + down, own_row = own_first + across;
    state.exponents(s, a, r, walked_row, own_row);
    state.add_own(s);
    const int distance = begin + t / PARTS;
    if (a.walked && !(a.symmetric && distance == 0)) {
      const int64_t slot = Shape::ACROSS * (distance - a.first) + warp % Shape::ACROSS;
      state.write_walked(s, a.walked + slot * a.columns, walked_row, a.columns);
    }
    if (Shape::STAGES == 1) {
      device::sync_block();
      if (after < end) Rows::template fetch<W>(walked, a.y, row_of(after), a.columns);
    }
    t = after;
  }
  device::await_copies();  // those of a block that had no tile
  float* to = a.own + static_cast<int64_t>(device::block_y()) * a.rows;
  state.write_own(to, room, own_first, a.rows);
}

template <class Shape>
KERNEL(THREADS, Shape::RESIDENT) log_sums(ARGUMENT(LogSums) a) {
  const Ranges r = *a.ranges;
  if (r.safe != 0) walk<Shape, true>(a, r);
  else walk<Shape, false>(a, r);
}

struct Merge {
  const Ranges* ranges;
  const float* own;     // (chunks, count) or null
  const float* walked;  // (last - first, parts, count) or null
  float* total;         // (count,), what earlier launches gave; read unless `begin`
  float* result;        // (count,) natural logs, or null before the last launch
  int count, chunks;
  int block;            // rows in a block of the circle
  int circle, symmetric, own_blocks, first, last;
  int begin;
  int parts;
};

// Calls `use` with every sum of row i, in an order that never changes.
template <class Use>
DEVICE void each_part(const Merge& a, int i, Use use) {
  if (!a.begin) use(a.total[i]);
  if (a.own)
    for (int chunk = 0; chunk < a.chunks; ++chunk)
      use(a.own[static_cast<int64_t>(chunk) * a.count + i]);
  if (!a.walked) return;
  for (int distance = a.first + (a.symmetric && a.first == 0); distance < a.last; ++distance) {
    const int own = (i / a.block - distance % a.circle + a.circle) % a.circle;
    if (!is_visited(own, distance, a.circle, a.symmetric, a.own_blocks, a.circle)) continue;
    const int64_t first = static_cast<int64_t>(distance - a.first) * a.parts;
    for (int part = 0; part < a.parts; ++part) use(a.walked[(first + part) * a.count + i]);
  }
}

KERNEL(THREADS, 1) merge(ARGUMENT(Merge) a) {
  const int i = device::block_x() * THREADS + device::thread();
  if (i >= a.count) return;
  const Ranges r = *a.ranges;
  float base = r.shift, sum = 0;
  if (r.safe != 0) {
    each_part(a, i, [&](float part) { sum += part; });
  } else {
    base = LOWEST;
    each_part(a, i, [&](float part) { base = fmaxf(base, part); });
    each_part(a, i, [&](float part) { sum += device::exp2_fast(part - base); });
  }
  const float log = base + log2f(sum);
  if (a.result) a.result[i] = log * LN_2;
  else a.total[i] = r.safe != 0 ? sum : log;
}
