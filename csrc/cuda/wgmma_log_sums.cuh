// The forward pass of log_sums.cuh on warpgroups: the same sums of the same tiles.
#pragma once

#include "log_sums.cuh"
#include "wgmma.cuh"

template <int WIDTH_, int STAGES_>
struct WgmmaLogSumsShape {
  static constexpr int WIDTH = WIDTH_, STAGES = STAGES_, F = 128, W = 128;
  // 8 warps one below the other: rows of y go down, own rows across.
  static constexpr int DOWN = CONSUMERS / LANES, ACROSS = 1, MT = 1, NT = F / 8;
  using Rows = Panels<WIDTH, F>;
  static constexpr int OWN = Rows::BYTES, WALKED = Rows::BYTES;
  static constexpr int ROOM = DOWN * F * int(sizeof(float));
  static constexpr int BYTES = OWN + STAGES * WALKED + ROOM + Ring<STAGES>::BYTES;
  static_assert(BYTES <= MOST_SHARED_HOPPER, "a block has more shared memory than the chip");

  DEVICE static void sync() { device::sync_some(CONSUMER_BARRIER, CONSUMERS); }
};

// Which tiles a block takes, the same for all its threads.
template <class Shape>
struct Circuit {
  const LogSums& a;
  int begin, end;

  DEVICE explicit Circuit(const LogSums& a) : a(a) {
    begin = a.first + device::block_y() * a.chunk;
    end = min(begin + a.chunk, a.last) - begin;
  }

  DEVICE int next(int t) const { return next_tile<Shape>(a, begin, t, end); }
  DEVICE int row(int t) const { return (device::block_x() + begin + t) % a.circle * Shape::F; }
};

template <class Shape>
DEVICE void copy_circuit(const Mapped<LogSums>& m, char* own, Ring<Shape::STAGES>& ring) {
  const Circuit<Shape> circuit(m.pass);
  int t = circuit.next(0);
  if (t == circuit.end) return;
  device::arrive_expecting(ring.once(), Shape::OWN);
  Shape::Rows::fetch(own, &m.x, device::block_x() * Shape::F, ring.once());
  for (; t < circuit.end; t = circuit.next(t + 1)) {
    ring.await_empty(Shape::WALKED);
    Shape::Rows::fetch(own + Shape::OWN + ring.stage * Shape::WALKED, &m.y, circuit.row(t),
                       ring.full());
    ring.advance();
  }
}

template <class Shape, bool SAFE>
DEVICE void walk_circuit(const LogSums& a, const Ranges& r, char* own, Ring<Shape::STAGES>& ring) {
  using Rows = typename Shape::Rows;
  const Circuit<Shape> circuit(a);
  const int own_first = device::block_x() * Shape::F;
  const int group_row = device::thread() / WARPGROUP_THREADS * 64;
  const int warp_row = device::thread() / LANES * 16;
  Walk<Shape, SAFE> state;
  state.start();
  int t = circuit.next(0);
  if (t < circuit.end) device::await(ring.once(), 0);
#pragma unroll 1
  for (; t < circuit.end; t = circuit.next(t + 1)) {
    float s[1][Shape::NT][4];
    ring.await_full();
    issue_scores<Rows, Rows>(s[0], own + Shape::OWN + ring.stage * Shape::WALKED, group_row, own);
    device::await_products<0>(s[0]);
    ring.release();
    ring.advance();
    const int walked_row = circuit.row(t) + warp_row, distance = circuit.begin + t;
    state.exponents(s, a, r, walked_row, own_first);
    state.add_own(s);
    if (a.walked && !(a.symmetric && distance == 0))
      state.write_walked(s, a.walked + static_cast<int64_t>(distance - a.first) * a.columns,
                         walked_row, a.columns);
  }
  float* room = reinterpret_cast<float*>(own + Shape::OWN + Shape::STAGES * Shape::WALKED);
  state.write_own(a.own + static_cast<int64_t>(device::block_y()) * a.rows, room, own_first,
                  a.rows);
}

template <class Shape>
KERNEL(WGMMA_THREADS, 1) wgmma_log_sums(ARGUMENT(Mapped<LogSums>) m) {
#if HAS_WGMMA
  char* own = device::shared_memory();
  Ring<Shape::STAGES> ring(own + Shape::OWN + Shape::STAGES * Shape::WALKED + Shape::ROOM);
  ring.start();
  if (device::thread() >= CONSUMERS) {
    device::give_registers<PRODUCER_REGISTERS>();
    if (device::thread() == CONSUMERS) copy_circuit<Shape>(m, own, ring);
  } else {
    device::take_registers<CONSUMER_REGISTERS>();
    const Ranges r = *m.pass.ranges;
    if (r.safe != 0) walk_circuit<Shape, true>(m.pass, r, own, ring);
    else walk_circuit<Shape, false>(m.pass, r, own, ring);
  }
#else
  device::trap();
#endif
}
