// The search for the nearest centre of a block of rows: scores of all centres in tiles, then direct
// differences for those that the scores leave in doubt.
//
// Centres are ruled out by the score |c - o|^2 - 2 <x - o, c - o>, o the mean of the centres. Those
// whose scores are within the bound of rounding of the best are compared by direct difference. The
// result is the first centre whose direct distance is smallest, however the scores were rounded.
#pragma once

#include "nearest_center.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

// The tile's sums, one vector of every panel column and one broadcast fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kTileVectors = 3;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

constexpr int64_t kBlockRows = 48;                    // rows of one task
constexpr int64_t kChunkVectors = 10 * kTileVectors;  // of centres scored before a look at them
constexpr int64_t kPartialSums = 64;                  // of a direct distance, on every machine
constexpr int64_t kRun = 1024;                        // terms added in T, then in double

// A direct distance is wrong by at most this many units: 16 terms and 6 halvings in T, 3 more.
constexpr double kDirect = 25;

template <class T>
constexpr double kUnit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;

// The values made one by halving, in an order that depends on their number only.
template <int count, class T, class Operation>
inline T folded(const T* values, Operation operation) {
  if constexpr (count == 1) {
    return values[0];
  } else {
    T half[count / 2];
#pragma GCC unroll 32
    for (int i = 0; i < count / 2; ++i) half[i] = operation(values[i], values[i + count / 2]);
    return folded<count / 2>(half, operation);
  }
}

// Squared distance by direct difference; the order of its additions depends on the width only.
template <class T>
T direct(const T* x, const T* c, int64_t width) {
  constexpr int64_t W = kLanes<T>, vectors = kPartialSums / W, quarter = vectors / 4;
  double total = 0;
  for (int64_t d = 0; d < width;) {
    const int64_t end = lesser(width, d + kRun);
    V<T> sums[vectors] = {};
    for (; d + kPartialSums <= end; d += kPartialSums) {
#pragma GCC unroll 32
      for (int64_t v = 0; v < vectors; ++v) {
        const V<T> difference = load(x + d + v * W) - load(c + d + v * W);
        sums[v] += difference * difference;
      }
    }
    for (int64_t v = 0; d < end; ++v, d += W) {
      V<T> difference = {};
      if (d + W <= end) {
        difference = load(x + d) - load(c + d);
      } else {
        for (int64_t i = 0; d + i < end; ++i) difference[i] = x[d + i] - c[d + i];
      }
      sums[v] += difference * difference;
    }
    T lanes[kPartialSums / 4];
    for (int64_t v = 0; v < quarter; ++v) {
      store(lanes + v * W,
            (sums[v] + sums[v + quarter]) + (sums[v + 2 * quarter] + sums[v + 3 * quarter]));
    }
    total += static_cast<double>(folded<kPartialSums / 4>(lanes, [](T a, T b) { return a + b; }));
  }
  return static_cast<T>(total);
}

// The active centres about their mean, in panels of kTileVectors vectors of centres (the last one
// narrower), and a bound on the rounding error of a score: slope * |x - o| + offset.
template <class T>
struct Packed {
  int64_t width, live, vectors;
  Buffer<int64_t> ids;  // (live,) which centre a column is
  Buffer<T> origin;     // (D,)
  Buffer<T> panels;     // each (D, columns of the panel): -2 (c - o)
  Buffer<T> length;     // |c - o|^2, infinite in the padding of the last vector
  Buffer<T> slope, offset;

  Packed(int64_t count, int64_t D)
      : width(D),
        live(count),
        vectors((count + kLanes<T> - 1) / kLanes<T>),
        ids(count),
        origin(D),
        panels(vectors * kLanes<T> * D),
        length(vectors * kLanes<T>),
        slope(vectors * kLanes<T>),
        offset(vectors * kLanes<T>) {}

  void find_origin(const T* centers) {
    const Buffer<double> sums(width);
    __builtin_memset(sums.get(), 0, sizeof(double) * width);
    for (int64_t column = 0; column < live; ++column) {
      const T* center = centers + ids[column] * width;
      for (int64_t d = 0; d < width; ++d) sums[d] += center[d];
    }
    for (int64_t d = 0; d < width; ++d) origin[d] = static_cast<T>(sums[d] / live);
  }

