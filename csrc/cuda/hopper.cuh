// The instructions of sm_90a that the warp-specialised kernels are written in.
#pragma once

#include "device.cuh"

#ifndef SELFTAUGHT_DEVICE
#include <cuda.h>

// On other targets the kernels only stop; nothing starts them there.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

namespace device {

using Barrier = uint64_t;
using TensorMap = CUtensorMap;

constexpr int BOX_COLUMNS = 64;

// Describes (rows, columns) halves of which copies move boxes of (box_rows, 64), swizzled over 128
// bytes, zeros outside. The driver's function is looked up at run time, so nothing links to it.
inline int map_rows(TensorMap& map, const void* from, int columns, int rows, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    const bool good = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(good ? function : nullptr);
  }();
  if (!encode) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {2 * sizes[0]};
  const cuuint32_t box[2] = {BOX_COLUMNS, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(from), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

DEVICE void start_barrier(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes started barriers known to the copy engine.
DEVICE void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

DEVICE void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

DEVICE void arrive_expecting(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of this parity.
DEVICE void await(Barrier* barrier, int parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

DEVICE void copy_box(void* to, const TensorMap* map, int column, int row, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

DEVICE void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

template <int COUNT>
DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

DEVICE void trap() { asm volatile("trap;"); }
DEVICE void sync_warp() { __syncwarp(); }

DEVICE void sync_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Keeps the compiler from moving what it does with registers across this.
template <int GROUPS>
DEVICE void pin(float (&registers)[GROUPS][4]) {
#pragma unroll
  for (int n = 0; n < GROUPS; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(registers[n][e])::"memory");
}

template <int GROUPS>
DEVICE void pin(uint32_t (&registers)[GROUPS][4]) {
#pragma unroll
  for (int n = 0; n < GROUPS; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(registers[n][e])::"memory");
}

// Comes before products whose registers this thread has touched.
template <class... Registers>
DEVICE void fence_products(Registers&... registers) {
  (pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most KEEP groups are under way and gives `registers` back.
template <int KEEP, class... Registers>
DEVICE void await_products(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(KEEP) : "memory");
  (pin(registers), ...);
}

#define LIST_1(s, n) "+f"(s[n][0]), "+f"(s[n][1]), "+f"(s[n][2]), "+f"(s[n][3])
#define LIST_4(s, n) LIST_1(s, n), LIST_1(s, n + 1), LIST_1(s, n + 2), LIST_1(s, n + 3)
#define LIST_8(s) LIST_4(s, 0), LIST_4(s, 4)
#define LIST_16(s) LIST_8(s), LIST_4(s, 8), LIST_4(s, 12)
#define LIST_32(s) \
  LIST_16(s), LIST_4(s, 16), LIST_4(s, 20), LIST_4(s, 24), LIST_4(s, 28)
#define NAMES_8 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// sum = (64, 16) halves times (16, 8 GROUPS) halves, plus sum if `add`. Rows of both operands lie
// by k: their descriptors name rows of 16 halves.
template <int GROUPS>
DEVICE void multiply_shared(float (&sum)[GROUPS][4], uint64_t left, uint64_t right, bool add);

// sum += (64, 16) halves in registers times (16, 8 GROUPS) halves. The right operand's rows lie by
// n: its descriptor names 16 rows of 8 GROUPS halves.
template <int GROUPS>
DEVICE void multiply_registers(float (&sum)[GROUPS][4], const uint32_t (&left)[4], uint64_t right);

#if HAS_WGMMA
#define PRODUCTS(GROUPS, COLUMNS, L0, L1, L2, R0, R1, R2, R3, R4)                              \
  template <>                                                                                  \
  DEVICE void multiply_shared<GROUPS>(float (&sum)[GROUPS][4], uint64_t left, uint64_t right,  \
                                      bool add) {                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " L2 ", 0;\n"                               \
                 "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32.f16.f16 {" NAMES_##GROUPS \
                 "}, " L0 ", " L1 ", p, 1, 1, 0, 0;\n}"                                        \
                 : LIST_##GROUPS(sum)                                                          \
                 : "l"(left), "l"(right), "r"(static_cast<int>(add)));                         \
  }                                                                                            \
  template <>                                                                                  \
  DEVICE void multiply_registers<GROUPS>(float (&sum)[GROUPS][4], const uint32_t (&left)[4],   \
                                         uint64_t right) {                                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32.f16.f16 {" NAMES_##GROUPS \
                 "}, {" R0 ", " R1 ", " R2 ", " R3 "}, " R4 ", 1, 1, 1, 1;"                    \
                 : LIST_##GROUPS(sum)                                                          \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));        \
  }

PRODUCTS(8, "64", "%32", "%33", "%34", "%32", "%33", "%34", "%35", "%36")
PRODUCTS(16, "128", "%64", "%65", "%66", "%64", "%65", "%66", "%67", "%68")
PRODUCTS(32, "256", "%128", "%129", "%130", "%128", "%129", "%130", "%131", "%132")
#undef PRODUCTS
#endif
#undef LIST_1
#undef LIST_4
#undef LIST_8
#undef LIST_16
#undef LIST_32
#undef NAMES_8
#undef NAMES_16
#undef NAMES_32

}  // namespace device
#endif
