// A GPU for one host thread: every CUDA thread is a fibre, warps exchange registers lane by lane.
//
// Made to find mistakes, not to be fast. Fibres run in an order that `emulation::seed` shuffles, so
// a missing barrier shows; shared memory starts as NaN; asynchronous copies happen as early or as
// late as they may; lanes that disagree about the next warp instruction abort, and so do accesses
// outside shared memory; bank conflicts of matrix and vector loads are counted. Products of mma are
// exact and their sums are truncated to float after every 8, 4 of TF32, as tensor cores do.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define DEVICE inline
#define BOTH inline
#define KERNEL(THREADS, BLOCKS) static void
#define ARGUMENT(TYPE) const TYPE

struct float4 {
  float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct float2 {
  float x, y;
};
struct uint2 {
  uint32_t x, y;
};

static inline int min(int a, int b) { return a < b ? a : b; }

namespace emulation {

constexpr int LANES = 32;
constexpr size_t STACK = 256 * 1024;

enum class Wait { none, warp, block, condition, done };

struct Copy {
  void* to;
  const void* from;
  bool wanted;
};

struct Fibre {
  ucontext_t context;  // enters the fibre; later switches are jumps, which need no system call
  jmp_buf jump;
  bool started = false;
  std::vector<char> stack = std::vector<char>(STACK);
  Wait wait = Wait::none;
  int operation = 0, parity = 0;
  std::vector<Copy> copies;
  std::function<bool()> ready;  // what a wait for a condition waits for
};

struct Lane {
  uint32_t words[8];
  const char* address;
};

struct Warp {
  Lane lanes[2][LANES];
};

inline int seed = 0;
inline long conflicts = 0;
inline std::vector<Fibre> fibres;
inline std::vector<Warp> warps;
inline std::vector<char> shared;
inline jmp_buf scheduler;
inline int current, x, y;
inline std::function<void()> body;
// Asynchronous work that ends when nothing else can go on; what each block starts and ends with.
inline std::vector<std::function<void()>> landing;
inline std::vector<void (*)()> at_start, at_end;

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "emulation: %s (block %d, %d, thread %d)\n", why, x, y, current);
  std::abort();
}

inline void check(bool good, const char* why) {
  if (!good) fail(why);
}

inline void inside(const void* pointer, size_t bytes) {
  const char* at = static_cast<const char*>(pointer);
  check(at >= shared.data() && at + bytes <= shared.data() + shared.size(), "not shared memory");
  check(reinterpret_cast<uintptr_t>(at) % bytes == 0, "address is not aligned");
}

inline void pause(Wait wait, int operation) {
  Fibre& fibre = fibres[current];
  fibre.wait = wait;
  fibre.operation = operation;
  if (_setjmp(fibre.jump) == 0) _longjmp(scheduler, 1);
}

inline void resume(Fibre& fibre) {
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.jump, 1);
  fibre.started = true;
  setcontext(&fibre.context);
}

inline void pause_until(std::function<bool()> ready) {
  if (ready()) return;
  fibres[current].ready = std::move(ready);
  pause(Wait::condition, 0);
}

inline void finish_copies(Fibre& fibre) {
  for (const Copy& copy : fibre.copies) {
    if (copy.wanted) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
  }
  fibre.copies.clear();
}

inline void run_fibre() {
  body();
  finish_copies(fibres[current]);
  fibres[current].wait = Wait::done;
  _longjmp(scheduler, 1);
}

// Puts this lane's words where its warp sees them; returns all lanes' words.
inline const Lane* exchange(int operation, const uint32_t* words, int count, const void* address) {
  Fibre& fibre = fibres[current];
  Lane(&lanes)[LANES] = warps[current / LANES].lanes[fibre.parity];
  fibre.parity ^= 1;
  for (int i = 0; i < count; ++i) lanes[current % LANES].words[i] = words[i];
  lanes[current % LANES].address = static_cast<const char*>(address);
  pause(Wait::warp, operation);
  return lanes;
}

