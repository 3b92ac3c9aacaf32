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

struct Dots {
  const void *x, *y;
  int64_t rows, width;
  void* of_rows;
};

}  // namespace selftaught
