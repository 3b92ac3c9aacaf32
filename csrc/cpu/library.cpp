// What exists once in the library: its version, the instruction sets at hand, threads.
#include "library.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace selftaught {

void parallel(int64_t threads, int64_t tasks,
              void (*body)(void* context, int64_t task, int64_t worker), void* context) noexcept {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t task = next++; task < tasks; task = next++) body(context, task, worker);
  };
  std::vector<std::thread> others;
  try {
    // Threads live for one call only, so a process that forks between calls loses none.
    for (int64_t worker = 1; worker < threads && worker < tasks; ++worker) {
      others.emplace_back(work, worker);
    }
  } catch (...) {
    // Fewer threads than asked for give the same result.
  }
  work(0);
  for (std::thread& other : others) other.join();
}

void pause(int64_t attempt) noexcept {
  // Whoever is waited for has lost its core to another program if it takes this long.
  constexpr int64_t kPatience = 256;
  if (attempt < kPatience) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace selftaught

// Raised whenever a struct or a kernel changes, so that a stale library is noticed.
SELFTAUGHT_EXPORT int selftaught_version() { return 2; }

// Instruction sets built and usable here: 1 baseline, 2 avx2, 4 avx512, added up.
SELFTAUGHT_EXPORT int selftaught_variants() {
  int found = 1;
#ifdef SELFTAUGHT_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found += 2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      found += 4;
    }
  }
#endif
  return found;
}
