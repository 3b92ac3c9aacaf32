// What exists once in the library: its version, the instruction sets at hand, threads.
#include "library.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace selftaught {
namespace {

// GNU OpenMP's entry for a parallel region: team(function, data, threads, flags).
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<Team> team{nullptr};

struct Work {
  int64_t tasks;
  void (*body)(void* context, int64_t task, int64_t worker);
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> workers{0};

  void run(int64_t worker) {
    for (int64_t task = next++; task < tasks; task = next++) body(context, task, worker);
  }
};

}  // namespace

void parallel(int64_t threads, int64_t tasks,
              void (*body)(void* context, int64_t task, int64_t worker), void* context) noexcept {
  Work shared{tasks, body, context};
  const Team borrowed = team;
  if (borrowed != nullptr && threads > 1 && tasks > 1) {
    borrowed(
        [](void* data) {
          Work& here = *static_cast<Work*>(data);
          here.run(here.workers++);
        },
        &shared, static_cast<unsigned>(threads < tasks ? threads : tasks), 0);
    return;
  }
  const auto work = [&](int64_t worker) { shared.run(worker); };
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

// Gives the library PyTorch's own threads: `entry` is GOMP_parallel of the OpenMP that PyTorch uses.
// Threads of our own would compete with its threads, which spin for a while after every op. A
// process forked from this one has lost those threads and goes on with threads of its own.
SELFTAUGHT_EXPORT void selftaught_use_team(void* entry) {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { selftaught::team = nullptr; });
  if (registered == 0) selftaught::team = reinterpret_cast<selftaught::Team>(entry);
}

// Raised whenever a struct or a kernel changes, so that a stale library is noticed.
SELFTAUGHT_EXPORT int selftaught_version() { return 5; }

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
