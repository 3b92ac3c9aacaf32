// exp of vectors: relative error below 2 units in the last place of T.
#pragma once

#include "simd.h"

namespace selftaught::SELFTAUGHT_ISA {

constexpr double kLog2E = 1.4426950408889634074;

template <class T>
struct Exponent;

template <>
struct Exponent<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissa = 23;
  static constexpr int kTerms = 7;
  static constexpr float kLowest = -87.0f;  // exp of it is still normal
  static constexpr float kHighest = 88.0f;
};

template <>
struct Exponent<double> {
  static constexpr double kRound = 6755399441055744.0;
  static constexpr int kMantissa = 52;
  static constexpr int kTerms = 13;
  static constexpr double kLowest = -708.0;
  static constexpr double kHighest = 709.0;
};

// Taylor coefficients of 2^f: log(2)^k / k!.
template <class T>
struct Powers {
  T of[Exponent<T>::kTerms + 1];

  constexpr Powers() : of{} {
    double term = 1;
    for (int k = 0; k <= Exponent<T>::kTerms; ++k) {
      of[k] = static_cast<T>(term);
      term *= 0.69314718055994530942 / (k + 1);
    }
  }
};

template <class T>
inline constexpr Powers<T> kPowers{};

// A factor kept in two parts, so that a product with it is as good as exact where it matters.
template <class T>
struct Factor {
  T high, low;

  explicit Factor(double value)
      : high(static_cast<T>(value)), low(static_cast<T>(value - static_cast<double>(high))) {}
};

// 2^(s * factor - shift) for an integer shift. |s * factor| must be below 2^20, and the result in
// the range of normal numbers.
template <class T>
inline V<T> power_of_2(V<T> s, const Factor<T>& factor, T shift) {
  const T round = Exponent<T>::kRound - shift;
  const V<T> shifted = s * factor.high + round;
  const V<T> whole = shifted - round;
  const V<T> fraction = (s * factor.high - whole) + s * factor.low;
  V<T> result = all<T>(kPowers<T>.of[Exponent<T>::kTerms]);
#pragma GCC unroll 16
  for (int k = Exponent<T>::kTerms - 1; k >= 0; --k) {
    result = result * fraction + kPowers<T>.of[k];
  }
  return from_bits<T>(bits<T>(result) + (bits<T>(shifted) << Exponent<T>::kMantissa));
}

// exp(value), 0 where that is below the normal numbers; saturates above.
template <class T>
inline V<T> exponential(V<T> value, const Factor<T>& log2e) {
  const V<T> lowest = all<T>(Exponent<T>::kLowest);
  const V<T> highest = all<T>(Exponent<T>::kHighest);
  const V<T> inside = choose<T>(value < highest, larger<T>(value, lowest), highest);
  return keep<T>(value >= lowest, power_of_2<T>(inside, log2e, 0));
}

}  // namespace selftaught::SELFTAUGHT_ISA
