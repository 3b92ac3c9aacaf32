// What products left of a row's centres, and the direct differences that settle which is nearest.
#pragma once

#include "numbers.cuh"

constexpr int KEPT = 3;
constexpr int NO_CENTER = 0x7fffffff;

struct Assign {
  const void* x;          // (rows, width) of the kernel's number, `stride` of them between rows
  const float* centers;   // (count, width)
  const float* origin;    // (padded,) from `move_centers`, as are the next two
  const float* moved;     // (count, padded)
  const float* added;     // (count rounded up to CENTERS,)
  const int64_t* labels;  // (rows,), or null: no loss
  float* loss;            // (rows,) with `labels`
  float* squared;         // (rows,)
  int64_t* index;         // (rows,)
  int64_t* counts;        // (count,) to which a row adds 1 for its centre, or null
  int64_t rows, stride;
  int count, width, padded;  // padded: width rounded up to COLUMNS
  int x_whole, centers_whole;  // may rows be read 16 bytes at a time; see read_four
  int blocks;                  // blocks of this launch
  float eta, eps;
};

// Paper, Eq. 2; NaN for any label but -1, 0, 1.
DEVICE float mad_loss(float squared, int64_t label, float eta, float eps) {
  if (label == 0) return squared;
  if (label == 1) return eta * (squared + eps);
  return label == -1 ? eta / (squared + eps) : NAN;
}

// The best scores so far with their centres, and the least score of all other centres.
struct Best {
  float score[KEPT], rest;
  int center[KEPT];

  DEVICE void start() {
    rest = INFINITY;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) score[i] = INFINITY, center[i] = NO_CENTER;
  }

  // IN_ORDER: no centre of a larger index came before, so that a tie stays where it is.
  template <bool IN_ORDER>
  DEVICE void insert(float s, int k) {
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
      const float other = score[i];
      const int other_center = center[i];
      const bool ahead = s < other || (!IN_ORDER && s == other && k < other_center);
      score[i] = ahead ? s : other;
      center[i] = ahead ? k : other_center;
      s = ahead ? other : s;
      k = ahead ? other_center : k;
    }
    rest = fminf(rest, s);  // NaN is nobody's score
  }

  // Joins those of the lane that many away; both end with the same.
  DEVICE void join(int lanes) {
    float theirs[KEPT];
    int their_center[KEPT];
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
      theirs[i] = device::shuffle_xor(score[i], lanes);
      their_center[i] = device::shuffle_xor(center[i], lanes);
    }
    const float their_rest = device::shuffle_xor(rest, lanes);
#pragma unroll
    for (int i = 0; i < KEPT; ++i) insert<false>(theirs[i], their_center[i]);
    rest = fminf(rest, their_rest);
  }
};

// A centre and its squared distance.
struct Near {
  float squared;
  int center;

  DEVICE void join(Near other) {
    if (other.squared < squared || (other.squared == squared && other.center < center))
      *this = other;
  }
};

// Sums of squares in an order that depends on the width only.
struct Squares {
  float4 sum = make_float4(0, 0, 0, 0);

  DEVICE void add(float4 v) {
    sum.x = fmaf(v.x, v.x, sum.x);
    sum.y = fmaf(v.y, v.y, sum.y);
    sum.z = fmaf(v.z, v.z, sum.z);
    sum.w = fmaf(v.w, v.w, sum.w);
  }
  DEVICE float total() const { return sum_quad((sum.x + sum.y) + (sum.z + sum.w)); }
};

// The exact part of a search: four lanes work for a row, on every fourth number four.
template <class Shape>
struct Exact {
  using Number = typename Shape::Number;
  using Stored = typename Shape::Stored;
  const Assign& a;

  DEVICE const Stored* row_at(int64_t row) const {
    return static_cast<const Stored*>(a.x) + row * a.stride;
  }

  DEVICE float4 apart(const Stored* row, int center, int d) const {
    const float* c = a.centers + static_cast<int64_t>(center) * a.width;
    return difference(read_four<Number>(row, d, a.width, a.x_whole != 0),
                      read_four<SingleNumber>(c, d, a.width, a.centers_whole != 0));
  }

