// Vectors of the widest kind the instruction set has, and exp on them.
//
// T is float or double; V<T> is a vector of kLanes<T> values, I<T> of integers as wide as T.
#pragma once

#include <cstdint>
#include <cstring>

namespace selftaught::SELFTAUGHT_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T>
struct Vector;

template <>
struct Vector<float> {
  typedef float Values __attribute__((vector_size(kBytes)));
  typedef float Unaligned __attribute__((vector_size(kBytes), aligned(4), may_alias));
  typedef int32_t Integers __attribute__((vector_size(kBytes)));
  typedef int32_t Integer;
};

template <>
struct Vector<double> {
  typedef double Values __attribute__((vector_size(kBytes)));
  typedef double Unaligned __attribute__((vector_size(kBytes), aligned(8), may_alias));
  typedef int64_t Integers __attribute__((vector_size(kBytes)));
  typedef int64_t Integer;
};

template <class T>
using V = typename Vector<T>::Values;
template <class T>
using I = typename Vector<T>::Integers;
template <class T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

template <class T>
inline V<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::Unaligned*>(from);
}

template <class T>
inline I<T> load_integers(const typename Vector<T>::Integer* from) {
  I<T> result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

template <class T>
inline void store(T* to, V<T> values) {
  *reinterpret_cast<typename Vector<T>::Unaligned*>(to) = values;
}

template <class T>
inline V<T> all(T value) {
  return V<T>{} + value;
}

template <class T>
inline I<T> bits(V<T> values) {
  I<T> result;
  std::memcpy(&result, &values, sizeof result);
  return result;
}

template <class T>
inline V<T> from_bits(I<T> values) {
  V<T> result;
  std::memcpy(&result, &values, sizeof result);
  return result;
}

// `values` where `mask` is -1, 0 where it is 0.
template <class T>
inline V<T> keep(I<T> mask, V<T> values) {
  return from_bits<T>(mask & bits<T>(values));
}

template <class T>
inline V<T> choose(I<T> mask, V<T> yes, V<T> no) {
  return from_bits<T>((mask & bits<T>(yes)) | (~mask & bits<T>(no)));
}

template <class T>
inline V<T> larger(V<T> a, V<T> b) {
  return choose<T>(a > b, a, b);
}

template <class T>
inline T sum(V<T> values) {
  T halves[kLanes<T>];
  std::memcpy(halves, &values, sizeof halves);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) halves[lane] += halves[lane + width];
  }
  return halves[0];
}

template <class T>
inline T largest(V<T> values) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &values, sizeof lanes);
  T result = lanes[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) result = lanes[lane] > result ? lanes[lane] : result;
  return result;
}

// 0, 1, 2, ...
template <class T>
inline I<T> iota() {
  I<T> result{};
  for (int lane = 0; lane < kLanes<T>; ++lane) result[lane] = lane;
  return result;
}

}  // namespace selftaught::SELFTAUGHT_ISA
