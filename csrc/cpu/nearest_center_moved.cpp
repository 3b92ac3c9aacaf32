// Nearest centre of every row after the centres moved, from what was known before they did.
//
// A lower bound of its distance is kept for every row and centre. The way that a centre went since
// is taken off it, and a centre is looked at again only where what is left does not rule it out.
// Bounds err on the safe side of every rounding, so the result is that of looking at all centres.
#include "nearest_center_search.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

// Mirrored by selftaught/kernels/cpp/clusters.py. N rows, K centres, D width; contiguous.
struct NearestCenterMoved {
  const void* x;        // (N, D)
  const void* centers;  // (K, D)
  const void* before;   // (K, D) the centres of the last call; null on the first
  double* path;         // (K,) at least how far each centre has gone since the first call
  void* bounds;         // (N, columns) optional: a distance is at least bound - path
  int64_t* index;       // (N,) the result of the last call, -1 for none; then that of this one
  void* gap;            // (N,) optional: every other centre is farther by more than this
  int64_t N, K, D, columns, threads;
};

inline float root(float value) { return __builtin_sqrtf(value); }
inline double root(double value) { return __builtin_sqrt(value); }

// All centres are compared, in tiles, where more than one of so many is not ruled out.
constexpr int64_t kDense = 8;

template <class T>
constexpr T kBelow = 1 - 4 * static_cast<T>(kUnit<T>);  // takes off the rounding of a few steps

// True distances and direct ones, which are rounded, and below `underflow` lose bits.
template <class T>
struct Distances {
  T underflow;

  explicit Distances(int64_t width)
      : underflow(static_cast<T>(4 * __builtin_sqrt(width * (sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022)))) {}

  static T margin(T distance) { return distance * static_cast<T>((kDirect + 7) * kUnit<T>); }

  // A centre truly as far as this has a direct distance above `squared`, and the centre that
  // `squared` was measured to is truly nearer than this.
  T above(T squared) const {
    const T distance = root(squared);
    return distance + margin(distance) + underflow;
  }

  // The centre that `squared` was measured to is truly farther than this.
  T below(T squared) const {
    const T distance = root(squared);
    return distance - margin(distance) - underflow;
  }
};

// How far every centre has gone since the first call, from above and from below.
template <class T>
struct Paths {
  Buffer<T> high, low;  // (columns,)

  explicit Paths(const NearestCenterMoved& given) : high(given.columns), low(given.columns) {
    const T *now = static_cast<const T*>(given.centers), *before = static_cast<const T*>(given.before);
    for (int64_t k = 0; k < given.columns; ++k) {
      double path = 0;
      if (k < given.K) {
        if (before != nullptr) advance(given.path[k], now + k * given.D, before + k * given.D, given.D);
        path = given.path[k];
      }
      high[k] = static_cast<T>(path * (1 + 4 * kUnit<T>));
      low[k] = static_cast<T>(path * (1 - 4 * kUnit<T>));
    }
  }

  static void advance(double& path, const T* now, const T* before, int64_t width) {
    double squared = 0;
    for (int64_t d = 0; d < width; ++d) {
      const double step = static_cast<double>(now[d]) - static_cast<double>(before[d]);
      squared += step * step;
    }
    if (squared == 0) return;
    // Up by the rounding of the sum, then by that of adding it to the path.
    path = (path + __builtin_sqrt(squared) * (1 + (width + 64) * 0x1p-52)) * (1 + 0x1p-51);
  }
};

template <class T>
struct MovedSearch {
  static constexpr int64_t W = kLanes<T>;
  const NearestCenterMoved& given;
  const Paths<T>& paths;
  const Distances<T> distances;
  Search<T> search;
  T* own_bounds;             // (kBlockRows, columns) where the caller keeps none
  int64_t rows[kBlockRows];  // those that are to be compared with all centres
  int64_t many = 0;          // of them

  const T* x(int64_t row) const { return static_cast<const T*>(given.x) + row * given.D; }

  T* bounds(int64_t row) const {
    if (given.bounds == nullptr) return own_bounds + row % kBlockRows * given.columns;
    return static_cast<T*>(given.bounds) + row * given.columns;
  }

  // -1 in the lanes whose bounds do not rule their centres out.
  I<T> near(const T* bound, int64_t column, T limit) const {
    return ~(load(bound + column) - load(paths.high.get() + column) > limit);
  }

  int64_t count_near(const T* bound, T limit) const {
    I<T> counts = {};
    for (int64_t column = 0; column < search.packed.vectors * W; column += W) {
      counts -= near(bound, column, limit);
    }
    int64_t total = 0;
    for (int64_t lane = 0; lane < W; ++lane) total += counts[lane];
    return total;
  }

