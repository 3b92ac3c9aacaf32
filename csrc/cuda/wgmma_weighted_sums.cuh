// The gradient pass of weighted_sums.cuh on warpgroups: the same sums of the same weights.
#pragma once

#include "weighted_sums.cuh"
#include "wgmma.cuh"

template <int WIDTH_, int COLUMNS_, int STAGES_>
struct WgmmaWeightedSumsShape {
  static constexpr int WIDTH = WIDTH_, COLUMNS = COLUMNS_, STAGES = STAGES_;
  // Weights are made of PART columns at a time; more would spill registers.
  static constexpr int ROWS = 128, PART = 32, MT = 1;
  static constexpr bool SPLIT = false;
  using Rows = Operand<WIDTH, false>;
  using Own = Panels<WIDTH, ROWS>;
  using Walked = Panels<WIDTH, COLUMNS>;
  // A stage: rows of y, then what their columns are weighed with.
  static constexpr int SIDES = COLUMNS * 16, FACTS = ROWS * 20;
  static constexpr int STAGE = Walked::BYTES + SIDES;
  static constexpr int BYTES = Own::BYTES + STAGES * STAGE + FACTS + Ring<STAGES>::BYTES;
  static_assert(STAGE % 1024 == 0, "panels start where the swizzle does");
  static_assert(BYTES <= MOST_SHARED_HOPPER, "a block has more shared memory than the chip");
};

template <class Shape>
DEVICE void copy_columns(const Mapped<WeightedSums>& m, char* own, Ring<Shape::STAGES>& ring) {
  const WeightedSums& a = m.pass;
  const int end = min((device::block_y() + 1) * a.chunk, a.columns);
  device::arrive_expecting(ring.once(), Shape::Own::BYTES);
  Shape::Own::fetch(own, &m.x, device::block_x() * Shape::ROWS, ring.once());
  for (int column = device::block_y() * a.chunk; column < end; column += Shape::COLUMNS) {
    char* to = own + Shape::Own::BYTES + ring.stage * Shape::STAGE;
    const int sides = min(Shape::COLUMNS, a.columns - column) * 16;
    ring.await_empty(Shape::Walked::BYTES + sides);
    Shape::Walked::fetch(to, &m.y, column, ring.full());
    device::copy_bulk(to + Shape::Walked::BYTES, a.column_side + column, sides, ring.full());
    ring.advance();
  }
}

// sum += weights times the tile's rows, issued and committed; `w` is read until that is done.
template <class Shape>
DEVICE void issue_sums(float (&sum)[Shape::WIDTH / 8][4], uint32_t (&w)[Shape::COLUMNS / 16][4],
                       const float (&s)[Shape::COLUMNS / 8][4], const char* tile) {
#pragma unroll
  for (int k = 0; k < Shape::COLUMNS / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      w[k][i] = device::pack(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
  device::fence_products(sum, w);
#pragma unroll
  for (int k = 0; k < Shape::COLUMNS / 16; ++k)
    device::multiply_registers<Shape::WIDTH / 8>(sum, w[k], Shape::Walked::over(tile, 16 * k));
  device::commit_products();
}

// Products -> weights; `column` is the tile's first, `row` the warp's.
template <class Shape, bool FAST>
DEVICE void weigh_tile(Gradient<Shape>& state, float (&s)[Shape::COLUMNS / 8][4],
                       const WeightedSums& a, const Ranges& r, const RowFacts& facts,
                       const float4* side, int row, int column) {
#pragma unroll
  for (int part = 0; part < Shape::COLUMNS; part += Shape::PART) {
    auto& some = reinterpret_cast<float(&)[1][Shape::PART / 8][4]>(s[part / 8]);
    const int first = column + part;
    if constexpr (FAST) {
      state.weigh_fast(some, r, facts, side + part);
      if (first + Shape::PART > a.columns || row + 16 > a.rows ||
          may_exclude(a.excluded, row, 16, first, Shape::PART))
        state.leave_out(some, a, row, first);
    } else {
      state.weigh(some, a, r, facts, side + part, row, first);
    }
  }
}

template <class Shape, bool FAST>
DEVICE void weigh_columns(const WeightedSums& a, const Ranges& r, char* own, const RowFacts& facts,
                          Ring<Shape::STAGES>& ring) {
  const int group_row = device::thread() / WARPGROUP_THREADS * 64;
  const int row = device::block_x() * Shape::ROWS + device::thread() / LANES * 16;
  const int end = min((device::block_y() + 1) * a.chunk, a.columns);
  Gradient<Shape> state;
  state.start();
  device::await(ring.once(), 0);
#pragma unroll 1
  for (int column = device::block_y() * a.chunk; column < end; column += Shape::COLUMNS) {
    const char* tile = own + Shape::Own::BYTES + ring.stage * Shape::STAGE;
    const float4* side = reinterpret_cast<const float4*>(tile + Shape::Walked::BYTES);
    float s[Shape::COLUMNS / 8][4];
    uint32_t w[Shape::COLUMNS / 16][4];
    ring.await_full();
    issue_scores<typename Shape::Own, typename Shape::Walked>(s, own, group_row, tile);
    device::await_products<0>(s);
    weigh_tile<Shape, FAST>(state, s, a, r, facts, side, row, column);
    issue_sums<Shape>(state.sum[0], w, s, tile);
    device::await_products<0>(state.sum[0], w);
    ring.release();
    ring.advance();
  }
  state.write(a, r, row);
}

template <class Shape>
KERNEL(WGMMA_THREADS, 1) wgmma_weighted_sums(ARGUMENT(Mapped<WeightedSums>) m) {
#if HAS_WGMMA
  const WeightedSums& a = m.pass;
  char* own = device::shared_memory();
  float4* side = reinterpret_cast<float4*>(own + Shape::Own::BYTES + Shape::STAGES * Shape::STAGE);
  float* positive = reinterpret_cast<float*>(side + Shape::ROWS);
  Ring<Shape::STAGES> ring(reinterpret_cast<char*>(side) + Shape::FACTS);
  const int i = device::thread(), row = device::block_x() * Shape::ROWS + i;
  if (i < Shape::ROWS) {
    side[i] = row < a.rows ? a.row_side[row] : make_float4(0, 0, 0, 0);
    positive[i] = row < a.rows && a.slope ? a.positive[row] : 0;
  }
  ring.start();
  if (i >= CONSUMERS) {
    device::give_registers<PRODUCER_REGISTERS>();
    if (i == CONSUMERS) copy_columns<Shape>(m, own, ring);
  } else {
    device::take_registers<CONSUMER_REGISTERS>();
    const Ranges r = *a.ranges;
    const RowFacts facts{side + i / LANES * 16, positive + i / LANES * 16};
    if (r.safe != 0 && !a.row_class && !a.slope)
      weigh_columns<Shape, true>(a, r, own, facts, ring);
    else
      weigh_columns<Shape, false>(a, r, own, facts, ring);
  }
#else
  device::trap();
#endif
}
