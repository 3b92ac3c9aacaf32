// What every kernel source shares: the interface to library.cpp and the way to export a kernel.
//
// Each kernel source is compiled once per instruction set, with SELFTAUGHT_ISA set to its name
// (baseline, avx2, avx512). All its code lives in namespace SELFTAUGHT_ISA, and it instantiates no
// template of the standard library: the linker would keep one copy for all instruction sets.
//
// A kernel takes one pointer to a struct of 8-byte fields (int64_t, double, pointers), which
// selftaught/kernels/cpp mirrors as a ctypes.Structure, and returns a status.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#define SELFTAUGHT_EXPORT extern "C" __attribute__((visibility("default")))

namespace selftaught {

enum Status : int { kDone = 0, kOutOfMemory = 1, kFailed = 2 };

// Calls body(context, task, worker) for every task, on at most `threads` threads. Tasks start in
// ascending order; which worker (0 .. threads - 1) runs a task is left to chance, so a result must
// not depend on it. The body must not throw.
void parallel(int64_t threads, int64_t tasks,
              void (*body)(void* context, int64_t task, int64_t worker), void* context) noexcept;

// Lets other threads run; to be called again and again, with 0, 1, 2, ..., by one that waits.
void pause(int64_t attempt) noexcept;

}  // namespace selftaught

#ifdef SELFTAUGHT_ISA

#define SELFTAUGHT_PASTE(name, type, isa) selftaught_##name##_##type##_##isa
#define SELFTAUGHT_NAME(name, type, isa) SELFTAUGHT_PASTE(name, type, isa)

// Exports function<float> and function<double>, which take a `const Arguments&`.
#define SELFTAUGHT_KERNEL(name, Arguments, function)                                            \
  SELFTAUGHT_EXPORT int SELFTAUGHT_NAME(name, f32, SELFTAUGHT_ISA)(const Arguments* arguments) { \
    return selftaught::SELFTAUGHT_ISA::guarded(function<float>, *arguments);                    \
  }                                                                                             \
  SELFTAUGHT_EXPORT int SELFTAUGHT_NAME(name, f64, SELFTAUGHT_ISA)(const Arguments* arguments) { \
    return selftaught::SELFTAUGHT_ISA::guarded(function<double>, *arguments);                   \
  }

namespace selftaught::SELFTAUGHT_ISA {

template <class Arguments>
int guarded(void (*function)(const Arguments&), const Arguments& arguments) noexcept {
  try {
    function(arguments);
    return kDone;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (...) {
    return kFailed;
  }
}

// `parallel` for a callable body(task, worker).
template <class Body>
void for_tasks(int64_t threads, int64_t tasks, const Body& body) {
  parallel(
      threads, tasks,
      [](void* context, int64_t task, int64_t worker) {
        (*static_cast<const Body*>(context))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Memory on a cache line, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* get() const { return data_; }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  T* data_;
};

}  // namespace selftaught::SELFTAUGHT_ISA

#endif
