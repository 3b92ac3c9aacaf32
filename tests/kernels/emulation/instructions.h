// The machine instructions of `device.cuh` on the emulated GPU of `machine.h`.
#pragma once

#include "machine.h"

namespace device {

using Stream = void*;

inline int thread() { return emulation::current; }
inline int block_x() { return emulation::x; }
inline int block_y() { return emulation::y; }
inline void sync_block() { emulation::pause(emulation::Wait::block, 1); }
inline char* shared_memory() { return emulation::shared.data(); }

template <class Value>  // float or int
Value shuffle_xor(Value value, int lanes) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const emulation::Lane* all = emulation::exchange(2 + 100 * lanes, &word, 1, nullptr);
  std::memcpy(&value, &all[(emulation::current % emulation::LANES) ^ lanes].words[0], 4);
  return value;
}

inline uint32_t ballot(bool value) {
  const uint32_t word = value;
  const emulation::Lane* all = emulation::exchange(6, &word, 1, nullptr);
  uint32_t mask = 0;
  for (int lane = 0; lane < emulation::LANES; ++lane) mask |= all[lane].words[0] << lane;
  return mask;
}

inline uint32_t bits(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

inline float from_bits(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline void add_to(int* sum, int value) { *sum += value; }
inline void add_to(int64_t* sum, int64_t value) { *sum += value; }

template <class Value>
Value load_shared(const char* from) {
  const emulation::Lane* all = emulation::exchange(7, nullptr, 0, from);
  if (emulation::current % emulation::LANES == 0) emulation::count_conflicts(all, sizeof(Value));
  Value value;
  std::memcpy(&value, from, sizeof(Value));
  return value;
}

inline float exp2_fast(float x) {
  const float value = std::exp2(x);
  return value < 1.17549435e-38f ? 0.0f : value;
}

inline uint16_t half_bits(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &rounded, 2);
  return bits;
}

inline uint32_t pack(float first, float second) {
  return half_bits(first) | static_cast<uint32_t>(half_bits(second)) << 16;
}

inline float half_value(uint16_t bits) { return static_cast<float>(emulation::half(bits, 0)); }

inline void load_matrices(uint32_t (&out)[4], const void* row) {
  const emulation::Lane* all = emulation::exchange(3, nullptr, 0, row);
  const int lane = emulation::current % emulation::LANES;
  if (lane == 0) emulation::count_conflicts(all);
  for (int block = 0; block < 4; ++block)
    std::memcpy(&out[block], all[8 * block + lane / 4].address + 4 * (lane % 4), 4);
}

inline void load_transposed(uint32_t (&out)[4], const void* row) {
  const emulation::Lane* all = emulation::exchange(4, nullptr, 0, row);
  const int lane = emulation::current % emulation::LANES;
  if (lane == 0) emulation::count_conflicts(all);
  for (int block = 0; block < 4; ++block) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i)
      std::memcpy(&pair[i], all[8 * block + 2 * (lane % 4) + i].address + 2 * (lane / 4), 2);
    std::memcpy(&out[block], pair, 4);
  }
}

// PTX layouts: A's register r of lane l holds row l / 4 + 8 (r % 2), columns 2 (l % 4) + 8 (r / 2)
// and the next; B's holds rows 2 (l % 4) + 8 r and the next, column l / 4; the sum's register r
// holds row l / 4 + 8 (r / 2), column 2 (l % 4) + r % 2.
inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const emulation::Lane* all = emulation::exchange(5, words, 6, nullptr);
  const int lane = emulation::current % emulation::LANES;
  for (int r = 0; r < 4; ++r) {
    const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
    for (int upper = 0; upper < 2; ++upper) {
      double total = sum[r];
      for (int k = 0; k < 8; ++k) {
        const uint32_t left = all[4 * (row % 8) + k / 2].words[row / 8 + 2 * upper];
        const uint32_t right = all[4 * column + k / 2].words[4 + upper];
        total += emulation::half(left, k % 2) * emulation::half(right, k % 2);
      }
      sum[r] = emulation::truncate(total);
    }
  }
}

inline void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const emulation::Lane* all = emulation::exchange(8, words, 6, nullptr);
  const int lane = emulation::current % emulation::LANES;
  for (int r = 0; r < 4; ++r) {
    const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
    for (int upper = 0; upper < 2; ++upper) {
      double total = sum[r];
      for (int k = 0; k < 4; ++k) {
        const uint32_t left = all[4 * (row % 8) + k].words[row / 8 + 2 * upper];
        const uint32_t right = all[4 * column + k].words[4 + upper];
        total += emulation::short_float(left) * emulation::short_float(right);
      }
      sum[r] = emulation::truncate(total);
    }
  }
}

inline void copy_later(void* to, const void* from, bool wanted) {
  emulation::inside(to, 16);
  emulation::Fibre& fibre = emulation::fibres[emulation::current];
  fibre.copies.push_back({to, from, wanted});
  if (emulation::seed % 2) emulation::finish_copies(fibre);
}

inline void await_copies() {
  emulation::finish_copies(emulation::fibres[emulation::current]);
}

template <class Argument>
int launch(void (*kernel)(const Argument), int grid_x, int grid_y, int threads, int bytes, Stream,
           const Argument& argument) {
  using namespace emulation;
  if (fibres.size() < static_cast<size_t>(threads)) fibres.resize(threads);
  warps.resize(threads / LANES);
  shared.resize(bytes);
  body = [&] { kernel(argument); };
  for (y = 0; y < grid_y; ++y)
    for (x = 0; x < grid_x; ++x) run_block(threads);
  return 0;
}

}  // namespace device
