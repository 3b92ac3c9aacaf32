// The library of `csrc/cuda` on the emulated GPU: the same functions, and what only it can tell.
#define SELFTAUGHT_DEVICE "hopper.h"
#define HAS_WGMMA 1

// What library.cu asks the CUDA runtime.
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
struct cudaFuncAttributes {};
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }

#include "library.cu"

// Order of threads and copies from now on; bank conflicts so far.
EXPORTED void selftaught_seed(int seed) { emulation::seed = seed; }
EXPORTED long selftaught_conflicts() { return emulation::conflicts; }
// Address of an entry of an operand of warpgroups, for the test of the emulation itself.
EXPORTED unsigned selftaught_described(uint64_t descriptor, int by_mn, int mn, int k) {
  return emulation::described(descriptor, by_mn != 0, mn, k);
}
