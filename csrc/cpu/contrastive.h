// Arguments of the contrastive kernels, mirrored in selftaught/kernels/cpp/tiles.py. Pointers are
// to float or double, by the kernel; meanings are those of the protocol in kernels/tiles.py.
#pragma once

#include <cstdint>

namespace selftaught {

struct Matrix {
  const void *x, *y, *temperature;
  int64_t rows, columns, width;
  int64_t excluded, offset, half;
  int64_t symmetric;  // y is x
  int64_t threads;
};

struct LogSums {
  Matrix matrix;
  void *of_rows, *of_columns;  // of_columns may be null
};

struct Side {
  const void *weight, *total, *positive, *share;  // all null: an absent side
};

struct WeightedSums {
  Matrix matrix;
  Side row, column;
  const void *row_classes, *column_classes;  // int64_t, both or neither null
  void *sums, *slopes;                       // slopes may be null
};

struct Normalize {
  const void* z;
  void *unit, *inverse;
  int64_t rows, width, threads;
};

struct Finish {
  const void *sums, *unit, *inverse;  // inverse may be null: not normalised
  const void* temperature;
  const void *partner, *coefficient;  // both or neither null
  void* gradient;
  int64_t rows, width, threads;
};

// NT-Xent of two views: what the forward takes and fills, then what the backward takes and fills.
struct Views {
  const void *z1, *z2, *temperature;
  void *unit, *inverse;  // of 2B rows; inverse may be null: not normalised
  void *positive, *losses;
  const void* grad;               // of each row, or with grad_step 0 one number
  void *gradient1, *gradient2;    // may be null
  void* of_temperature;           // may be null
  double over;                    // that the gradient by a row's loss is divided by
  int64_t images, width, grad_step, threads, row_threads;
};

struct Dots {
  const void *x, *y;
  int64_t rows, width;
  void* of_rows;
};

}  // namespace selftaught
