// The gradient pass: rows of W Y, where W is made of exp(X Y^T) tile by tile and never stored.
//
// Like attention: a block of threads owns ROWS rows of x, walks over tiles of y's rows, and turns
// the sums of X Y^T in its registers into the left operand of the second product. A row has one
// owner, so nothing is added atomically.
#pragma once

#include "tile.cuh"

struct WeightedSums {
  const Half* x;
  const Half* y;
  const Ranges* ranges;
  const float4* row_side;     // see Sides in ranges.cuh
  const float4* column_side;
  const int64_t* row_class;   // or null
  const int64_t* column_class;
  const float* positive;      // (rows,), read where `slope`
  float* sums;                // (chunks, rows, width), one chunk per block_y
  float* slope;               // (chunks, rows) or null
  int rows, columns, width;
  int chunk;                  // columns that one block takes
  Exclusion excluded;
};

template <int WIDTH_, bool SPLIT_, int MT_, int COLUMNS_, int STAGES_>
struct WeightedSumsShape {
  static constexpr int WIDTH = WIDTH_, MT = MT_, COLUMNS = COLUMNS_, STAGES = STAGES_;
  static constexpr bool SPLIT = SPLIT_;
  using Rows = Operand<WIDTH, SPLIT>;
  // 4 warps one below the other; a warp makes PART columns of a tile at a time.
  static constexpr int ROWS = 64 * MT, PART = SPLIT && WIDTH == 256 ? 16 : 32;
  static constexpr int OWN = ROWS * Rows::BYTES, SIDES = COLUMNS * 16;
  static constexpr int WALKED = COLUMNS * Rows::BYTES + SIDES;
  static constexpr int BYTES = OWN + STAGES * WALKED + ROWS * 20;
  static_assert(BYTES <= MOST_SHARED, "a block has more shared memory than every chip");
};

// What a warp's rows are weighed with; pointers start at the warp's first row.
struct RowFacts {
  const float4* side;
  const float* positive;
};

template <class Shape>
struct Gradient {
  static constexpr int MT = Shape::MT, NT = Shape::PART / 8, WT = Shape::WIDTH / 8;
  static constexpr int GROUP = 8;
  using Rows = typename Shape::Rows;
  float sum[MT][WT][4], slope[MT][2];

