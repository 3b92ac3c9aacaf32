// Weighted sums of the columns of a matrix of logits that is never stored: the gradient pass.
#include <limits>

#include "contrastive.h"
#include "tile.h"
#include "weights.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

// Tasks to aim at where there are few rows. Part of the result's definition, so a constant.
constexpr int64_t kTasks = 32;

// Up to as many blocks pairs of them leave threads idle, and every tile is made for its rows alone.
constexpr int64_t kFew = 5;

// Blocks that meet other blocks together, to be read from far memory less often: as many as leave
// enough teams to share out.
constexpr int64_t team_size(int64_t blocks) {
  return blocks < kTasks ? 1 : blocks < 8 * kTasks ? 2 : 4;
}

// Columns packed for the second product: per block of kBlock rows, per panel of the width, the
// rows one after the other; zeros behind the width and behind the last row. Panels are kPanel wide
// but the last, which is as many vectors wide as it needs.
template <class T>
class Values {
 public:
  Values(const T* rows, int64_t count, int64_t width, int64_t threads)
      : width_(ceil_div(width, kLanes<T>) * kLanes<T>),
        data_(ceil_div(count, kBlock) * block_size()) {
    for_tasks(threads, ceil_div(count, kBlock), [&](int64_t block, int64_t) {
      T* to = data_.get() + block * block_size();
      for (int64_t at = 0; at < width_; at += kPanel<T>) {
        for (int64_t row = block * kBlock; row < (block + 1) * kBlock; ++row) {
          for (int64_t k = at; k < at + across(at); ++k) {
            *to++ = row < count && k < width ? rows[row * width + k] : T(0);
          }
        }
      }
    });
  }

  // Width of the panel that starts at a place of the width.
  int64_t across(int64_t at) const { return smaller_of(kPanel<T>, width_ - at); }
  int64_t width() const { return width_; }
  int64_t block_size() const { return width_ * kBlock; }
  const T* block(int64_t index) const { return data_.get() + index * block_size(); }
  // Place of a value in a block.
  int64_t place(int64_t row, int64_t k) const {
    const int64_t at = k / kPanel<T> * kPanel<T>;
    return at * kBlock + row * across(at) + k - at;
  }

 private:
  int64_t width_;
  Buffer<T> data_;
};

// sums += tile * values, or the transposed tile * values, for one panel of kAcross vectors.
template <class T, bool kTransposed, int kAcross>
void accumulate_panel(const T* tile, const T* values, int64_t rows, int64_t steps, T* sums) {
  constexpr int kRowStride = kTransposed ? 1 : kBlock, kStepStride = kTransposed ? kBlock : 1;
  for (int64_t row = 0; row < rows; row += kRows<T>) {
    multiply<T, kAcross, kRowStride, kStepStride>(steps, tile + row * kRowStride, values,
                                                  sums + row * kAcross * kLanes<T>,
                                                  kAcross * kLanes<T>, true);
  }
}

template <class T, bool kTransposed, int kAcross = kVectors<T>>
auto panel_of(int64_t vectors) -> void (*)(const T*, const T*, int64_t, int64_t, T*) {
  if constexpr (kAcross > 1) {
    if (vectors < kAcross) return panel_of<T, kTransposed, kAcross - 1>(vectors);
  }
  return accumulate_panel<T, kTransposed, kAcross>;
}

// The same for a block of values; `sums` is laid out as the block is.
template <class T, bool kTransposed>
void accumulate(const T* tile, const Values<T>& values, int64_t block, int64_t rows, int64_t steps,
                T* sums) {
  const T* from = values.block(block);
  for (int64_t at = 0; at < values.width(); at += kPanel<T>) {
    const auto panel = panel_of<T, kTransposed>(values.across(at) / kLanes<T>);
    panel(tile, from + at * kBlock, rows, steps, sums + at * kBlock);
  }
}

// The rounds of a tournament of teams of blocks: in each every team meets one other (or, with an
// odd number, sits out), so its sums grow in an order that does not depend on threads.
struct Tournament {
  int64_t teams, players, tasks;

  explicit Tournament(int64_t teams)
      : teams(teams),
        players(teams + teams % 2),
        tasks(teams + (players - 1) * (players / 2)) {}

  struct Game {
    int64_t round, one, other;  // round 0: every team with itself
  };

  Game game(int64_t task) const {
    if (task < teams) return {0, task, task};
    const int64_t round = (task - teams) / (players / 2), table = (task - teams) % (players / 2);
    const int64_t turning = players - 1;
    if (table == 0) return {round + 1, round, turning};
    return {round + 1, (round + table) % turning, (round - table + turning) % turning};
  }
};

