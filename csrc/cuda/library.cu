// The library's C functions: each starts kernels on a stream and returns 0 or a CUDA error code.
#include "centers.cuh"
#include "log_sums.cuh"
#include "nearest_center.cuh"
#include "nearest_gradient.cuh"
#include "ranges.cuh"
#include "rows.cuh"
#include "weighted_sums.cuh"
#include "wgmma_log_sums.cuh"
#include "wgmma_weighted_sums.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Changes with every struct or function below, so that Python refuses a library of another time.
constexpr int INTERFACE = 3;

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

// Shapes for sm_90a have as much as that chip has.
template <int WIDTH>
struct WgmmaShapes;
template <>
struct WgmmaShapes<64> {
  using Forward = WgmmaLogSumsShape<64, 4>;
  using Backward = WgmmaWeightedSumsShape<64, 128, 4>;
};
template <>
struct WgmmaShapes<128> {
  using Forward = WgmmaLogSumsShape<128, 4>;
  using Backward = WgmmaWeightedSumsShape<128, 128, 4>;
};
template <>
struct WgmmaShapes<256> {
  using Forward = WgmmaLogSumsShape<256, 2>;
  using Backward = WgmmaWeightedSumsShape<256, 64, 4>;
};

// Variants of the passes: one half per number, two halves, one half on warpgroups of sm_90a.
constexpr int SPLIT_VARIANT = 1, WGMMA_VARIANT = 2;
constexpr int BAD_SHAPE = -1;

int blocks(int64_t count, int per_block) {
  return static_cast<int>((count + per_block - 1) / per_block);
}

template <template <int> class Of, class Use>
int with_width(int padded, Use use) {
  if (padded == 64) return use(Of<64>());
  if (padded == 128) return use(Of<128>());
  if (padded == 256) return use(Of<256>());
  return BAD_SHAPE;
}

template <int WIDTH>
using WholeShapes = Shapes<WIDTH, false>;
template <int WIDTH>
using SplitShapes = Shapes<WIDTH, true>;

// Calls one with the shapes of a padded width and a variant.
template <class Use, class UseWgmma>
int with_shapes(int padded, int variant, Use use, UseWgmma use_wgmma) {
  if (variant == WGMMA_VARIANT) return with_width<WgmmaShapes>(padded, use_wgmma);
  return variant == SPLIT_VARIANT ? with_width<SplitShapes>(padded, use)
                                  : with_width<WholeShapes>(padded, use);
}

template <class Use>
int with_shapes(int padded, int variant, Use use) {
  return with_shapes(padded, variant, use, use);
}

template <class Argument>
int over_rows(void (*kernel)(const Argument), const Argument& a, device::Stream stream) {
  return device::launch(kernel, blocks(a.count, THREADS / LANES), 1, THREADS, 0, stream, a);
}

template <class Argument>
int over_items(void (*kernel)(const Argument), const Argument& a, device::Stream stream) {
  return device::launch(kernel, blocks(a.count, THREADS), 1, THREADS, 0, stream, a);
}

// Calls one with the type of the rows' numbers: 0 float, 1 half, 2 bfloat16.
template <class Use>
int with_number(int number, Use use) {
  if (number == 0) return use(SingleNumber());
  if (number == 1) return use(HalfNumber());
  return number == 2 ? use(BrainNumber()) : BAD_SHAPE;
}

template <class Shape>
int launch_assign(const Assign& a, device::Stream stream) {
  return device::launch(assign<Shape>, a.blocks, 1, THREADS, Shape::bytes(a), stream, a);
}

}  // namespace

EXPORTED int selftaught_interface() { return INTERFACE; }

// Rows of a block of the forward pass's circle.
EXPORTED int selftaught_circle_block(int padded, int variant) {
  return with_shapes(padded, variant, [](auto shapes) { return decltype(shapes)::Forward::F; });
}

// Partial sums of a walked row at a distance.
EXPORTED int selftaught_circle_parts(int padded, int variant) {
  return with_shapes(padded, variant,
                     [](auto shapes) { return decltype(shapes)::Forward::ACROSS; });
}

