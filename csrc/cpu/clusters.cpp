// k-means' passes over the rows besides the search: exact sums by cluster, rows on their grid,
// squared distances in double. All give the bits of the formulas in selftaught/search, which say
// what they are for.
#include "nearest_center.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

constexpr int64_t kTaskRows = 256;

// Mirrored, as the other structs here, by selftaught/kernels/cpp/clusters.py.
struct ClusterSums {
  const void* x;         // (N, D)
  const double* weights;  // (N,) optional
  const double* scale;    // (D,) optional: values are rounded to multiples of 1 / scale
  const int64_t* before;  // (N,) optional: clusters that the sums hold the rows in now
  const int64_t* now;     // (N,) optional: clusters that they shall; null: all are in cluster 0
  double* totals;         // (K, D)
  double* masses;         // (K,)
  int64_t* moved;         // (1,) out: rows that change their cluster
  int64_t N, K, D, threads;
  double weight_scale;
};

template <class T>
struct Summing {
  const ClusterSums& given;
  bool whole;  // sum all rows instead of moving some

  template <bool weighted, bool scaled>
  void add(int64_t row, int64_t first, int64_t last, int64_t cluster, double sign) const {
    const T* from = static_cast<const T*>(given.x) + row * given.D;
    double* __restrict sum = given.totals + cluster * given.D;
    const double weight = weighted ? given.weights[row] : 1;
    for (int64_t d = first; d < last; ++d) {
      double value = from[d];
      if (weighted) value *= weight;
      if (scaled) value = __builtin_rint(value * given.scale[d]);
      sum[d] += sign * value;
    }
    if (first > 0) return;
    given.masses[cluster] += sign * (weighted ? __builtin_rint(weight * given.weight_scale) : 1);
  }

  template <bool weighted, bool scaled>
  void columns(int64_t first, int64_t last) const {
    if (whole) {
      for (int64_t k = 0; k < given.K; ++k) {
        for (int64_t d = first; d < last; ++d) given.totals[k * given.D + d] = 0;
        if (first == 0) given.masses[k] = 0;
      }
    }
    for (int64_t row = 0; row < given.N; ++row) {
      const int64_t to = given.now == nullptr ? 0 : given.now[row];
      if (!whole) {
        const int64_t from = given.before[row];
        if (from == to) continue;
        add<weighted, scaled>(row, first, last, from, -1);
      }
      add<weighted, scaled>(row, first, last, to, 1);
    }
  }
};

template <class T>
void cluster_sums(const ClusterSums& given) {
  int64_t moved = given.N;
  if (given.before != nullptr) {
    moved = 0;
    for (int64_t row = 0; row < given.N; ++row) moved += given.before[row] != given.now[row];
  }
  *given.moved = moved;
  if (moved == 0 && given.before != nullptr) return;
  const Summing<T> summing{given, given.before == nullptr || 2 * moved > given.N};
  // Every thread has columns of its own, so that none waits for another's sums.
  const int64_t threads = useful_threads(given.threads, 8.0 * moved * given.D);
  const int64_t parts = lesser<int64_t>(threads, given.D < 32 ? 1 : given.D / 16);
  for_tasks(threads, parts, [&](int64_t part, int64_t) {
    const int64_t first = given.D * part / parts, last = given.D * (part + 1) / parts;
    if (given.weights != nullptr) return summing.template columns<true, true>(first, last);
    if (given.scale != nullptr) return summing.template columns<false, true>(first, last);
    summing.template columns<false, false>(first, last);
  });
}

struct ToGrid {
  const void* x;         // (N, D)
  const double* origin;  // (D,)
  const double* scale;   // (D,) powers of two
  float* out;            // (N, D)
  int64_t N, D, threads;
};

template <class T>
void to_grid(const ToGrid& given) {
  const int64_t D = given.D;
  const Buffer<double> step(D);
  for (int64_t d = 0; d < D; ++d) step[d] = 1 / given.scale[d];
  const double *origin = given.origin, *scale = given.scale, *steps = step.get();
  for_tasks(useful_threads(given.threads, 8.0 * given.N * D),
            (given.N + kTaskRows - 1) / kTaskRows, [&](int64_t task, int64_t) {
              const int64_t last = lesser(given.N, (task + 1) * kTaskRows);
              for (int64_t row = task * kTaskRows; row < last; ++row) {
                const T* from = static_cast<const T*>(given.x) + row * D;
                float* __restrict out = given.out + row * D;
                for (int64_t d = 0; d < D; ++d) {
                  const double moved = static_cast<double>(from[d]) - origin[d];
                  out[d] = static_cast<float>(__builtin_rint(moved * scale[d]) * steps[d]);
                }
              }
            });
}

struct SquaredTo {
  const void* x;          // (N, D)
  const double* centers;  // (K, D)
  const int64_t* index;   // (N,)
  double* out;            // (N,)
  int64_t N, D, threads;
};

// Not inlined: a product must be rounded before it is added to another.
__attribute__((noinline)) double folded_sum(double* terms, int64_t width) {
  while (width > 1) {
    const int64_t half = (width + 1) / 2, rest = width - half;
    double* __restrict out = terms;
    const double* __restrict from = terms + half;
    for (int64_t i = 0; i < rest; ++i) out[i] += from[i];
    width = half;
  }
  return terms[0];
}

template <class T>
void squared_to(const SquaredTo& given) {
  const int64_t D = given.D, threads = useful_threads(given.threads, 8.0 * given.N * D);
  const Buffer<double> terms(threads * D);
  for_tasks(threads, (given.N + kTaskRows - 1) / kTaskRows, [&](int64_t task, int64_t worker) {
    double* __restrict own = terms.get() + worker * D;
    const int64_t last = lesser(given.N, (task + 1) * kTaskRows);
    for (int64_t row = task * kTaskRows; row < last; ++row) {
      const T* from = static_cast<const T*>(given.x) + row * D;
      const double* center = given.centers + given.index[row] * D;
      for (int64_t d = 0; d < D; ++d) {
        const double difference = static_cast<double>(from[d]) - center[d];
        own[d] = difference * difference;
      }
      given.out[row] = folded_sum(own, D);
    }
  });
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(cluster_sums, selftaught::SELFTAUGHT_ISA::ClusterSums,
                  selftaught::SELFTAUGHT_ISA::cluster_sums)
SELFTAUGHT_KERNEL(to_grid, selftaught::SELFTAUGHT_ISA::ToGrid,
                  selftaught::SELFTAUGHT_ISA::to_grid)
SELFTAUGHT_KERNEL(squared_to, selftaught::SELFTAUGHT_ISA::SquaredTo,
                  selftaught::SELFTAUGHT_ISA::squared_to)