template <class T>
struct Output {
  Buffer<T> sums;         // per split, per block, as Values
  Buffer<double> slopes;  // per split, per row

  Output(int64_t splits, int64_t blocks, int64_t block_size)
      : sums(splits * blocks * block_size), slopes(splits * blocks * kBlock) {}
};

template <class T>
class Gradient {
 public:
  Gradient(const WeightedSums& arguments, const Pass<T>& pass, const Packed<T>& x,
           const Packed<T>& y, const Values<T>& values)
      : m_(arguments.matrix),
        pass_(pass),
        x_(x),
        y_(y),
        values_(values),
        row_blocks_(ceil_div(m_.rows, kBlock)),
        column_blocks_(ceil_div(m_.columns, kBlock)),
        splits_(smaller_of(ceil_div(kTasks, row_blocks_), column_blocks_)),
        // With equal sides a tile and its mirror image are one.
        mirrored_(m_.symmetric && same(arguments) && row_blocks_ > kFew),
        team_(team_size(row_blocks_)),
        output_(mirrored_ ? 1 : splits_, row_blocks_, values.block_size()),
        tiles_(m_.threads * kBlock * kBlock) {
    if (mirrored_) splits_ = 1;
  }

  void run(const WeightedSums& arguments) {
    if (mirrored_) {
      by_pairs();
    } else {
      by_rows();
    }
    write(static_cast<T*>(arguments.sums), static_cast<T*>(arguments.slopes));
  }

 private:
  static bool same(const WeightedSums& a) {
    return a.row.weight == a.column.weight && a.row.total == a.column.total &&
           a.row.positive == a.column.positive && a.row.share == a.column.share &&
           a.row_classes == a.column_classes;
  }

  T* sums(int64_t split, int64_t block) const {
    return output_.sums.get() + (split * row_blocks_ + block) * values_.block_size();
  }
  double* slopes(int64_t split, int64_t block) const {
    return output_.slopes.get() + (split * row_blocks_ + block) * kBlock;
  }
  int64_t rows(int64_t block) const { return smaller_of(kBlock, m_.rows - block * kBlock); }
  int64_t columns(int64_t block) const { return smaller_of(kBlock, m_.columns - block * kBlock); }

  void clear(int64_t split, int64_t block) const {
    T* to = sums(split, block);
    for (int64_t index = 0; index < values_.block_size(); ++index) to[index] = 0;
    for (int64_t index = 0; index < kBlock; ++index) slopes(split, block)[index] = 0;
  }

  void weights(int64_t block, int64_t other, T* tile, Slopes slopes) const {
    similarities<T>(x_.block(block), y_.block(other), m_.width, rows(block), columns(other), tile);
    const int64_t i = block * kBlock, j = other * kBlock;
    const bool masked = pass_.pattern.touches(i, j);
    const auto turn = pass_.shared ? (masked ? weigh<T, true, true> : weigh<T, false, true>)
                                   : (masked ? weigh<T, true, false> : weigh<T, false, false>);
    turn(pass_, tile, i, j, rows(block), slopes);
  }

  void by_rows() const {
    for_tasks(m_.threads, row_blocks_ * splits_, [&](int64_t task, int64_t worker) {
      const int64_t block = task / splits_, split = task % splits_;
      T* tile = tiles_.get() + worker * kBlock * kBlock;
      clear(split, block);
      const int64_t last = (split + 1) * column_blocks_ / splits_;
      for (int64_t other = split * column_blocks_ / splits_; other < last; ++other) {
        weights(block, other, tile, {slopes(split, block), nullptr});
        accumulate<T, false>(tile, values_, other, rows(block),
                             columns(other), sums(split, block));
      }
    });
  }

  void by_pairs() const {
    const int64_t teams = ceil_div(row_blocks_, team_);
    const Tournament tournament(teams);
    const Buffer<int64_t> played(tournament.players);
    for (int64_t team = 0; team < tournament.players; ++team) played[team] = 0;
    const auto wait = [&](int64_t team, int64_t round) {
      for (int64_t attempt = 0; __atomic_load_n(&played[team], __ATOMIC_ACQUIRE) != round;) {
        pause(attempt++);
      }
    };
    const auto free = [&](int64_t team, int64_t round) {
      __atomic_store_n(&played[team], round + 1, __ATOMIC_RELEASE);
    };
    for_tasks(m_.threads, tournament.tasks, [&](int64_t task, int64_t worker) {
      const auto [round, one, other] = tournament.game(task);
      T* tile = tiles_.get() + worker * kBlock * kBlock;
      wait(one, round);
      if (round == 0) {
        for (int64_t block = first(one); block < first(one + 1); ++block) clear(0, block);
      }
      if (other < teams) {
        wait(other, round);
        play(one, other, tile);
        if (other != one) free(other, round);
      }
      free(one, round);
    });
  }

