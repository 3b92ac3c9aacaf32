// Log-sums of exp over the rows and columns of a matrix of logits that is never stored.
#include <limits>

#include "contrastive.h"
#include "exponential.h"
#include "tile.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

// Groups of row blocks, each with its own sums over columns: enough to share the work out, few
// enough to stay small beside the packed rows. Part of the result's definition, so a constant.
constexpr int64_t kGroups = 32;

// Largest |logit| * log2(e) at which exp needs no shift: every term and every tile's sum is normal.
template <class T>
constexpr double kUnshifted = sizeof(T) == 4 ? 115 : 900;

// Sums of exp(logit - top), one set of `count` for each of `sets`.
template <class T>
struct Sums {
  int64_t count;
  Buffer<double> sum;
  Buffer<T> top;

  Sums(int64_t sets, int64_t count, T first_top)
      : count(count), sum(sets * count), top(sets * count) {
    for (int64_t index = 0; index < sets * count; ++index) {
      sum[index] = 0;
      top[index] = first_top;
    }
  }

  // Adds `more`, which is relative to `its_top`.
  void add(int64_t index, T its_top, double more) const {
    if (its_top > top[index]) {
      sum[index] *= __builtin_exp(static_cast<double>(top[index]) - its_top);
      top[index] = its_top;
    } else if (its_top < top[index]) {
      more *= __builtin_exp(static_cast<double>(its_top) - top[index]);
    }
    sum[index] += more;
  }

  void write(int64_t sets, int64_t results, T* to) const {
    for (int64_t index = 0; index < results; ++index) {
      T best = top[index];
      for (int64_t set = 1; set < sets; ++set) {
        const T its_top = top[set * count + index];
        if (its_top > best) best = its_top;
      }
      double total = 0;
      for (int64_t set = 0; set < sets; ++set) {
        const int64_t place = set * count + index;
        if (sum[place] == 0) continue;
        const double apart = static_cast<double>(top[place]) - best;
        total += apart == 0 ? sum[place] : sum[place] * __builtin_exp(apart);
      }
      to[index] = total == 0 ? -std::numeric_limits<T>::infinity()
                             : static_cast<T>(best + __builtin_log(total));
    }
  }
};

// One tile on its way into the sums.
template <class T>
struct Tile {
  T* values;
  int64_t first_row, first_column, rows;
  const Pattern& pattern;
  const Sums<T>* of_rows;
  int64_t row_set;
  const Sums<T>* of_columns;  // null: not wanted
  int64_t column_set;

  int64_t row_place(int64_t row) const { return row_set * of_rows->count + first_row + row; }
  int64_t column_place(int64_t column) const {
    return column_set * of_columns->count + first_column + column;
  }
};

// Logits known to be small: one exp an entry serves its row and its column.
template <class T, bool kMasked>
void add_small(const Tile<T>& tile, const Factor<T>& factor) {
  constexpr int kAcross = kBlock / kLanes<T>;
  V<T> down[kAcross] = {};
  for (int64_t row = 0; row < tile.rows; ++row) {
    V<T> along{};
    for (int v = 0; v < kAcross; ++v) {
      V<T> term = power_of_2<T>(load(tile.values + row * kBlock + v * kLanes<T>), factor, 0);
      if (kMasked) {
        const int64_t column = tile.first_column + v * kLanes<T>;
        term = keep<T>(counting<T>(tile.pattern, tile.first_row + row, column), term);
      }
      along += term;
      down[v] += term;
    }
    tile.of_rows->sum[tile.row_place(row)] += static_cast<double>(sum<T>(along));
  }
  if (tile.of_columns == nullptr) return;
  for (int column = 0; column < kBlock; ++column) {
    const T found = down[column / kLanes<T>][column % kLanes<T>];
    tile.of_columns->sum[tile.column_place(column)] += static_cast<double>(found);
  }
}

// Logits of any size: terms are taken relative to the largest of their row or column so far.
template <class T>
void add_any(const Tile<T>& tile, T temperature) {
  constexpr int kAcross = kBlock / kLanes<T>;
  constexpr T kNothing = -std::numeric_limits<T>::infinity();
  const Factor<T> log2e(kLog2E);
  V<T> column_top[kAcross];
  for (V<T>& top : column_top) top = all<T>(kNothing);
  for (int64_t row = 0; row < tile.rows; ++row) {
    T* values = tile.values + row * kBlock;
    V<T> row_top = all<T>(kNothing);
    for (int v = 0; v < kAcross; ++v) {
      const int64_t column = tile.first_column + v * kLanes<T>;
      const I<T> counts = counting<T>(tile.pattern, tile.first_row + row, column);
      const V<T> logit =
          choose<T>(counts, load(values + v * kLanes<T>) / temperature, all<T>(kNothing));
      store<T>(values + v * kLanes<T>, logit);
      row_top = larger<T>(row_top, logit);
      column_top[v] = larger<T>(column_top[v], logit);
    }
    const T top = largest<T>(row_top);
    if (top == kNothing) continue;
    V<T> along{};
    for (int v = 0; v < kAcross; ++v) {
      along += exponential<T>(load(values + v * kLanes<T>) - top, log2e);
    }
    tile.of_rows->add(tile.row_place(row), top, static_cast<double>(sum<T>(along)));
  }
  if (tile.of_columns == nullptr) return;
  for (int v = 0; v < kAcross; ++v) {
    // A column with nothing in it yet: any finite top keeps exp(-inf - top) at 0.
    const V<T> top = choose<T>(column_top[v] > kNothing, column_top[v], V<T>{});
    V<T> down{};
    for (int64_t row = 0; row < tile.rows; ++row) {
      down += exponential<T>(load(tile.values + row * kBlock + v * kLanes<T>) - top, log2e);
    }
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      if (down[lane] == 0) continue;
      const int64_t place = tile.column_place(v * kLanes<T> + lane);
      tile.of_columns->add(place, top[lane], static_cast<double>(down[lane]));
    }
  }
}