inline bool release(int first, int count, Wait wait) {
  for (int i = first; i < first + count; ++i) {
    if (fibres[i].wait != wait) return false;
    check(fibres[i].operation == fibres[first].operation, "lanes disagree about an instruction");
  }
  for (int i = first; i < first + count; ++i) fibres[i].wait = Wait::none;
  return true;
}

// Lets one piece of asynchronous work end.
inline bool land(std::mt19937& random) {
  if (landing.empty()) return false;
  const size_t chosen = seed ? random() % landing.size() : 0;
  const std::function<void()> work = landing[chosen];
  landing.erase(landing.begin() + chosen);
  work();
  return true;
}

inline void run_block(int threads) {
  std::mt19937 random(static_cast<unsigned>(seed));
  for (void (*start)() : at_start) start();
  std::fill(shared.begin(), shared.end(), static_cast<char>(0xff));
  for (current = 0; current < threads; ++current) {
    Fibre& fibre = fibres[current];
    fibre.wait = Wait::none;
    fibre.started = false;
    fibre.parity = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = STACK;
    makecontext(&fibre.context, run_fibre, 0);
  }
  const int many = threads / LANES;
  std::vector<int> left(many);
  for (int i = 0; i < many; ++i) left[i] = i;
  while (!left.empty()) {
    // One warp at a time, as far as it comes alone.
    bool moved = false;
    const size_t start = seed ? random() % left.size() : 0;
    for (size_t turn = 0; turn < left.size(); ++turn) {
      const int first = left[(start + turn) % left.size()] * LANES;
      const int flip = seed ? random() % LANES : 0;
      do {
        for (int i = 0; i < LANES; ++i) {
          current = first + (i ^ flip);
          Fibre& fibre = fibres[current];
          if (fibre.wait == Wait::condition && fibre.ready()) fibre.wait = Wait::none;
          if (fibre.wait != Wait::none) continue;
          moved = true;
          resume(fibre);
        }
      } while (release(first, LANES, Wait::warp));
    }
    if (release(0, threads, Wait::block)) moved = true;
    if (!moved) moved = land(random);
    std::vector<int> still;
    for (int warp : left) {
      bool done = true;
      for (int i = 0; i < LANES; ++i) done &= fibres[warp * LANES + i].wait == Wait::done;
      if (!done) still.push_back(warp);
    }
    left = still;
    check(moved || left.empty(), "threads wait for each other for ever");
  }
  check(landing.empty(), "a block ended while something was still to land in its memory");
  for (void (*end)() : at_end) end();
}

inline float truncate(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? std::nextafter(nearest, 0.0f)
                                                                    : nearest;
}

inline double half(uint32_t word, int upper) {
  const uint16_t bits = static_cast<uint16_t>(upper ? word >> 16 : word);
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<double>(value);
}

// A TF32 number, of which the multipliers see 10 bits after the point.
inline double short_float(uint32_t word) {
  const uint32_t seen = word & 0xffffe000u;
  float value;
  std::memcpy(&value, &seen, 4);
  return static_cast<double>(value);
}

// Loads of 8 or 16 bytes a lane come 128 bytes at a time; those must lie in different banks.
inline void count_conflicts(const Lane* lanes, int bytes) {
  for (int first = 0; first < LANES; first += 128 / bytes) {
    unsigned seen = 0;
    for (int lane = first; lane < first + 128 / bytes; ++lane) {
      inside(lanes[lane].address, bytes);
      const unsigned banks = 1u << ((lanes[lane].address - shared.data()) % 128 / bytes);
      conflicts += (seen & banks) != 0;
      seen |= banks;
    }
  }
}

// Eight 16-byte rows are read at once; each must lie in its own four banks.
inline void count_conflicts(const Lane* lanes) {
  for (int block = 0; block < 4; ++block) {
    unsigned seen = 0;
    for (int row = 0; row < 8; ++row) {
      const char* address = lanes[8 * block + row].address;
      inside(address, 16);
      const unsigned bank = 1u << ((address - shared.data()) / 16 % 8);
      conflicts += (seen & bank) != 0;
      seen |= bank;
    }
  }
}

}  // namespace emulation