// Rows a block of the gradient pass owns.
EXPORTED int selftaught_gradient_rows(int padded, int variant) {
  return with_shapes(padded, variant, [](auto shapes) { return decltype(shapes)::Backward::ROWS; });
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

EXPORTED int selftaught_log_sums(const LogSums* a, int padded, int variant,
                                 device::Stream stream) {
  const auto chunks = blocks(a->last - a->first, a->chunk);
  return with_shapes(
      padded, variant,
      [&](auto shapes) {
        using Shape = typename decltype(shapes)::Forward;
        return device::launch(log_sums<Shape>, blocks(a->rows, Shape::F), chunks, THREADS,
                              Shape::BYTES, stream, *a);
      },
      [&](auto shapes) {
        using Shape = typename decltype(shapes)::Forward;
        return launch_mapped(wgmma_log_sums<Shape>, *a, Shape::WIDTH, Shape::F, Shape::W,
                             blocks(a->rows, Shape::F), chunks, Shape::BYTES, stream);
      });
}

EXPORTED int selftaught_merge(const Merge* a, device::Stream stream) {
  return over_items(merge, *a, stream);
}

EXPORTED int selftaught_weighted_sums(const WeightedSums* a, int padded, int variant,
                                      device::Stream stream) {
  const auto chunks = blocks(a->columns, a->chunk);
  return with_shapes(
      padded, variant,
      [&](auto shapes) {
        using Shape = typename decltype(shapes)::Backward;
        return device::launch(weighted_sums<Shape>, blocks(a->rows, Shape::ROWS), chunks, THREADS,
                              Shape::BYTES, stream, *a);
      },
      [&](auto shapes) {
        using Shape = typename decltype(shapes)::Backward;
        return launch_mapped(wgmma_weighted_sums<Shape>, *a, Shape::WIDTH, Shape::ROWS,
                             Shape::COLUMNS, blocks(a->rows, Shape::ROWS), chunks, Shape::BYTES,
                             stream);
      });
}

EXPORTED int selftaught_gather(const Gather* a, device::Stream stream) {
  return over_items(gather, *a, stream);
}

EXPORTED int selftaught_sum_centers(const SumCenters* a, device::Stream stream) {
  return device::launch(sum_centers, blocks(a->count, SUMMED_CENTERS),
                        blocks(a->width + 1, THREADS), THREADS, 0, stream, *a);
}

EXPORTED int selftaught_move_centers(const MoveCenters* a, device::Stream stream) {
  if (a->padded > WIDEST_MOVED) return BAD_SHAPE;
  const int bytes = SLICES * a->padded * static_cast<int>(sizeof(float));
  return device::launch(move_centers, a->places / MOVED_CENTERS, 1, MOVING_THREADS, bytes, stream,
                        *a);
}

// Rows that a block takes at a time, and what widths and numbers of centres are padded to.
EXPORTED int selftaught_assign_rows() { return AssignShape<SingleNumber>::ROWS; }
EXPORTED int selftaught_assign_columns() { return AssignShape<SingleNumber>::COLUMNS; }
EXPORTED int selftaught_assign_centers() { return AssignShape<SingleNumber>::CENTERS; }

EXPORTED int selftaught_assign(const Assign* a, int number, int, device::Stream stream) {
  return with_number(number, [&](auto chosen) {
    return launch_assign<AssignShape<decltype(chosen)>>(*a, stream);
  });
}

EXPORTED int selftaught_nearest_by_rows(const NearestGradient* a, int number, int,
                                        device::Stream stream) {
  return with_number(number, [&](auto chosen) {
    return device::launch(nearest_by_rows<decltype(chosen)>, blocks(a->rows, GRADIENT_ROWS), 1,
                          THREADS, 0, stream, *a);
  });
}

EXPORTED int selftaught_nearest_by_centers(const NearestGradient* a, int number, int,
                                           device::Stream stream) {
  return with_number(number, [&](auto chosen) {
    return device::launch(nearest_by_centers<decltype(chosen)>, a->count, a->splits, THREADS, 0,
                          stream, *a);
  });
}

// Why kernels cannot run on a device; "" where they can.
EXPORTED const char* selftaught_trouble(int index) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, merge);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

EXPORTED const char* selftaught_error(int code) {
  return code == BAD_SHAPE ? "no kernel has this shape"
                           : cudaGetErrorString(static_cast<cudaError_t>(code));
}