template <class T>
void fill(T* to, int64_t count, T value) {
  for (int64_t index = 0; to != nullptr && index < count; ++index) to[index] = value;
}

// `y` is `x` where the matrix is symmetric; tiles below the diagonal are then left to the mirror.
template <class T>
void log_sums_of(const LogSums& arguments, const Packed<T>& x, const Packed<T>& y, double bound) {
  const Matrix& m = arguments.matrix;
  const T temperature = *static_cast<const T*>(m.temperature);
  const bool small = bound * kLog2E <= kUnshifted<T>;
  const Factor<T> factor(kLog2E / static_cast<double>(temperature));
  const Pattern pattern{m.excluded, m.offset, m.half, m.columns};
  const int64_t row_blocks = ceil_div(m.rows, kBlock), column_blocks = ceil_div(m.columns, kBlock);
  const int64_t groups = smaller_of(kGroups, row_blocks);
  const int64_t chunks = m.symmetric ? 1 : smaller_of(kGroups / groups, column_blocks);
  const bool down = m.symmetric || arguments.of_columns != nullptr;
  const T first_top = small ? T(0) : -std::numeric_limits<T>::infinity();
  const Sums<T> of_rows(chunks, row_blocks * kBlock, first_top);
  const Sums<T> of_columns(down ? groups : 0, column_blocks * kBlock, first_top);
  const Buffer<T> tiles(m.threads * kBlock * kBlock);

  for_tasks(m.threads, groups * chunks, [&](int64_t task, int64_t worker) {
    const int64_t group = task / chunks, chunk = task % chunks;
    T* values = tiles.get() + worker * kBlock * kBlock;
    for (int64_t turn = 0; turn * groups < row_blocks; ++turn) {
      // To and fro, so that groups of a triangle weigh much the same.
      const int64_t block = turn * groups + (turn % 2 ? groups - 1 - group : group);
      if (block >= row_blocks) continue;
      const int64_t rows = smaller_of(kBlock, m.rows - block * kBlock);
      const int64_t first = m.symmetric ? block : chunk * column_blocks / chunks;
      const int64_t last = m.symmetric ? column_blocks : (chunk + 1) * column_blocks / chunks;
      for (int64_t other = first; other < last; ++other) {
        const int64_t columns = smaller_of(kBlock, m.columns - other * kBlock);
        similarities<T>(x.block(block), y.block(other), m.width, rows, columns, values);
        const bool mirrored = down && !(m.symmetric && other == block);
        const Tile<T> tile{values,   block * kBlock, other * kBlock,
                           rows,     pattern,        &of_rows,
                           chunk,    mirrored ? &of_columns : nullptr,
                           group};
        if (!small) {
          add_any<T>(tile, temperature);
        } else if (pattern.touches(block * kBlock, other * kBlock)) {
          add_small<T, true>(tile, factor);
        } else {
          add_small<T, false>(tile, factor);
        }
      }
    }
  });

  T* to_rows = static_cast<T*>(arguments.of_rows);
  if (m.symmetric) {
    for (int64_t row = 0; row < m.rows; ++row) {
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t place = group * of_columns.count + row;
        if (of_columns.sum[place] == 0) continue;
        of_rows.add(row, of_columns.top[place], of_columns.sum[place]);
      }
    }
    of_rows.write(1, m.rows, to_rows);
    if (arguments.of_columns != nullptr) {
      of_rows.write(1, m.rows, static_cast<T*>(arguments.of_columns));
    }
    return;
  }
  of_rows.write(chunks, m.rows, to_rows);
  if (down) of_columns.write(groups, m.columns, static_cast<T*>(arguments.of_columns));
}

template <class T>
void log_sums(const LogSums& arguments) {
  const Matrix& m = arguments.matrix;
  const Packed<T> x(static_cast<const T*>(m.x), m.rows, m.width, m.threads);
  const Packed<T> other(static_cast<const T*>(m.y), m.symmetric ? 0 : m.columns, m.width,
                        m.threads);
  const Packed<T>& y = m.symmetric ? x : other;
  const double temperature = static_cast<double>(*static_cast<const T*>(m.temperature));
  const double bound = x.longest() * y.longest() / temperature;
  if (!(bound < std::numeric_limits<T>::max() / 4)) {
    fill(static_cast<T*>(arguments.of_rows), m.rows, std::numeric_limits<T>::quiet_NaN());
    fill(static_cast<T*>(arguments.of_columns), m.columns, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  log_sums_of<T>(arguments, x, y, bound);
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(log_sums, selftaught::LogSums, selftaught::SELFTAUGHT_ISA::log_sums)
