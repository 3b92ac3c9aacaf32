// What the kernels for sm_90a share: blocks of threads with roles, operands in panels, a ring.
//
// One warp only copies; two warpgroups compute. Operand rows lie in shared memory as panels of 64
// halves: a row of a panel has 128 bytes, swizzled, so one panel serves as rows that are summed
// along (K-major) and as rows that are summed over (MN-major).
#pragma once

#include "hopper.cuh"
#include "tile.cuh"

constexpr int WARPGROUP_THREADS = 128;
constexpr int CONSUMERS = 2 * WARPGROUP_THREADS;
constexpr int WGMMA_THREADS = CONSUMERS + WARPGROUP_THREADS;
constexpr int MOST_SHARED_HOPPER = 227 * 1024;
// Of the 168 registers that 384 threads have each; 2 * 232 + 40 = 3 * 168.
constexpr int CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40;
constexpr int CONSUMER_BARRIER = 1;  // the block's own is 0

// A pass whose operands are copied by maps.
template <class Pass>
struct Mapped {
  device::TensorMap x, y;
  Pass pass;
};

template <int WIDTH, int ROWS_>
struct Panels {
  static constexpr int ROWS = ROWS_, ROW = 128, PANEL = ROWS * ROW, COUNT = WIDTH / 64;
  static constexpr int BYTES = COUNT * PANEL, STEPS = WIDTH / 16;

  // Starts to copy ROWS rows from `first` on; one thread does. Rows past the end become zeros.
  DEVICE static void fetch(char* to, const device::TensorMap* map, int first,
                           device::Barrier* full) {
#pragma unroll
    for (int panel = 0; panel < COUNT; ++panel)
      device::copy_box(to + panel * PANEL, map, panel * 64, first, full);
  }

  // 16 halves, number `step`, of the rows from `row` on.
  DEVICE static uint64_t along(const char* block, int row, int step) {
    return describe(block + step / 4 * PANEL + row * ROW + step % 4 * 32, 16);
  }

  // 16 whole rows from `row` on.
  DEVICE static uint64_t over(const char* block, int row) {
    return describe(block + row * ROW, PANEL);
  }

 private:
  // Eight rows further is 8 * ROW bytes in either direction of use; `leading` is what 64 columns
  // further is, and without meaning along rows. `at` lies in the first row of a pattern.
  DEVICE static uint64_t describe(const char* at, int leading) {
    constexpr uint64_t SWIZZLE_128 = 1;
    const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
    return field(device::shared_address(at)) | field(leading) << 16 | field(8 * ROW) << 32 |
           SWIZZLE_128 << 62;
  }
};

// sum = rows of a times rows of b: (64, 8 GROUPS), issued and committed.
template <class A, class B, int GROUPS>
DEVICE void issue_scores(float (&sum)[GROUPS][4], const char* a, int a_row, const char* b) {
  static_assert(A::STEPS == B::STEPS && B::ROWS == 8 * GROUPS, "operands fit each other");
  device::fence_products(sum);
#pragma unroll
  for (int step = 0; step < A::STEPS; ++step)
    device::multiply_shared<GROUPS>(sum, A::along(a, a_row, step), B::along(b, 0, step), step > 0);
  device::commit_products();
}

// Stages of shared memory that go round from the copying thread to the consumers and back.
template <int STAGES>
struct Ring {
  static constexpr int BYTES = (2 * STAGES + 1) * int(sizeof(device::Barrier));
  device::Barrier* barriers;  // full, then empty, then one for what is copied once
  int stage = 0, parity = 0;

  DEVICE explicit Ring(char* at) : barriers(reinterpret_cast<device::Barrier*>(at)) {}

  // All threads of the block come here.
  DEVICE void start() {
    if (device::thread() == 0) {
      for (int i = 0; i < STAGES; ++i) {
        device::start_barrier(barriers + i, 1);
        device::start_barrier(barriers + STAGES + i, CONSUMERS / LANES);
      }
      device::start_barrier(once(), 1);
      device::show_barriers();
    }
    device::sync_block();
  }

  DEVICE device::Barrier* once() { return barriers + 2 * STAGES; }
  DEVICE device::Barrier* full() { return barriers + stage; }

  DEVICE void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }

  // For the copying thread. Waiting for the phase before the first ends at once.
  DEVICE void await_empty(int bytes) {
    device::await(barriers + STAGES + stage, parity ^ 1);
    device::arrive_expecting(full(), bytes);
  }

  // For consumers.
  DEVICE void await_full() { device::await(full(), parity); }

  DEVICE void release() {
    device::sync_warp();
    if (device::thread() % LANES == 0) device::arrive(barriers + STAGES + stage);
  }
};

// Starts a pass with maps of its operands in boxes of these rows.
template <class Pass>
int launch_mapped(void (*kernel)(const Mapped<Pass>), const Pass& a, int width, int x_box,
                  int y_box, int grid_x, int grid_y, int bytes, device::Stream stream) {
  Mapped<Pass> mapped;
  mapped.pass = a;
  int error = device::map_rows(mapped.x, a.x, width, a.rows, x_box);
  if (error == 0) error = device::map_rows(mapped.y, a.y, width, a.columns, y_box);
  if (error != 0) return error;
  return device::launch(kernel, grid_x, grid_y, WGMMA_THREADS, bytes, stream, mapped);
}
