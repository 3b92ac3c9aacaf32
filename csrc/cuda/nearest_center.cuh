// Nearest centre of every row and the MAD loss on its distance, without an (N, K) matrix.
//
// Scores |c'|^2 - 2 x'c' about the mean o of the centres (x' = x - o, c' = c - o) come from TF32
// products; they choose the candidates, and distances are always direct differences in float.
//
// - Rows of float: x' and c' in two TF32 parts each, three products.
// - Rows of 16 bits are TF32 numbers as they are: c' in two parts, two products, and the score is
//   |c'|^2 + 2 oc' - 2 xc'.
//
// A row keeps its KEPT best scores and the least of all others. Every kept centre whose score is
// within the scores' error of the best is measured, and where one that was not kept is within it
// too, all centres are: the index is that of the smallest distance, whatever the scores were.
//
// A block takes 64 rows at a time, a warp 16 of them against CENTERS centres at once. Rows and
// centres come in chunks of COLUMNS columns, one ahead of the products; all centres stay in shared
// memory where they fit.
#pragma once

#include "nearest_exact.cuh"

constexpr int MOST_COUNTED = 2048;  // centres whose rows a block counts in shared memory

// Where a byte of a row lies in a chunk, so that a warp's loads meet no bank conflict.
template <int ROW_BYTES>
DEVICE int spread(int row, int byte) {
  static_assert(ROW_BYTES == 128 || ROW_BYTES == 64, "32 numbers of 4 or 2 bytes");
  const int flip = ROW_BYTES == 128 ? (row & 1) << 2 : (row >> 1 & 1) << 1;
  return row * ROW_BYTES + (byte / 16 ^ flip) * 16 + byte % 16;
}

template <class Number_>
struct AssignShape {
  using Number = Number_;
  using Stored = typename Number::Stored;
  static constexpr bool EXACT = sizeof(Stored) == 2;  // are rows TF32 numbers as they are
  static constexpr int ROWS = 64, CENTERS = 128, COLUMNS = 32, NT = CENTERS / 8;
  static constexpr int RESIDENT = 3;  // more would spill registers
  static constexpr int X_ROW = COLUMNS * int(sizeof(Stored)), C_ROW = COLUMNS * 4;
  static constexpr int ORIGIN = ROWS * X_ROW;     // where the origin's chunk lies behind the rows
  static constexpr int STAGE = ORIGIN + C_ROW, C_STAGE = CENTERS * C_ROW;
  // Error of a product of two vectors as a share of that of their lengths: what the parts leave
  // out, and sums of 8 numbers that are cut off below 24 bits, at the worst.
  static constexpr float ERROR = 0x1p-18f;
  static constexpr float ERROR_PER_COLUMN = 0x1p-22f;
  static_assert(2 * (STAGE + C_STAGE) + MOST_COUNTED * int(sizeof(int)) <= MOST_SHARED,
                "a block has more shared memory than every chip");

  BOTH static int kept_rows(const Assign& a) { return (a.count + 7) / 8 * 8; }
  BOTH static int histogram(const Assign& a) {
    return a.counts && a.count <= MOST_COUNTED ? a.count * int(sizeof(int)) : 0;
  }
  BOTH static int64_t kept_bytes(const Assign& a) {
    return static_cast<int64_t>(kept_rows(a)) * a.padded * 4;
  }
  // Do all centres stay in shared memory?
  BOTH static bool keeps(const Assign& a) {
    return 2 * STAGE + histogram(a) + kept_bytes(a) <= MOST_SHARED;
  }
  BOTH static int bytes(const Assign& a) {
    return 2 * STAGE + histogram(a) + (keeps(a) ? int(kept_bytes(a)) : 2 * C_STAGE);
  }
};

// Four numbers as TF32 operands. High: the number cut off; low: the rest. The multipliers ignore the
// bits below TF32's.
struct Operands {
  uint32_t high[4], low[4];

  DEVICE explicit Operands(float4 v) {
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = device::bits(values[i]) & 0xffffe000u;
      low[i] = device::bits(values[i] - device::from_bits(high[i]));
    }
  }
};

