// From a tile of similarities to a tile of weights of the gradient pass.
#pragma once

#include <limits>

#include "contrastive.h"
#include "exponential.h"
#include "tile.h"

namespace selftaught::SELFTAUGHT_ISA {

// In powers of 2. Up to the bound on logits one exp an entry, exp(l - shift), serves both sides:
// it stays above 2^-kFloor, and the sides' factors weight * exp(shift - total) are checked to stay
// within 2^+-kRange.
template <class T>
constexpr double kBound = sizeof(T) == 4 ? 80 : 700;
template <class T>
constexpr double kFloor = sizeof(T) == 4 ? 120 : 1000;
template <class T>
constexpr double kRange = sizeof(T) == 4 ? 100 : 900;

// The shift, an integer, for logits up to `power`: exp(l - shift) is at least 2^-kFloor, and no
// larger than that asks for.
template <class T>
double shift_of(double power) {
  return __builtin_floor(power < kFloor<T> - power ? power : kFloor<T> - power);
}

// A side's vectors, padded to whole blocks with zeros.
template <class T>
struct Weights {
  bool there, ranged = true;
  Buffer<T> weight, total, positive, share, factor;

  // factor = weight * exp(shift - total); `ranged` says whether all of them are safe.
  Weights(const Side& side, int64_t count, double shift)
      : there(side.weight != nullptr),
        weight(padded(count)),
        total(padded(count)),
        positive(padded(count)),
        share(padded(count)),
        factor(padded(count)) {
    copy(side.weight, count, weight);
    copy(side.total, count, total);
    copy(side.positive, count, positive);
    copy(side.share, count, share);
    for (int64_t index = 0; index < padded(count); ++index) {
      factor[index] = 0;
      const double power = shift - kLog2E * static_cast<double>(total[index]);
      if (weight[index] == 0 || power == std::numeric_limits<double>::infinity()) continue;
      const double value = static_cast<double>(weight[index]) * __builtin_exp2(power);
      const double size = __builtin_fabs(value);
      ranged = ranged && size < __builtin_exp2(kRange<T>) && size > __builtin_exp2(-kRange<T>);
      factor[index] = static_cast<T>(value);
    }
  }

 private:
  static int64_t padded(int64_t count) { return ceil_div(count, kBlock) * kBlock; }

  static void copy(const void* from, int64_t count, const Buffer<T>& to) {
    for (int64_t index = 0; index < padded(count); ++index) {
      to[index] = from != nullptr && index < count ? static_cast<const T*>(from)[index] : T(0);
    }
  }
};

// int64_t classes cut into integers as wide as T, to compare them lane by lane.
template <class T>
struct Parts {
  using Integer = typename Vector<T>::Integer;
  static constexpr int kParts = 8 / static_cast<int>(sizeof(T));
  Buffer<Integer> of[2];

  Parts(const void* classes, int64_t count)
      : of{Buffer<Integer>(size(classes, count)), Buffer<Integer>(size(classes, count))} {
    for (int64_t index = 0; classes != nullptr && index < count; ++index) {
      const int64_t value = static_cast<const int64_t*>(classes)[index];
      of[0][index] = static_cast<Integer>(value);
      of[1][index] = static_cast<Integer>(kParts == 2 ? value >> 32 : 0);
    }
  }

 private:
  static int64_t size(const void* classes, int64_t count) {
    return classes == nullptr ? 0 : ceil_div(count, kBlock) * kBlock;
  }
};

// One call's facts.
template <class T>
struct Pass {
  T temperature;
  Factor<T> factor, log2e{kLog2E};
  T shift;
  bool shared;  // one exp for both sides
  Pattern pattern;
  const Weights<T>&row, &column;
  const Parts<T>*row_classes, *column_classes;
  bool slope;
};

// Where the slopes of a tile's rows go, and those of its mirror image (or null).
struct Slopes {
  double *rows, *mirrored;
};

// Turns a tile of similarities into a tile of weights.
template <class T, bool kMasked, bool kShared>
void weigh(const Pass<T>& pass, T* tile, int64_t first_row, int64_t first_column, int64_t rows,
           Slopes slopes) {
  constexpr int kAcross = kBlock / kLanes<T>;
  V<T> down[kAcross] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = first_row + r;
    V<T> along{};
    for (int v = 0; v < kAcross; ++v) {
      const int64_t j = first_column + v * kLanes<T>;
      T* at = tile + r * kBlock + v * kLanes<T>;
      V<T> logit{};
      if (!kShared || pass.slope) logit = load(at) / pass.temperature;
      V<T> of_row{}, of_column{};
      if (kShared) {
        const V<T> term = power_of_2<T>(load(at), pass.factor, pass.shift);
        of_row = term * pass.row.factor[i];
        of_column = term * load(pass.column.factor.get() + j);
      } else {
        if (pass.row.there) {
          of_row = exponential<T>(logit - pass.row.total[i], pass.log2e) * pass.row.weight[i];
        }
        if (pass.column.there) {
          of_column = exponential<T>(logit - load(pass.column.total.get() + j), pass.log2e) *
                      load(pass.column.weight.get() + j);
        }
      }
      V<T> weight = of_row + of_column;
      if (pass.row_classes != nullptr) {
        I<T> same = load_integers<T>(pass.column_classes->of[0].get() + j) ==
                    pass.row_classes->of[0][i];
        if (Parts<T>::kParts == 2) {
          same &= load_integers<T>(pass.column_classes->of[1].get() + j) ==
                  pass.row_classes->of[1][i];
        }
        weight -= keep<T>(same, load(pass.column.share.get() + j) + pass.row.share[i]);
      }
      if (kMasked) {
        const I<T> counts = counting<T>(pass.pattern, i, j);
        weight = keep<T>(counts, weight);
        logit = keep<T>(counts, logit);
        of_row = keep<T>(counts, of_row);
        of_column = keep<T>(counts, of_column);
      }
      store<T>(at, weight);
      if (pass.slope) {
        along += of_row * (logit - pass.row.positive[i]);
        if (slopes.mirrored != nullptr) {
          down[v] += of_column * (logit - load(pass.column.positive.get() + j));
        }
      }
    }
    if (pass.slope) slopes.rows[r] += static_cast<double>(sum<T>(along));
  }
  if (!pass.slope || slopes.mirrored == nullptr) return;
  for (int column = 0; column < kBlock; ++column) {
    slopes.mirrored[column] += static_cast<double>(down[column / kLanes<T>][column % kLanes<T>]);
  }
}

}  // namespace selftaught::SELFTAUGHT_ISA