  DEVICE void start() {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int n = 0; n < WT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[m][n][e] = 0;
      slope[m][0] = slope[m][1] = 0;
    }
  }

  // Products -> weights with one exp each; SAFE ranges, neither classes nor slope.
  DEVICE static void weigh_fast(float (&s)[MT][NT][4], const Ranges& r, const RowFacts& rows,
                                const float4* column_side) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float both = rows.side[row_in_warp(m, e)].x + column_side[column_in_warp(n, e)].x;
          s[m][n][e] = both * device::exp2_fast(fmaf(s[m][n][e], r.factor, -r.shift));
        }
  }

  // Products -> weights for any range, with classes and slope where asked for.
  DEVICE void weigh(float (&s)[MT][NT][4], const WeightedSums& a, const Ranges& r,
                    const RowFacts& rows, const float4* column_side, int row_first,
                    int column_first) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int in_warp = row_in_warp(m, e), row = row_first + in_warp;
        const float4 own = rows.side[in_warp];
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          const int column = column_first + column_in_warp(n, e);
          const float4 other = column_side[column_in_warp(n, e)];
          const bool counts = row < a.rows && column < a.columns &&
                              !is_excluded(a.excluded, row, column);
          const float logit = s[m][n][e] * r.factor;
          const float softmax = own.y * device::exp2_fast(logit - own.z);
          float weight = softmax + other.y * device::exp2_fast(logit - other.z);
          if (counts && a.row_class && a.row_class[row] == a.column_class[column])
            weight -= own.w + other.w;
          if (counts && a.slope)
            slope[m][e / 2] += softmax * (logit * LN_2 - rows.positive[in_warp]);
          s[m][n][e] = counts ? weight : 0;
        }
      }
  }

  DEVICE static void leave_out(float (&s)[MT][NT][4], const WeightedSums& a, int row_first,
                               int column_first) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = row_first + row_in_warp(m, e);
          const int column = column_first + column_in_warp(n, e);
          if (row >= a.rows || column >= a.columns || is_excluded(a.excluded, row, column))
            s[m][n][e] = 0;
        }
  }

  // sum += weights times rows of y. Pairs of neighbouring sum fragments are a left fragment.
  // Leaving out groups of columns that are padding also keeps the compiler from mixing groups,
  // which costs more registers than there are.
  DEVICE void add(const float (&s)[MT][NT][4], const char* y, int y_row, int width) {
    uint32_t high[MT][NT / 2][4], low[MT][NT / 2][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int k = 0; k < NT / 2; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float one = s[m][2 * k + i / 2][i % 2 * 2];
          const float two = s[m][2 * k + i / 2][i % 2 * 2 + 1];
          const uint32_t both = device::pack(one, two);
          high[m][k][i] = both;
          if constexpr (Shape::SPLIT)
            low[m][k][i] = device::pack(one - device::half_value(static_cast<Half>(both)),
                                        two - device::half_value(static_cast<Half>(both >> 16)));
        }
#pragma unroll
    for (int n = 0; n < WT; n += 2) {
      if (n % GROUP == 0 && 8 * n >= width) break;
      if constexpr (Shape::SPLIT) add_split(high, low, y, y_row, n);
      else add_whole(high, y, y_row, n);
    }
  }

  DEVICE void add_whole(const uint32_t (&w)[MT][NT / 2][4], const char* y, int y_row, int n) {
#pragma unroll
    for (int k = 0; k < NT / 2; ++k) {
      uint32_t b[4];
      Rows::right_rows(b, y, y_row + 16 * k, n);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        device::multiply_add(sum[m][n], w[m][k], b[0], b[1]);
        device::multiply_add(sum[m][n + 1], w[m][k], b[2], b[3]);
      }
    }
  }

  // Tensor cores truncate their sums, so a long sum is taken outside, correctly rounded, and the
  // small products come first.
  DEVICE void add_split(const uint32_t (&high)[MT][NT / 2][4],
                        const uint32_t (&low)[MT][NT / 2][4], const char* y, int y_row, int n) {
    float part[MT][2][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e) part[m][0][e] = part[m][1][e] = 0;
    uint32_t b[NT / 2][4];
#pragma unroll
    for (int k = 0; k < NT / 2; ++k) {
      uint32_t small[4];
      Rows::right_rows(b[k], y, y_row + 16 * k, n);
      Rows::right_rows(small, y, y_row + 16 * k, WT + n);
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          device::multiply_add(part[m][i], low[m][k], b[k][2 * i], b[k][2 * i + 1]);
          device::multiply_add(part[m][i], high[m][k], small[2 * i], small[2 * i + 1]);
        }
    }
#pragma unroll
    for (int k = 0; k < NT / 2; ++k)
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          device::multiply_add(part[m][i], high[m][k], b[k][2 * i], b[k][2 * i + 1]);
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[m][n + i][e] += part[m][i][e];
  }

  DEVICE void write(const WeightedSums& a, const Ranges& r, int row_first) {
    const int64_t base = static_cast<int64_t>(device::block_y()) * a.rows;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = row_first + row_in_warp(m, e);
        if (row >= a.rows) continue;
        float* to = a.sums + (base + row) * a.width;
#pragma unroll
        for (int n = 0; n < WT; ++n) {
          const int column = column_in_warp(n, e);
          if (column < a.width) to[column] = sum[m][n][e] * r.sums_scale;
        }
      }
    if (!a.slope) return;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const float total = sum_quad(slope[m][e / 2]) / r.weight_scale;
        const int row = row_first + row_in_warp(m, e);
        if (device::thread() % 4 == 0 && row < a.rows) a.slope[base + row] = total;
      }
  }
};