// The chunks of rows and centres in shared memory.
template <class Shape>
struct Chunks {
  using Number = typename Shape::Number;
  using Stored = typename Shape::Stored;
  const Assign& a;
  const bool keeps;
  char *rows, *centers;

  DEVICE explicit Chunks(const Assign& arguments)
      : a(arguments), keeps(Shape::keeps(arguments)), rows(device::shared_memory()),
        centers(rows + 2 * Shape::STAGE) {}

  DEVICE int* histogram() const {
    if (Shape::histogram(a) == 0) return nullptr;
    const int64_t behind = keeps ? Shape::kept_bytes(a) : 2 * Shape::C_STAGE;
    return reinterpret_cast<int*>(centers + behind);
  }

  // Fragments of 8 centres from center `first` on.
  DEVICE int fragments(int first) const {
    return min(Shape::NT, (a.count - first + 7) / 8);
  }

  DEVICE void fetch_centers(char* to, int first, int many, int column) const {
    for (int i = device::thread(); i < many * 8; i += THREADS) {
      const int row = i / 8, part = i % 8, center = first + row;
      const bool wanted = center < a.count;
      const int64_t place = wanted ? static_cast<int64_t>(center) * a.padded + column : 0;
      device::copy_later(to + spread<Shape::C_ROW>(row, 16 * part), a.moved + place + 4 * part,
                         wanted);
    }
  }

  DEVICE void fetch_rows(char* to, int64_t first, int column) const {
    constexpr int SIZE = sizeof(Stored), PARTS = Shape::X_ROW / 16;
    const Stored* x = static_cast<const Stored*>(a.x);
    if (a.x_whole) {
      for (int i = device::thread(); i < Shape::ROWS * PARTS; i += THREADS) {
        const int row = i / PARTS, byte = i % PARTS * 16, d = column + byte / SIZE;
        const bool wanted = first + row < a.rows && d < a.width;
        device::copy_later(to + spread<Shape::X_ROW>(row, byte),
                           wanted ? x + (first + row) * a.stride + d : x, wanted);
      }
    } else {
      for (int i = device::thread(); i < Shape::ROWS * Shape::COLUMNS; i += THREADS) {
        const int row = i / Shape::COLUMNS, d = i % Shape::COLUMNS;
        const bool wanted = first + row < a.rows && column + d < a.width;
        *reinterpret_cast<Stored*>(to + spread<Shape::X_ROW>(row, d * SIZE)) =
            wanted ? x[(first + row) * a.stride + column + d] : Stored(0);
      }
    }
    if (!Shape::EXACT && device::thread() < Shape::C_ROW / 16)
      device::copy_later(to + Shape::ORIGIN + 16 * device::thread(),
                         a.origin + column + 4 * device::thread(), true);
  }

  DEVICE void fetch_all_centers() const {
    const int many = Shape::kept_rows(a);
    for (int column = 0; column < a.padded; column += Shape::COLUMNS)
      fetch_centers(centers + column * 4 * many, 0, many, column);
  }

  DEVICE void fetch(int stage, int64_t tile, int first_center, int column) const {
    fetch_rows(rows + stage * Shape::STAGE, tile * Shape::ROWS, column);
    if (!keeps)
      fetch_centers(centers + stage * Shape::C_STAGE, first_center, 8 * fragments(first_center),
                    column);
  }

  // Numbers 4 (lane % 4) of 16 from `d` on of a row of the chunk: x', or x where that is EXACT.
  DEVICE float4 row_part(const char* chunk, int row, int d) const {
    const int place = d + device::thread() % 4 * 4;
    const auto word = device::load_shared<typename Pack<Number>::Word>(
        chunk + spread<Shape::X_ROW>(row, place * int(sizeof(Stored))));
    if constexpr (Shape::EXACT) return Pack<Number>::open(word);
    const float4 o = *reinterpret_cast<const float4*>(chunk + Shape::ORIGIN + 4 * place);
    return difference(Pack<Number>::open(word), o);
  }