  void fill(const T* centers, int64_t threads) {
    find_origin(centers);
    for_tasks(useful_threads(threads, 4.0 * live * width),
              (vectors + kTileVectors - 1) / kTileVectors,
              [&](int64_t panel, int64_t) { fill_panel(centers, panel); });
  }

  void fill_panel(const T* centers, int64_t panel) {
    const int64_t first = panel * kTileVectors * kLanes<T>;
    const int64_t wide = lesser<int64_t>(kTileVectors, vectors - panel * kTileVectors);
    const int64_t columns = wide * kLanes<T>;
    T* out = panels.get() + first * width;
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t column = first + j;
      const bool padding = column >= live;
      const T* center = padding ? origin.get() : centers + ids[column] * width;
      double squared = 0;
      for (int64_t d = 0; d < width; ++d) {
        const T moved = center[d] - origin[d];
        out[d * columns + j] = -2 * moved;
        squared += static_cast<double>(moved) * moved;
      }
      length[column] = static_cast<T>(padding ? __builtin_inf() : squared);
      // Rounding of x - o and c - o, D additions, the last one; 5 % for the bound's own rounding.
      // The offset has the rounding of the direct distance as well, less its share in |x - o|.
      slope[column] = static_cast<T>(2.1 * (width + 8) * kUnit<T> * __builtin_sqrt(squared));
      offset[column] = static_cast<T>((10 + 2 * kDirect) * kUnit<T> * squared);
    }
  }
};

// Scores of kTileRows rows against a panel of `vectors` vectors of centres.
template <class T, int vectors>
void tile(const T* x, int64_t stride, int64_t width, const T* panel, const T* length, T* scores,
          int64_t scores_stride) {
  constexpr int64_t W = kLanes<T>;
  V<T> sums[kTileRows][vectors] = {};
  for (int64_t d = 0; d < width; ++d) {
    V<T> c[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) c[v] = load(panel + (d * vectors + v) * W);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const T value = x[r * stride + d];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] += c[v] * value;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      store(scores + r * scores_stride + v * W, load(length + v * W) + sums[r][v]);
    }
  }
}

template <class T>
using Tile = void (*)(const T*, int64_t, int64_t, const T*, const T*, T*, int64_t);

template <class T>
Tile<T> tile_for(int64_t vectors) {
  switch (vectors) {
    case 1: return tile<T, 1>;
    case 2: return tile<T, 2>;
    case 3: return tile<T, 3>;
    default: return tile<T, kTileVectors>;
  }
}

template <class T>
struct Row {
  T norm = 0;                                   // |x - o|
  T bound = static_cast<T>(__builtin_inf());    // the nearest centre's score is at most this
  T squared = static_cast<T>(__builtin_nan(""));
  int64_t index = -1;  // until a centre was compared
};

template <class T>
T length_of(const T* values, int64_t padded_width) {
  V<T> sums = {};
  for (int64_t d = 0; d < padded_width; d += kLanes<T>) {
    const V<T> part = load(values + d);
    sums += part * part;
  }
  T lanes[kLanes<T>];
  store(lanes, sums);
  const T squared = folded<kLanes<T>>(lanes, [](T a, T b) { return a + b; });
  return static_cast<T>(__builtin_sqrt(static_cast<double>(squared)));
}

template <class T>
T smallest(V<T> values) {
  T lanes[kLanes<T>];
  store(lanes, values);
  return folded<kLanes<T>>(lanes, [](T a, T b) { return lesser(a, b); });
}

// Calls visit(lane) for the lanes that are -1, in ascending order.
template <class T, class Visit>
inline void each(I<T> lanes, const Visit& visit) {
  constexpr int64_t W = kLanes<T>;
  typedef int8_t Bytes __attribute__((vector_size(W)));
  const Bytes bytes = __builtin_convertvector(lanes, Bytes);
  uint64_t words[2] = {0, 0};
  __builtin_memcpy(words, &bytes, W);
  for (int64_t word = 0; word < 2; ++word) {
    for (uint64_t left = words[word] & 0x0101010101010101; left != 0; left &= left - 1) {
      visit(8 * word + __builtin_ctzll(left) / 8);
    }
  }
}