  int64_t first(int64_t team) const { return smaller_of(team * team_, row_blocks_); }

  void play(int64_t one, int64_t other, T* tile) const {
    for (int64_t block = first(one); block < first(one + 1); ++block) {
      const int64_t start = one == other ? block : first(other);
      for (int64_t mate = start; mate < first(other + 1); ++mate) {
        weights(block, mate, tile, {slopes(0, block), mate == block ? nullptr : slopes(0, mate)});
        accumulate<T, false>(tile, values_, mate, rows(block), rows(mate), sums(0, block));
        if (mate == block) continue;
        accumulate<T, true>(tile, values_, block, rows(mate), rows(block), sums(0, mate));
      }
    }
  }

  void write(T* to, T* to_slopes) const {
    for_tasks(m_.threads, row_blocks_, [&](int64_t block, int64_t) {
      for (int64_t row = 0; row < rows(block); ++row) {
        const int64_t i = block * kBlock + row;
        for (int64_t k = 0; k < m_.width; ++k) {
          double total = 0;
          for (int64_t split = 0; split < splits_; ++split) {
            total += static_cast<double>(sums(split, block)[values_.place(row, k)]);
          }
          to[i * m_.width + k] = static_cast<T>(total);
        }
        if (to_slopes == nullptr) continue;
        double total = 0;
        for (int64_t split = 0; split < splits_; ++split) total += slopes(split, block)[row];
        to_slopes[i] = static_cast<T>(total);
      }
    });
  }

  const Matrix& m_;
  const Pass<T>& pass_;
  const Packed<T>&x_, &y_;
  const Values<T>& values_;
  int64_t row_blocks_, column_blocks_, splits_;
  bool mirrored_;
  int64_t team_;
  Output<T> output_;
  Buffer<T> tiles_;
};

template <class T>
void fill(void* to, int64_t count, T value) {
  for (int64_t index = 0; to != nullptr && index < count; ++index) {
    static_cast<T*>(to)[index] = value;
  }
}

template <class T>
void weighted_sums(const WeightedSums& arguments) {
  const Matrix& m = arguments.matrix;
  const Packed<T> x(static_cast<const T*>(m.x), m.rows, m.width, m.threads);
  const Packed<T> other(static_cast<const T*>(m.y), m.symmetric ? 0 : m.columns, m.width,
                        m.threads);
  const Packed<T>& y = m.symmetric ? x : other;
  const T temperature = *static_cast<const T*>(m.temperature);
  const double bound = x.longest() * y.longest() / static_cast<double>(temperature);
  if (!(bound < std::numeric_limits<T>::max() / 4)) {
    fill(arguments.sums, m.rows * m.width, std::numeric_limits<T>::quiet_NaN());
    fill(arguments.slopes, m.rows, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  const bool small = bound * kLog2E <= kBound<T>;
  const double shift = small ? shift_of<T>(bound * kLog2E) : 0;
  const Weights<T> row(arguments.row, m.rows, shift), column(arguments.column, m.columns, shift);
  const Parts<T> row_classes(arguments.row_classes, m.rows);
  const Parts<T> column_classes(arguments.column_classes, m.columns);
  const bool classes = arguments.row_classes != nullptr;
  const Pass<T> pass{.temperature = temperature,
                     .factor = Factor<T>(kLog2E / static_cast<double>(temperature)),
                     .shift = static_cast<T>(shift),
                     .shared = small && row.ranged && column.ranged,
                     .pattern = {m.excluded, m.offset, m.half, m.columns},
                     .row = row,
                     .column = column,
                     .row_classes = classes ? &row_classes : nullptr,
                     .column_classes = classes ? &column_classes : nullptr,
                     .slope = arguments.slopes != nullptr};
  const Values<T> values(static_cast<const T*>(m.y), m.columns, m.width, m.threads);
  Gradient<T>(arguments, pass, x, y, values).run(arguments);
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(weighted_sums, selftaught::WeightedSums, selftaught::SELFTAUGHT_ISA::weighted_sums)
