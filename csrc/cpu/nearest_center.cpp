// Nearest centre of every row, and the MAD loss on its distance, without an (N, K) matrix.
#include "nearest_center_search.h"

namespace selftaught::SELFTAUGHT_ISA {
namespace {

template <class T>
void write(const NearestCenter& given, const Row<T>* rows, int64_t first, int64_t count) {
  const Mad<T> mad{static_cast<T>(given.eta), static_cast<T>(given.eps)};
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = first + r;
    static_cast<T*>(given.squared)[row] = rows[r].squared;
    given.index[row] = rows[r].index;
    if (given.loss == nullptr) continue;
    static_cast<T*>(given.loss)[row] = mad.loss(rows[r].squared, given.labels[row]);
  }
}

template <class T>
void nearest_center(const NearestCenter& given) {
  const T *x = static_cast<const T*>(given.x), *centers = static_cast<const T*>(given.centers);
  const int64_t N = given.N, K = given.K, D = given.D;
  int64_t live = 0;
  for (int64_t k = 0; k < K; ++k) live += given.active == nullptr || given.active[k] != 0;
  Packed<T> packed(live, D);
  for (int64_t k = 0, column = 0; k < K; ++k) {
    if (given.active == nullptr || given.active[k] != 0) packed.ids[column++] = k;
  }
  packed.fill(centers, given.threads);

  const int64_t threads = useful_threads(given.threads, 1.0 * N * D * (live + 4));
  const int64_t stride = Search<T>::stride_for(D), size = kBlockRows * stride;
  const Buffer<T> moved(threads * size), scores(threads * Search<T>::scores_for(packed));
  // Rows past the last one, and columns past the width, are read as well.
  __builtin_memset(moved.get(), 0, sizeof(T) * threads * size);
  for_tasks(threads, (N + kBlockRows - 1) / kBlockRows, [&](int64_t task, int64_t worker) {
    const int64_t first = task * kBlockRows, count = lesser(kBlockRows, N - first);
    Search<T> search{packed, centers, stride, moved.get() + worker * size,
                     scores.get() + worker * Search<T>::scores_for(packed), {}};
    search.run(x + first * D, count);
    write(given, search.rows, first, count);
  });
  if (given.counts == nullptr) return;
  __builtin_memset(given.counts, 0, sizeof(int64_t) * K);
  for (int64_t row = 0; row < N; ++row) {
    if (given.index[row] >= 0) ++given.counts[given.index[row]];
  }
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(nearest_center, selftaught::SELFTAUGHT_ISA::NearestCenter,
                  selftaught::SELFTAUGHT_ISA::nearest_center)
