// Gradients of the distance to the nearest centre, or of the MAD loss, in one pass over the rows.
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "nearest_center.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

constexpr int64_t kTaskRows = 512;

// A gradient is fresh memory, and faulting it in by small pages takes longer than the arithmetic.
void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 1 << 16, least = 1 << 23;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (last < first + least) return;
  // A hint: where it is refused the result is the same.
  [[maybe_unused]] const int status =
      madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

template <class T>
struct Gradients {
  const NearestCenter& given;
  const T *x, *centers;
  T *by_x, *by_centers;
  Mad<T> mad;

  explicit Gradients(const NearestCenter& arguments)
      : given(arguments),
        x(static_cast<const T*>(arguments.x)),
        centers(static_cast<const T*>(arguments.centers)),
        by_x(static_cast<T*>(arguments.by_x)),
        by_centers(static_cast<T*>(arguments.by_centers)),
        mad{static_cast<T>(arguments.eta), static_cast<T>(arguments.eps)} {}

  // The gradient by a row is weight * (row - centre).
  T weight(int64_t row) const {
    if (given.index[row] < 0) return static_cast<T>(__builtin_nan(""));
    const T grad = static_cast<const T*>(given.grad)[row * given.grad_stride];
    if (given.labels == nullptr) return 2 * grad;
    return 2 * (grad * mad.slope(static_cast<const T*>(given.squared)[row], given.labels[row]));
  }

  int64_t center(int64_t row) const { return given.index[row] < 0 ? 0 : given.index[row]; }

  void rows(int64_t first, int64_t last) const {
    for (int64_t row = first; row < last; ++row) {
      const T w = weight(row);
      const T* from = x + row * given.D;
      const T* c = centers + center(row) * given.D;
      T* __restrict out = by_x + row * given.D;
      for (int64_t d = 0; d < given.D; ++d) out[d] = w * (from[d] - c[d]);
    }
  }

  // Columns `first` to `last` of all rows in their order, so that the sums by centre do not
  // depend on how the columns are shared out.
  void columns(int64_t first, int64_t last, double* sums) const {
    const int64_t many = last - first;
    __builtin_memset(sums, 0, sizeof(double) * given.K * many);
    for (int64_t row = 0; row < given.N; ++row) {
      const T w = weight(row);
      const T* from = x + row * given.D + first;
      const T* c = centers + center(row) * given.D + first;
      double* __restrict sum = sums + center(row) * many;
      if (by_x == nullptr) {
        for (int64_t d = 0; d < many; ++d) sum[d] -= w * (from[d] - c[d]);
        continue;
      }
      T* __restrict out = by_x + row * given.D + first;
      for (int64_t d = 0; d < many; ++d) {
        const T value = w * (from[d] - c[d]);
        out[d] = value;
        sum[d] -= value;
      }
    }
    for (int64_t k = 0; k < given.K; ++k) {
      for (int64_t d = 0; d < many; ++d) {
        by_centers[k * given.D + first + d] = static_cast<T>(sums[k * many + d]);
      }
    }
  }
};

template <class T>
void nearest_center_backward(const NearestCenter& given) {
  const Gradients<T> gradients(given);
  const int64_t N = given.N, D = given.D;
  const int64_t threads = useful_threads(given.threads, 8.0 * N * D);
  if (gradients.by_x != nullptr) prefer_large_pages(given.by_x, N * D * sizeof(T));
  if (gradients.by_centers != nullptr) {
    const Buffer<double> sums(given.K * D);
    const int64_t most = D < 32 ? 1 : D / 16, parts = lesser(threads, most);
    for_tasks(threads, parts, [&](int64_t part, int64_t) {
      const int64_t first = D * part / parts, last = D * (part + 1) / parts;
      gradients.columns(first, last, sums.get() + given.K * first);
    });
  } else if (gradients.by_x != nullptr) {
    for_tasks(threads, (N + kTaskRows - 1) / kTaskRows, [&](int64_t task, int64_t) {
      gradients.rows(task * kTaskRows, lesser(N, (task + 1) * kTaskRows));
    });
  }
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(nearest_center_backward, selftaught::SELFTAUGHT_ISA::NearestCenter,
                  selftaught::SELFTAUGHT_ISA::nearest_center_backward)
