// Matrices of float, half or bfloat16, read and written four numbers at a time.
#pragma once

#include "tile.cuh"

struct SingleNumber {
  using Stored = float;
  DEVICE static float value(float stored) { return stored; }
  DEVICE static float stored(float value) { return value; }
};

struct HalfNumber {
  using Stored = Half;
  DEVICE static float value(Half stored) { return device::half_value(stored); }
  DEVICE static Half stored(float value) { return static_cast<Half>(device::pack(value, 0)); }
};

struct BrainNumber {
  using Stored = uint16_t;
  DEVICE static float value(uint16_t stored) {
    return device::from_bits(static_cast<uint32_t>(stored) << 16);
  }
  DEVICE static uint16_t stored(float value) {
    if (value != value) return 0x7fff;
    const uint32_t bits = device::bits(value);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

// Four numbers side by side, in memory.
template <class Number>
struct Pack {
  using Word = uint2;
  DEVICE static float4 open(uint2 w) {
    return make_float4(Number::value(static_cast<uint16_t>(w.x)),
                       Number::value(static_cast<uint16_t>(w.x >> 16)),
                       Number::value(static_cast<uint16_t>(w.y)),
                       Number::value(static_cast<uint16_t>(w.y >> 16)));
  }
  DEVICE static uint2 close(float4 v) {
    return {Number::stored(v.x) | static_cast<uint32_t>(Number::stored(v.y)) << 16,
            Number::stored(v.z) | static_cast<uint32_t>(Number::stored(v.w)) << 16};
  }
};
template <>
struct Pack<SingleNumber> {
  using Word = float4;
  DEVICE static float4 open(float4 w) { return w; }
  DEVICE static float4 close(float4 v) { return v; }
};

// Numbers d to d + 3 of a row, zeros from `width` on. `whole`: rows start on 16 bytes and are
// multiples of 16 bytes wide.
template <class Number>
DEVICE float4 read_four(const typename Number::Stored* row, int d, int width, bool whole) {
  using Word = typename Pack<Number>::Word;
  if (whole) return Pack<Number>::open(*reinterpret_cast<const Word*>(row + d));
  const auto at = [&](int i) { return d + i < width ? Number::value(row[d + i]) : 0.0f; };
  return make_float4(at(0), at(1), at(2), at(3));
}

template <class Number>
DEVICE void write_four(typename Number::Stored* row, int d, int width, bool whole, float4 v) {
  using Word = typename Pack<Number>::Word;
  if (whole) {
    *reinterpret_cast<Word*>(row + d) = Pack<Number>::close(v);
    return;
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (d + i < width) row[d + i] = Number::stored(values[i]);
}

DEVICE float4 difference(float4 a, float4 b) {
  return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}