  DEVICE float distance(const Stored* row, int center) const {
    Squares squares;
#pragma unroll 2
    for (int d = device::thread() % 4 * 4; d < a.width; d += 16)
      squares.add(apart(row, center, d));
    return squares.total();
  }

  // `distance`, NaN for a row with an entry that is not finite, and the lengths of x' and x.
  DEVICE float measure(const Stored* row, int center, float& radius, float& length) const {
    Squares squares, moved, given;
    float poison = 0;
#pragma unroll 2
    for (int d = device::thread() % 4 * 4; d < a.width; d += 16) {
      const float4 v = apart(row, center, d);
      squares.add(v);
      poison += (v.x * 0 + v.y * 0) + (v.z * 0 + v.w * 0);
      // Behind the width both are zeros.
      const float4 x = read_four<Number>(row, d, a.width, a.x_whole != 0);
      moved.add(difference(x, read_four<SingleNumber>(a.origin, d, a.padded, true)));
      given.add(x);
    }
    radius = sqrtf(moved.total());
    length = sqrtf(given.total());
    const float found = squares.total();
    return sum_quad(poison) == 0 ? found : NAN;
  }

  // The nearest of all centres to one row, found by the whole warp.
  DEVICE Near search(const Stored* row) const {
    Near near = {INFINITY, NO_CENTER};
    for (int first = 0; first < a.count; first += LANES / 4) {
      const int center = first + device::thread() % LANES / 4;
      const bool there = center < a.count && a.added[center] < INFINITY;
      const float found = distance(row, there ? center : 0);
      if (there) near.join({found, center});
    }
    for (int lanes = 4; lanes < LANES; lanes *= 2)
      near.join({device::shuffle_xor(near.squared, lanes),
                 device::shuffle_xor(near.center, lanes)});
    return near;
  }

  // The nearest centres of 8 rows from `first` on, the row of a lane being number lane / 4.
  DEVICE void settle(Best& best, int64_t first, int* histogram) const {
    best.join(1);
    best.join(2);
    const int64_t row = first + device::thread() % LANES / 4;
    const bool inside = row < a.rows;
    const bool scored = inside && fabsf(best.score[0]) < INFINITY;
    const Stored* values = row_at(inside ? row : 0);
    Near near = {0, scored ? best.center[0] : 0};
    float radius, length;
    near.squared = measure(values, near.center, radius, length);
    const bool valid = scored && near.squared == near.squared;
    // A centre as near as this one has |c'| <= reach. An error is the share `slack` of |c'|^2 and
    // twice |c'| |x'|, or |c'| (|x| + |o|) where |o| <= |x| + |x'|, and two scores are compared.
    const float slack = Shape::ERROR + Shape::ERROR_PER_COLUMN * a.padded;
    const float reach = radius + sqrtf(near.squared);
    const float others = Shape::EXACT ? radius + 2 * length : radius;
    const float limit = best.score[0] + 2 * slack * reach * (reach + 2 * others) + 0x1p-110f;
    for (int i = 1; i < KEPT; ++i) {
      // Constant indices keep the scores in registers.
      const float score = i == 1 ? best.score[1] : best.score[2];
      const int center = i == 1 ? best.center[1] : best.center[2];
      const bool close = valid && center != NO_CENTER && !(score > limit);
      if (device::ballot(close) == 0) break;
      const float other = distance(values, close ? center : 0);
      if (close) near.join({other, center});
    }
    static_assert(KEPT == 3, "the loop above names them");
    uint32_t unsure = device::ballot(valid && best.rest < INFINITY && !(best.rest > limit));
    for (int quad = 0; unsure != 0; ++quad, unsure >>= 4) {
      if ((unsure & 1) == 0) continue;
      const Near found = search(row_at(first + quad));
      if (device::thread() % LANES / 4 == quad) near = found;
    }
    if (!inside || device::thread() % 4 != 0) return;
    a.squared[row] = valid ? near.squared : NAN;
    a.index[row] = valid ? near.center : -1;
    if (a.labels)
      a.loss[row] = mad_loss(valid ? near.squared : NAN, a.labels[row], a.eta, a.eps);
    if (!valid || !a.counts) return;
    if (histogram) device::add_to(histogram + near.center, 1);
    else device::add_to(a.counts + near.center, 1);
  }
};
