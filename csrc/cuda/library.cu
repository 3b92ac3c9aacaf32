// The library's C functions: each starts kernels on a stream and returns 0 or a CUDA error code.
//
// A C++ compiler without CUDA makes the emulated library of the tests from this same file.
#include "log_sums.cuh"
#include "ranges.cuh"
#include "rows.cuh"
#include "weighted_sums.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Changes with every struct or function below, so that Python refuses a library of another time.
constexpr int INTERFACE = 1;

namespace {

// Shapes fit in 99 KiB of shared memory, which every chip from sm_80 on has.
template <int WIDTH, bool SPLIT>
struct Shapes;
template <>
struct Shapes<64, false> {
  using Forward = LogSumsShape<64, false, 128, 64, 2>;
  using Backward = WeightedSumsShape<64, false, 2, 64, 2>;
};
template <>
struct Shapes<128, false> {
  using Forward = LogSumsShape<128, false, 128, 64, 2>;
  using Backward = WeightedSumsShape<128, false, 2, 64, 2>;
};
template <>
struct Shapes<256, false> {
  using Forward = LogSumsShape<256, false, 64, 64, 2>;
  using Backward = WeightedSumsShape<256, false, 1, 32, 2>;
};
template <>
struct Shapes<64, true> {
  using Forward = LogSumsShape<64, true, 128, 64, 2>;
  using Backward = WeightedSumsShape<64, true, 1, 64, 2>;
};
template <>
struct Shapes<128, true> {
  using Forward = LogSumsShape<128, true, 64, 64, 2>;
  using Backward = WeightedSumsShape<128, true, 1, 32, 2>;
};
template <>
struct Shapes<256, true> {
  using Forward = LogSumsShape<256, true, 64, 32, 1>;
  using Backward = WeightedSumsShape<256, true, 1, 32, 1>;
};

constexpr int BAD_SHAPE = -1;

int blocks(int64_t count, int per_block) {
  return static_cast<int>((count + per_block - 1) / per_block);
}

// Calls `use` with the shapes of a padded width and a tier.
template <class Use>
int with_shapes(int padded, int split, Use use) {
  if (padded == 64) return split ? use(Shapes<64, true>()) : use(Shapes<64, false>());
  if (padded == 128) return split ? use(Shapes<128, true>()) : use(Shapes<128, false>());
  if (padded == 256) return split ? use(Shapes<256, true>()) : use(Shapes<256, false>());
  return BAD_SHAPE;
}

template <class Argument>
int over_rows(void (*kernel)(const Argument), const Argument& a, device::Stream stream) {
  return device::launch(kernel, blocks(a.count, THREADS / LANES), 1, THREADS, 0, stream, a);
}

template <class Argument>
int over_items(void (*kernel)(const Argument), const Argument& a, device::Stream stream) {
  return device::launch(kernel, blocks(a.count, THREADS), 1, THREADS, 0, stream, a);
}

}  // namespace

EXPORTED int selftaught_interface() { return INTERFACE; }

// Rows of a block of the forward pass's circle.
EXPORTED int selftaught_circle_block(int padded, int split) {
  return with_shapes(padded, split, [](auto shapes) { return decltype(shapes)::Forward::F; });
}

// Rows a block of the gradient pass owns.
EXPORTED int selftaught_gradient_rows(int padded, int split) {
  return with_shapes(padded, split, [](auto shapes) { return decltype(shapes)::Backward::ROWS; });
}

EXPORTED int selftaught_prepare(const Prepare* a, device::Stream stream) {
  return over_rows(prepare, *a, stream);
}

EXPORTED int selftaught_dots(const Dots* a, device::Stream stream) {
  return over_rows(dots, *a, stream);
}

EXPORTED int selftaught_finish(const Finish* a, device::Stream stream) {
  return over_rows(finish, *a, stream);
}

EXPORTED int selftaught_set_ranges(const Setup* a, device::Stream stream) {
  const int bytes = SETUP_THREADS / LANES * static_cast<int>(sizeof(float));
  return device::launch(set_ranges, 1, 1, SETUP_THREADS, bytes, stream, *a);
}

EXPORTED int selftaught_set_sides(const Sides* a, device::Stream stream) {
  return over_items(set_sides, *a, stream);
}

EXPORTED int selftaught_log_sums(const LogSums* a, int padded, int split, device::Stream stream) {
  return with_shapes(padded, split, [&](auto shapes) {
    using Shape = typename decltype(shapes)::Forward;
    return device::launch(log_sums<Shape>, blocks(a->rows, Shape::F),
                          blocks(a->last - a->first, a->chunk), THREADS, Shape::BYTES, stream, *a);
  });
}

EXPORTED int selftaught_merge(const Merge* a, device::Stream stream) {
  return over_items(merge, *a, stream);
}

EXPORTED int selftaught_weighted_sums(const WeightedSums* a, int padded, int split,
                                      device::Stream stream) {
  return with_shapes(padded, split, [&](auto shapes) {
    using Shape = typename decltype(shapes)::Backward;
    return device::launch(weighted_sums<Shape>, blocks(a->rows, Shape::ROWS),
                          blocks(a->columns, a->chunk), THREADS, Shape::BYTES, stream, *a);
  });
}

EXPORTED int selftaught_gather(const Gather* a, device::Stream stream) {
  return over_items(gather, *a, stream);
}

#ifdef __CUDACC__
// Why kernels cannot run on a device; "" where they can.
EXPORTED const char* selftaught_trouble(int index) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, merge);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

EXPORTED const char* selftaught_error(int code) {
  return code == BAD_SHAPE ? "no kernel has this width"
                           : cudaGetErrorString(static_cast<cudaError_t>(code));
}
#else
EXPORTED const char* selftaught_trouble(int) { return ""; }
EXPORTED const char* selftaught_error(int) { return "no kernel has this width"; }
// Order of threads and copies from now on; bank conflicts so far.
EXPORTED void selftaught_seed(int seed) { emulation::seed = seed; }
EXPORTED long selftaught_conflicts() { return emulation::conflicts; }
#endif
