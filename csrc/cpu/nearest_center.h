// What the nearest centre's forward and backward share: the arguments and the MAD loss.
#pragma once

#include "library.h"
#include "simd.h"

namespace selftaught::SELFTAUGHT_ISA {

// Mirrored by selftaught/kernels/cpp/spheres.py. N rows, K centres, D width; matrices are
// contiguous; what is marked optional may be null.
struct NearestCenter {
  const void* x;          // (N, D)
  const void* centers;    // (K, D)
  const uint8_t* active;  // (K,) optional
  const int64_t* labels;  // (N,) optional: the distance itself takes the place of the loss
  void* loss;             // (N,) optional
  void* squared;          // (N,)
  int64_t* index;         // (N,)
  int64_t* counts;        // (K,) optional
  const void* grad;       // (N,), one value every `grad_stride`; backward only
  void* by_x;             // (N, D) optional; backward only
  void* by_centers;       // (K, D) optional; backward only
  int64_t N, K, D, grad_stride, threads;
  double eta, eps;
};

template <class N>
inline N lesser(N a, N b) {
  return b < a ? b : a;
}

// Threads worth starting for that many multiplications.
inline int64_t useful_threads(int64_t threads, double operations) {
  const double most = operations / (1 << 21);
  return most < 1 ? 1 : most < threads ? static_cast<int64_t>(most) : threads;
}

// Paper, Eq. 2, of one row's squared distance and semi-label.
template <class T>
struct Mad {
  T eta, eps;

  T loss(T squared, int64_t label) const {
    switch (label) {
      case 0: return squared;
      case 1: return eta * (squared + eps);
      case -1: return eta / (squared + eps);
      default: return static_cast<T>(__builtin_nan(""));
    }
  }

  // Its derivative by the squared distance.
  T slope(T squared, int64_t label) const {
    switch (label) {
      case 0: return 1;
      case 1: return eta;
      // Divided twice: the square of a small eps is 0 in float.
      case -1: return -eta / (squared + eps) / (squared + eps);
      default: return static_cast<T>(__builtin_nan(""));
    }
  }
};

}  // namespace selftaught::SELFTAUGHT_ISA
