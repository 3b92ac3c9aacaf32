// The few machine instructions the kernels are written in.
//
// A host's C++ compiler takes the kernels where SELFTAUGHT_DEVICE names a header that has all of
// `device.cuh` and `hopper.cuh`.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef SELFTAUGHT_DEVICE
#include SELFTAUGHT_DEVICE
#else
#include <cuda_runtime.h>

#define DEVICE __device__ __forceinline__
#define BOTH __host__ __device__ inline
// A kernel takes one struct by value. THREADS per block; BLOCKS of them fit a multiprocessor.
#define KERNEL(THREADS, BLOCKS) static __global__ void __launch_bounds__(THREADS, BLOCKS)
#define ARGUMENT(TYPE) const __grid_constant__ TYPE

namespace device {

using Stream = cudaStream_t;

DEVICE int thread() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
DEVICE int shuffle_xor(int value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
// Bit l: what lane l says.
DEVICE uint32_t ballot(bool value) { return __ballot_sync(~0u, value); }

DEVICE uint32_t bits(float value) { return __float_as_uint(value); }
DEVICE float from_bits(uint32_t value) { return __uint_as_float(value); }

// Additions of integers, which no order changes.
DEVICE void add_to(int* sum, int value) { atomicAdd(sum, value); }
DEVICE void add_to(int64_t* sum, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

// Aligned for the swizzle of bulk copies.
DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 2^x to about 22 bits; 0 for x below -126.
DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Two floats as halves, the first in the low 16 bits.
DEVICE uint32_t pack(float first, float second) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}

DEVICE float half_value(uint16_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

// Four 8x8 blocks of halves; lane 8 m + r gives the address of row r of block m.
DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row)));
}

DEVICE void load_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row)));
}

// sum += (16, 16) halves times (16, 8) halves, in the fragment layouts of mma.m16n8k16.
DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sum += (16, 8) times (8, 8) TF32 numbers, floats of which the low 13 bits are ignored. Lane l has
// of A rows l / 4 and that + 8 in column l % 4, then both in column l % 4 + 4; of B row l % 4, then
// row l % 4 + 4, of column l / 4.
DEVICE void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 8 or 16 bytes of shared memory, by every lane of a warp.
template <class Value>
DEVICE Value load_shared(const char* from) {
  return *reinterpret_cast<const Value*>(from);
}

// 16 bytes to shared memory, later; zeros where not `wanted`.
DEVICE void copy_later(void* to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}

DEVICE void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

template <class Argument>
int launch(void (*kernel)(const Argument), int grid_x, int grid_y, int threads, int bytes,
           Stream stream, const Argument& argument) {
  if (bytes > 48 * 1024) {
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<dim3(grid_x, grid_y), threads, bytes, stream>>>(argument);
  return cudaGetLastError();
}

}  // namespace device
#endif