  // Compares the centres that are not ruled out, one by one.
  void look(const T* from, Row<T>& row, T* bound) const {
    T limit = distances.above(row.squared);
    for (int64_t column = 0; column < search.packed.vectors * W; column += W) {
      each<T>(near(bound, column, limit), [&](int64_t lane) {
        const int64_t k = column + lane;
        if (k == row.index) return;
        const T squared = search.compare(from, row, k);
        bound[k] = (distances.below(squared) + paths.low[k]) * kBelow<T>;
        if (row.index == k) limit = distances.above(squared);
      });
    }
  }

  // |x - o|^2 from below.
  T squared_norm(const Row<T>& row) const {
    return row.norm * row.norm * static_cast<T>(1 - (given.D + 24) * kUnit<T>);
  }

  void renew(const Row<T>& row, const T* score, int64_t first, int64_t vectors, T* bound) const {
    const T squared = squared_norm(row);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = (first + v) * W;
      const V<T> error = load(search.packed.slope.get() + at) * row.norm +
                         load(search.packed.offset.get() + at);
      T distance[W];
      store(distance, larger<T>(load(score + v * W) - error + squared, V<T>{}));
      for (int64_t i = 0; i < W; ++i) distance[i] = root(distance[i]);
      const V<T> least = load(distance) * kBelow<T>;
      store(bound + at, (least + load(paths.low.get() + at)) * kBelow<T>);
    }
  }

  // Compares the rows put off with all centres.
  void look_everywhere() {
    for (int64_t r = 0; r < many; ++r) {
      search.begin(x(rows[r]), r);
      Row<T>& row = search.rows[r];
      if (row.index < 0) continue;
      const T limit = distances.above(row.squared);
      row.bound = limit * limit - squared_norm(row);
    }
    for (int64_t first = 0; first < search.packed.vectors; first += kChunkVectors) {
      const int64_t vectors = lesser(kChunkVectors, search.packed.vectors - first);
      search.score(many, first, vectors);
      for (int64_t r = 0; r < many; ++r) {
        Row<T>& row = search.rows[r];
        if (!__builtin_isfinite(row.norm)) continue;
        const T* score = search.scores + r * vectors * W;
        search.settle(x(rows[r]), row, score, first, vectors);
        renew(row, score, first, vectors, bounds(rows[r]));
      }
    }
    for (int64_t r = 0; r < many; ++r) {
      if (!__builtin_isfinite(search.rows[r].bound)) search.rows[r].index = -1;
      write(rows[r], search.rows[r]);
    }
  }

  void write(int64_t row, const Row<T>& found) const {
    given.index[row] = found.index;
    if (given.gap == nullptr) return;
    const T* bound = bounds(row);
    T least = static_cast<T>(__builtin_inf());
    for (int64_t k = 0; k < given.K; ++k) {
      if (k != found.index) least = lesser(least, bound[k] - paths.high[k]);
    }
    static_cast<T*>(given.gap)[row] = least * kBelow<T> - distances.above(found.squared);
  }

  void run(int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      Row<T> row;
      if (given.bounds != nullptr && given.index[i] >= 0) {
        T* bound = bounds(i);
        row.index = given.index[i];
        row.squared = direct(x(i), search.centers + row.index * given.D, given.D);
        if (kDense * count_near(bound, distances.above(row.squared)) <= given.K) {
          look(x(i), row, bound);
          write(i, row);
          continue;
        }
      }
      rows[many] = i;
      search.rows[many++] = row;
    }
    look_everywhere();
  }
};

template <class T>
void nearest_center_moved(const NearestCenterMoved& given) {
  const T* centers = static_cast<const T*>(given.centers);
  Packed<T> packed(given.K, given.D);
  for (int64_t k = 0; k < given.K; ++k) packed.ids[k] = k;
  packed.fill(centers, given.threads);
  const Paths<T> paths(given);

  const int64_t threads = useful_threads(given.threads, 1.0 * given.N * given.D * (given.K + 4));
  const int64_t stride = Search<T>::stride_for(given.D), size = kBlockRows * stride;
  const int64_t kept = given.bounds == nullptr ? kBlockRows * given.columns : 0;
  const Buffer<T> moved(threads * size), scores(threads * Search<T>::scores_for(packed));
  const Buffer<T> bounds(threads * kept);
  // Rows past the last one, and columns past the width, are read as well.
  __builtin_memset(moved.get(), 0, sizeof(T) * threads * size);
  for_tasks(threads, (given.N + kBlockRows - 1) / kBlockRows, [&](int64_t task, int64_t worker) {
    const int64_t first = task * kBlockRows;
    MovedSearch<T> search{given,
                          paths,
                          Distances<T>(given.D),
                          {packed, centers, stride, moved.get() + worker * size,
                           scores.get() + worker * Search<T>::scores_for(packed), {}},
                          bounds.get() + worker * kept,
                          {}};
    search.run(first, lesser(kBlockRows, given.N - first));
  });
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(nearest_center_moved, selftaught::SELFTAUGHT_ISA::NearestCenterMoved,
                  selftaught::SELFTAUGHT_ISA::nearest_center_moved)