  // s += x'c' over a chunk, for 16 rows of this warp and `many` fragments of centres.
  DEVICE void multiply(float (&s)[Shape::NT][4], int stage, int first_center, int column,
                       int many) const {
    const char* chunk = rows + stage * Shape::STAGE;
    const char* others = keeps ? centers + column * 4 * Shape::kept_rows(a) +
                                     first_center * Shape::C_ROW
                               : centers + stage * Shape::C_STAGE;
    const int lane = device::thread() % LANES, warp = device::thread() / LANES;
#pragma unroll
    for (int d = 0; d < Shape::COLUMNS; d += 16) {
      const Operands upper(row_part(chunk, 16 * warp + lane / 4, d));
      const Operands lower(row_part(chunk, 16 * warp + lane / 4 + 8, d));
#pragma unroll
      for (int n = 0; n < Shape::NT; ++n) {
        if (n >= many) break;
        const int byte = 4 * (d + lane % 4 * 4);
        const Operands c(device::load_shared<float4>(
            others + spread<Shape::C_ROW>(8 * n + lane / 4, byte)));
        // Which of 8 columns is which matters to nobody, as long as both sides agree.
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          const uint32_t high[4] = {upper.high[e], lower.high[e], upper.high[e + 1],
                                    lower.high[e + 1]};
          if constexpr (!Shape::EXACT) {
            const uint32_t low[4] = {upper.low[e], lower.low[e], upper.low[e + 1],
                                     lower.low[e + 1]};
            device::multiply_add_tf32(s[n], low, c.high[e], c.high[e + 1]);
          }
          device::multiply_add_tf32(s[n], high, c.low[e], c.low[e + 1]);
          device::multiply_add_tf32(s[n], high, c.high[e], c.high[e + 1]);
        }
      }
    }
  }
};

template <class Shape>
DEVICE void add_scores(const Assign& a, Best (&best)[2], const float (&s)[Shape::NT][4],
                       int first_center, int many) {
#pragma unroll
  for (int n = 0; n < Shape::NT; ++n) {
    if (n >= many) break;
    const int center = first_center + column_in_warp(n, 0);
    const float2 added = *reinterpret_cast<const float2*>(a.added + center);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[half].insert<true>(fmaf(-2, s[n][2 * half], added.x), center);
      best[half].insert<true>(fmaf(-2, s[n][2 * half + 1], added.y), center + 1);
    }
  }
}

template <class Shape>
KERNEL(THREADS, Shape::RESIDENT) assign(ARGUMENT(Assign) a) {
  const Chunks<Shape> chunks(a);
  int* histogram = chunks.histogram();
  if (histogram)
    for (int k = device::thread(); k < a.count; k += THREADS) histogram[k] = 0;
  const int64_t tiles = (a.rows + Shape::ROWS - 1) / Shape::ROWS;
  if (chunks.keeps) chunks.fetch_all_centers();
  int stage = 0;
  chunks.fetch(0, device::block_x(), 0, 0);
  for (int64_t tile = device::block_x(); tile < tiles; tile += a.blocks) {
    Best best[2];
    best[0].start(), best[1].start();
    for (int first = 0; first < a.count; first += Shape::CENTERS) {
      const int many = chunks.fragments(first);
      float s[Shape::NT][4];
#pragma unroll
      for (int n = 0; n < Shape::NT; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = 0;
      for (int column = 0; column < a.padded; column += Shape::COLUMNS) {
        device::await_copies();
        device::sync_block();
        const bool last_chunk = column + Shape::COLUMNS >= a.padded;
        const bool last = last_chunk && first + Shape::CENTERS >= a.count;
        const int64_t next_tile = last ? tile + a.blocks : tile;
        const int next_first = last ? 0 : last_chunk ? first + Shape::CENTERS : first;
        if (next_tile < tiles)
          chunks.fetch(stage ^ 1, next_tile, next_first, last_chunk ? 0 : column + Shape::COLUMNS);
        chunks.multiply(s, stage, first, column, many);
        stage ^= 1;
      }
      add_scores<Shape>(a, best, s, first, many);
    }
    const int64_t row = tile * Shape::ROWS + device::thread() / LANES * 16;
    const Exact<Shape> exact = {a};
    exact.settle(best[0], row, histogram);
    exact.settle(best[1], row + 8, histogram);
  }
  if (!histogram) return;
  device::sync_block();
  for (int k = device::thread(); k < a.count; k += THREADS)
    if (histogram[k] != 0) device::add_to(a.counts + k, histogram[k]);
}