// Starts to copy the rows first.. of y and what their columns are weighed with.
template <class Shape>
DEVICE void fetch_walked(char* to, const WeightedSums& a, int first) {
  Shape::Rows::template fetch<Shape::COLUMNS>(to + Shape::SIDES, a.y, first, a.columns);
  const int i = device::thread(), column = first + i;
  if (i < Shape::COLUMNS) {
    const bool wanted = column < a.columns;
    device::copy_later(to + 16 * i, a.column_side + (wanted ? column : 0), wanted);
  }
}

template <class Shape>
DEVICE void fetch_own(char* own, float4* side, float* positive, const WeightedSums& a, int first) {
  Shape::Rows::template fetch<Shape::ROWS>(own, a.x, first, a.rows);
  for (int i = device::thread(); i < Shape::ROWS; i += THREADS) {
    const bool there = first + i < a.rows;
    side[i] = there ? a.row_side[first + i] : make_float4(0, 0, 0, 0);
    positive[i] = there && a.slope ? a.positive[first + i] : 0;
  }
}

template <class Shape, bool FAST>
DEVICE void gradient(const WeightedSums& a, const Ranges& r) {
  using Rows = typename Shape::Rows;
  char* own = device::shared_memory();
  char* walked = own + Shape::OWN;
  float4* side = reinterpret_cast<float4*>(walked + Shape::STAGES * Shape::WALKED);
  float* positive = reinterpret_cast<float*>(side + Shape::ROWS);
  const int warp_row = device::thread() / LANES * (16 * Shape::MT);
  const int first = device::block_x() * Shape::ROWS, row = first + warp_row;
  const int end = min((device::block_y() + 1) * a.chunk, a.columns);
  int column = device::block_y() * a.chunk, stage = 0;

  Gradient<Shape> state;
  state.start();
  fetch_own<Shape>(own, side, positive, a, first);
  fetch_walked<Shape>(walked, a, column);
  const RowFacts facts{side + warp_row, positive + warp_row};
  for (; column < end; column += Shape::COLUMNS) {
    const int after = column + Shape::COLUMNS;
    device::await_copies();
    device::sync_block();
    const char* now = walked + stage * Shape::WALKED;
    if (Shape::STAGES == 2) {
      stage ^= 1;
      if (after < end) fetch_walked<Shape>(walked + stage * Shape::WALKED, a, after);
    }
#pragma unroll 1
    for (int part = 0; part < Shape::COLUMNS; part += Shape::PART) {
      float s[Shape::MT][Shape::PART / 8][4];
      const float4* column_side = reinterpret_cast<const float4*>(now) + part;
      Rows::scores(s, own, warp_row, now + Shape::SIDES, part);
      if constexpr (FAST) {
        state.weigh_fast(s, r, facts, column_side);
        if (column + part + Shape::PART > a.columns || row + 16 * Shape::MT > a.rows ||
            may_exclude(a.excluded, row, 16 * Shape::MT, column + part, Shape::PART))
          state.leave_out(s, a, row, column + part);
      } else {
        state.weigh(s, a, r, facts, column_side, row, column + part);
      }
      state.add(s, now + Shape::SIDES, part, a.width);
    }
    if (Shape::STAGES == 1) {
      device::sync_block();
      if (after < end) fetch_walked<Shape>(walked, a, after);
    }
  }
  state.write(a, r, row);
}

template <class Shape>
KERNEL(THREADS, 1) weighted_sums(ARGUMENT(WeightedSums) a) {
  const Ranges r = *a.ranges;
  if (r.safe != 0 && !a.row_class && !a.slope) gradient<Shape, true>(a, r);
  else gradient<Shape, false>(a, r);
}

// The sum of (chunks, count) over chunks, in order.
struct Gather {
  const float* parts;
  float* sums;
  int64_t count;
  int chunks;
};

KERNEL(THREADS, 1) gather(ARGUMENT(Gather) a) {
  const int64_t i = static_cast<int64_t>(device::block_x()) * THREADS + device::thread();
  if (i >= a.count) return;
  float sum = 0;
  for (int chunk = 0; chunk < a.chunks; ++chunk) sum += a.parts[chunk * a.count + i];
  a.sums[i] = sum;
}