// One task at a time: `kBlockRows` rows against all centres, a chunk of centres after the other.
template <class T>
struct Search {
  static constexpr int64_t W = kLanes<T>;
  const Packed<T>& packed;
  const T* centers;
  int64_t stride;     // of a moved row
  T *moved, *scores;  // (kBlockRows, stride), (kBlockRows, columns of a chunk)
  Row<T> rows[kBlockRows];

  // One vector more than the width keeps rows of 4 KB out of each other's cache sets.
  static int64_t stride_for(int64_t width) { return (width + W - 1) / W * W + W; }

  static int64_t scores_for(const Packed<T>& packed) {
    return kBlockRows * lesser(kChunkVectors, packed.vectors) * W;
  }

  void begin(const T* x, int64_t r) {
    const int64_t width = packed.width;
    T* __restrict out = moved + r * stride;
    for (int64_t d = 0; d < width; ++d) out[d] = x[d] - packed.origin[d];
    rows[r].norm = length_of(out, stride);
  }

  void score(int64_t count, int64_t first, int64_t vectors) {
    for (int64_t v = 0; v < vectors; v += kTileVectors) {
      const Tile<T> run = tile_for<T>(lesser<int64_t>(kTileVectors, vectors - v));
      const int64_t column = (first + v) * W;
      for (int64_t r = 0; r < count; r += kTileRows) {
        run(moved + r * stride, stride, packed.width, packed.panels.get() + column * packed.width,
            packed.length.get() + column, scores + (r * vectors + v) * W, vectors * W);
      }
    }
  }

  // Takes a centre if it is the nearest so far; its squared distance.
  T compare(const T* x, Row<T>& row, int64_t column) const {
    const int64_t id = packed.ids[column];
    const T squared = direct(x, centers + id * packed.width, packed.width);
    const bool tie = squared == row.squared && id < row.index;
    if (row.index < 0 || squared < row.squared || tie) row.squared = squared, row.index = id;
    return squared;
  }

  // Compares the centres of a chunk that can be the nearest to one row.
  void settle(const T* x, Row<T>& row, const T* score, int64_t first, int64_t vectors) const {
    const T *slope = packed.slope.get() + first * W, *offset = packed.offset.get() + first * W;
    V<T> high = all<T>(static_cast<T>(__builtin_inf()));
    for (int64_t v = 0; v < vectors * W; v += W) {
      const V<T> value = load(score + v) + (load(slope + v) * row.norm + load(offset + v));
      high = value < high ? value : high;
    }
    row.bound = lesser(row.bound, smallest<T>(high));
    const T slack = static_cast<T>(4 * kDirect * kUnit<T>) * row.norm * row.norm;
    const T limit = row.bound + slack;
    I<T> found = {};
    for (int64_t v = 0; v < vectors * W; v += W) {
      const V<T> low = load(score + v) - (load(slope + v) * row.norm + load(offset + v));
      found |= ~(low > limit);
    }
    each<T>(found, [&](int64_t lane) {
      const int64_t end = lesser(vectors * W, packed.live - first * W);
      for (int64_t at = lane; at < end; at += W) {
        const T low = score[at] - (slope[at] * row.norm + offset[at]);
        if (!(low > limit)) compare(x, row, first * W + at);
      }
    });
  }

  void run(const T* x, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      begin(x + r * packed.width, r);
    }
    for (int64_t first = 0; first < packed.vectors; first += kChunkVectors) {
      const int64_t vectors = lesser(kChunkVectors, packed.vectors - first);
      score(count, first, vectors);
      for (int64_t r = 0; r < count; ++r) {
        if (!__builtin_isfinite(rows[r].norm)) continue;
        settle(x + r * packed.width, rows[r], scores + r * vectors * W, first, vectors);
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      if (__builtin_isfinite(rows[r].bound)) continue;
      rows[r].squared = static_cast<T>(__builtin_nan(""));
      rows[r].index = -1;
    }
  }
};

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA
