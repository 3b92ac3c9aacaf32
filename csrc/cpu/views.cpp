// NT-Xent of two views, one call each way: the passes of the other files and what lies between them.
#include <cstring>

#include "contrastive.h"
#include "library.h"

// A kernel of another file, for both types.
#define SELFTAUGHT_USE(name, Arguments)                                                   \
  SELFTAUGHT_EXPORT int SELFTAUGHT_NAME(name, f32, SELFTAUGHT_ISA)(const Arguments*);     \
  SELFTAUGHT_EXPORT int SELFTAUGHT_NAME(name, f64, SELFTAUGHT_ISA)(const Arguments*);     \
  namespace selftaught::SELFTAUGHT_ISA {                                                  \
  namespace {                                                                             \
  template <class T>                                                                      \
  void name(const Arguments& a) {                                                         \
    done(sizeof(T) == 4 ? SELFTAUGHT_NAME(name, f32, SELFTAUGHT_ISA)(&a)                  \
                        : SELFTAUGHT_NAME(name, f64, SELFTAUGHT_ISA)(&a));                \
  }                                                                                       \
  }                                                                                       \
  }

namespace selftaught::SELFTAUGHT_ISA {
namespace {

void done(int status) {
  if (status == kOutOfMemory) throw std::bad_alloc();
  if (status != kDone) throw status;
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_USE(normalize, selftaught::Normalize)
SELFTAUGHT_USE(dots, selftaught::Dots)
SELFTAUGHT_USE(log_sums, selftaught::LogSums)
SELFTAUGHT_USE(weighted_sums, selftaught::WeightedSums)
SELFTAUGHT_USE(finish, selftaught::Finish)

namespace selftaught::SELFTAUGHT_ISA {
namespace {

// All rows against all, without a row itself and its other view.
Matrix matrix_of(const Views& a) {
  const int64_t count = 2 * a.images;
  return {a.unit, a.unit, a.temperature, count, count, a.width, 1, 0, a.images, 1, a.threads};
}

// A row's place in a matrix or, with width 1, in a vector; null stays null.
template <class T>
T* at(void* start, int64_t row, int64_t width = 1) {
  return start == nullptr ? nullptr : static_cast<T*>(start) + row * width;
}

template <class T>
void views(const Views& a) {
  const void* const given[2] = {a.z1, a.z2};
  for (int64_t view = 0; view < 2; ++view) {
    T* to = at<T>(a.unit, view * a.images, a.width);
    if (a.inverse == nullptr) {
      std::memcpy(to, given[view], sizeof(T) * a.images * a.width);
    } else {
      T* inverse = at<T>(a.inverse, view * a.images);
      normalize<T>({given[view], to, inverse, a.images, a.width, a.row_threads});
    }
  }
  log_sums<T>({matrix_of(a), a.losses, nullptr});
  dots<T>({a.unit, at<T>(a.unit, a.images, a.width), a.images, a.width, a.positive});
  const T temperature = *static_cast<const T*>(a.temperature);
  for (int64_t image = 0; image < a.images; ++image) {
    const T positive = *at<T>(a.positive, image) / temperature;
    for (int64_t row = image; row < 2 * a.images; row += a.images) {
      *at<T>(a.positive, row) = positive;
      T* loss = at<T>(a.losses, row);
      const double apart = static_cast<double>(*loss) - static_cast<double>(positive);
      const double rest = __builtin_log1p(__builtin_exp(apart > 0 ? -apart : apart));
      *loss = static_cast<T>(apart > 0 ? apart + rest : rest);
    }
  }
}

template <class T>
void views_backward(const Views& a) {
  const int64_t count = 2 * a.images;
  const Buffer<T> weight(count), total(count), pair(a.images), sums(count * a.width);
  const Buffer<T> slopes(a.of_temperature == nullptr ? 0 : count);
  for (int64_t row = 0; row < count; ++row) {
    const T grad = static_cast<const T*>(a.grad)[row * a.grad_step];
    const T loss = *at<T>(a.losses, row);
    weight[row] = grad / static_cast<T>(a.over);
    total[row] = loss + *at<T>(a.positive, row);
    const T more = weight[row] * static_cast<T>(__builtin_expm1(-static_cast<double>(loss)));
    if (row < a.images) {
      pair[row] = more;
    } else {
      pair[row - a.images] += more;
    }
  }
  const Side side{weight.get(), total.get(), a.positive, nullptr};
  void* const of_slopes = a.of_temperature == nullptr ? nullptr : slopes.get();
  weighted_sums<T>({matrix_of(a), side, side, nullptr, nullptr, sums.get(), of_slopes});
  void* const gradients[2] = {a.gradient1, a.gradient2};
  for (int64_t view = 0; view < 2; ++view) {
    if (gradients[view] == nullptr) continue;
    const int64_t first = view * a.images;
    finish<T>({sums.get() + first * a.width, at<T>(a.unit, first, a.width),
               at<T>(a.inverse, first), a.temperature, at<T>(a.unit, a.images - first, a.width),
               pair.get(), gradients[view], a.images, a.width, a.row_threads});
  }
  if (a.of_temperature == nullptr) return;
  double slope = 0;
  for (int64_t row = 0; row < count; ++row) slope += static_cast<double>(slopes[row]);
  const double temperature = static_cast<double>(*static_cast<const T*>(a.temperature));
  *static_cast<T*>(a.of_temperature) = static_cast<T>(-slope / temperature);
}

}  // namespace
}  // namespace selftaught::SELFTAUGHT_ISA

SELFTAUGHT_KERNEL(views, selftaught::Views, selftaught::SELFTAUGHT_ISA::views)
SELFTAUGHT_KERNEL(views_backward, selftaught::Views, selftaught::SELFTAUGHT_ISA::views_backward)
