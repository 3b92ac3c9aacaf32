// What sm_90a adds to the emulated GPU: mbarriers, bulk copies, and products of warpgroups.
//
// Written from the PTX ISA (asynchronous warpgroup level matrix instructions; mbarrier; tensor
// copies), not from the kernels. Copies and products happen as early as they may or only when
// nothing else can go on: bits 0 and 1 of `emulation::seed`. Sums are NaN from the moment a product is issued until a wait says
// that it is done; operands are read, from registers too, when the product happens. A thread that
// breaks a rule of the instructions ends the program.
#pragma once

#include <limits>
#include <map>
#include <utility>

#include "instructions.h"

namespace emulation {

constexpr int WARPGROUP = 128;
constexpr uint32_t SHARED_BASE = 1024;  // where shared memory starts in its own address space

struct Mbarrier {
  int count, pending;
  int64_t bytes;  // announced, less those that came
  unsigned phase;
};

struct Product {
  uint64_t left, right;
  const uint32_t* words;  // this thread's part of the left operand, or null: `left` describes it
  float* sum;
  int columns;
  bool add, right_by_columns, done;

  bool same(const Product& o) const {
    return left == o.left && right == o.right && columns == o.columns && add == o.add &&
           (words == nullptr) == (o.words == nullptr) && right_by_columns == o.right_by_columns;
  }
};

struct Issuer {
  std::vector<Product> open;                // not committed
  std::vector<std::vector<Product>> groups;  // committed, oldest first
  std::map<float*, std::vector<float>> sums;  // real values of sums that look like NaN
  bool fenced = false;
  size_t issued = 0;
};

struct Named {
  int waiting = 0;
  unsigned round = 0;
};

inline std::map<const void*, Mbarrier> mbarriers;
inline std::vector<Issuer> issuers;
inline std::map<int, std::vector<Product>> history;  // of each warpgroup
inline std::map<int, Named> named;

inline void hopper_start() {
  mbarriers.clear();
  history.clear();
  named.clear();
  issuers.assign(fibres.size(), Issuer());
}

inline void hopper_end() {
  for (const Issuer& issuer : issuers)
    check(issuer.open.empty() && issuer.groups.empty(), "a thread ended before its products");
}

inline const bool hopper_hooks =
    (at_start.push_back(hopper_start), at_end.push_back(hopper_end), true);

inline Mbarrier& mbarrier(const void* pointer) {
  inside(pointer, 8);
  const auto found = mbarriers.find(pointer);
  check(found != mbarriers.end(), "an mbarrier was not started");
  return found->second;
}

// A phase ends when all arrivals and all announced bytes have come.
inline void settle(Mbarrier& barrier) {
  check(barrier.pending >= 0, "too many threads arrive in one phase");
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
}

inline char* shared_at(uint32_t address, size_t bytes) {
  char* pointer = shared.data() + (static_cast<int64_t>(address) - SHARED_BASE);
  inside(pointer, bytes);
  return pointer;
}

inline void copy_engine(std::function<void()> work) {
  if (seed % 2) work();
  else landing.push_back(std::move(work));
}

// Swizzling moves the 16-byte chunks of 8 neighbouring rows of 16 << mode bytes: bits 4.. of an
// address are xored with bits 7..
inline uint32_t swizzled(uint32_t address, int bits) {
  return address ^ (((address >> 7) & ((1u << bits) - 1)) << 4);
}

// Address of an entry of a matrix of halves by its descriptor: (mn, k) counts along M or N, and
// along the sum. These are the canonical layouts of the PTX ISA, T = 8 halves in 16 bytes, S = 2, 4
// or 8 chunks that are swizzled:
//   by k, not swizzled    ((8,m),(T,2k)):((1T,SBO),(1,LBO))
//   by k, swizzled        ((8,m),(T,2k)):((ST,SBO),(1,T))
//   by mn, not swizzled   ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
//   by mn, swizzled       ((T,S,m),(8,k)):((1,T,LBO),(ST,SBO))
inline uint32_t described(uint64_t descriptor, bool by_mn, int mn, int k) {
  const auto field = [&](int first) {
    return static_cast<uint32_t>(descriptor >> first & 0x3fff) << 4;
  };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const int mode = static_cast<int>(descriptor >> 62), bits = mode == 0 ? 0 : 4 - mode;
  const uint32_t row = 16u << bits;
  check((descriptor >> 49 & 7) == 0 && (mode == 0 || (start & (row * 8 - 1) & ~127u) == 0),
        "a pattern of the swizzle does not start where the descriptor says");
  uint32_t offset;
  if (by_mn && mode == 0)
    offset = mn % 8 * 2 + mn / 8 * stride + k % 8 * 16 + k / 8 * leading;
  else if (by_mn)
    offset = mn % (row / 2) * 2 + mn / (row / 2) * leading + k % 8 * row + k / 8 * stride;
  else if (mode == 0)
    offset = mn % 8 * 16 + mn / 8 * stride + k % 8 * 2 + k / 8 * leading;
  else
    offset = mn % 8 * row + mn / 8 * stride + k * 2;
  return swizzled(start + offset, bits);
}

inline double half_at(uint32_t address) {
  uint16_t bits;
  std::memcpy(&bits, shared_at(address, 2), 2);
  return half(bits, 0);
}

// Does product number i of group g of the warp that starts at `first`: 16 of the 64 rows.
inline void multiply(int first, size_t g, size_t i) {
  const Product& product = issuers[first].groups[g][i];
  const int warp_row = first % WARPGROUP / LANES * 16;
  double left[16][16];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) {
      if (product.words) {
        // Register r of lane l: row l / 4 + 8 (r % 2), columns 2 (l % 4) + 8 (r / 2) and the next.
        const int lane = row % 8 * 4 + k % 8 / 2, word = row / 8 + k / 8 * 2;
        left[row][k] = half(issuers[first + lane].groups[g][i].words[word], k % 2);
      } else {
        left[row][k] = half_at(described(product.left, false, warp_row + row, k));
      }
    }
  std::vector<double> right(product.columns * 16);
  for (int n = 0; n < product.columns; ++n)
    for (int k = 0; k < 16; ++k)
      right[n * 16 + k] = half_at(described(product.right, product.right_by_columns, n, k));
  for (int lane = 0; lane < LANES; ++lane) {
    Issuer& issuer = issuers[first + lane];
    std::vector<float>& sum = issuer.sums[issuer.groups[g][i].sum];
    // Entry e of group j of 4: row l / 4 + 8 (e / 2), column 8 j + 2 (l % 4) + e % 2.
    for (int entry = 0; entry < product.columns / 2; ++entry) {
      const double* a = left[lane / 4 + entry % 4 / 2 * 8];
      const double* b = &right[(entry / 4 * 8 + lane % 4 * 2 + entry % 2) * 16];
      for (int upper = 0; upper < 16; upper += 8) {
        double total = upper || product.add ? sum[entry] : 0;
        for (int k = upper; k < upper + 8; ++k) total += a[k] * b[k];
        sum[entry] = truncate(total);
      }
    }
    issuer.groups[g][i].done = true;
  }
}

inline bool early_products() { return seed / 2 % 2; }

// Does what is left of the groups but the last `keep`, once for the warp, and waits for it.
inline void do_products(int keep) {
  exchange(20, nullptr, 0, nullptr);
  const int first = current / LANES * LANES;
  const auto each = [keep](int thread, auto use) {
    const auto& groups = issuers[thread].groups;
    for (size_t g = 0; g + keep < groups.size(); ++g)
      for (size_t i = 0; i < groups[g].size(); ++i)
        if (!groups[g][i].done) use(g, i);
  };
  if (current == first) {
    const auto work = [=] { each(first, [first](size_t g, size_t i) { multiply(first, g, i); }); };
    if (early_products()) work();
    else landing.push_back(work);
  }
  pause_until([each, thread = current] {
    bool done = true;
    each(thread, [&done](size_t, size_t) { done = false; });
    return done;
  });
}

inline void issue(Product product) {
  Issuer& issuer = issuers[current];
  check(issuer.fenced, "a product without a fence since the last wait");
  std::vector<Product>& others = history[current / WARPGROUP];
  if (others.size() == issuer.issued) others.push_back(product);
  check(others[issuer.issued++].same(product), "a warpgroup disagrees about a product");
  std::vector<float>& sum = issuer.sums[product.sum];
  const size_t entries = product.columns / 2;
  if (sum.empty()) sum.assign(product.sum, product.sum + entries);
  check(sum.size() == entries, "a sum under way is used with another shape");
  std::fill(product.sum, product.sum + entries, std::numeric_limits<float>::quiet_NaN());
  issuer.open.push_back(product);
}

}  // namespace emulation

namespace device {

using Barrier = uint64_t;

// (rows, columns) halves in global memory and the box that one copy moves.
struct alignas(64) TensorMap {
  const char* from;
  int columns, rows, box_rows;
};

constexpr int BOX_COLUMNS = 64;

inline int map_rows(TensorMap& map, const void* from, int columns, int rows, int box_rows) {
  map = {static_cast<const char*>(from), columns, rows, box_rows};
  return reinterpret_cast<uintptr_t>(from) % 16 || columns % 8 || box_rows > 256 || rows < 1;
}

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - emulation::shared.data()) +
         emulation::SHARED_BASE;
}

inline void start_barrier(Barrier* barrier, int arrivals) {
  emulation::inside(barrier, 8);
  emulation::mbarriers[barrier] = {arrivals, arrivals, 0, 0};
}

inline void show_barriers() {}

inline void arrive(Barrier* barrier) {
  emulation::Mbarrier& state = emulation::mbarrier(barrier);
  --state.pending;
  emulation::settle(state);
}

inline void arrive_expecting(Barrier* barrier, int bytes) {
  emulation::mbarrier(barrier).bytes += bytes;
  emulation::check(bytes > 0 && bytes < 1 << 20, "more bytes than an mbarrier counts");
  arrive(barrier);
}

inline void await(Barrier* barrier, int parity) {
  emulation::pause_until(
      [=] { return static_cast<int>(emulation::mbarrier(barrier).phase % 2) != parity; });
}

inline void copy_box(void* to, const TensorMap* map, int column, int row, Barrier* barrier) {
  const TensorMap box = *map;
  emulation::check(shared_address(to) % 128 == 0, "a box starts at a multiple of 128 bytes");
  emulation::copy_engine([=] {
    for (int r = 0; r < box.box_rows; ++r)
      for (int chunk = 0; chunk < BOX_COLUMNS / 8; ++chunk) {
        const uint32_t plain = shared_address(to) + r * 128 + chunk * 16;
        char* place = emulation::shared_at(emulation::swizzled(plain, 3), 16);
        const int from_row = row + r, from_column = column + chunk * 8;
        if (from_row < box.rows && from_column < box.columns) {
          const int64_t halves = static_cast<int64_t>(from_row) * box.columns + from_column;
          std::memcpy(place, box.from + 2 * halves, 16);
        } else {
          std::memset(place, 0, 16);
        }
      }
    emulation::Mbarrier& state = emulation::mbarrier(barrier);
    state.bytes -= box.box_rows * 128;
    emulation::settle(state);
  });
}

inline void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  emulation::inside(to, 16);
  emulation::check(reinterpret_cast<uintptr_t>(from) % 16 == 0 && bytes % 16 == 0 && bytes > 0,
                   "bulk copies move whole 16 bytes");
  emulation::copy_engine([=] {
    std::memcpy(to, from, bytes);
    emulation::Mbarrier& state = emulation::mbarrier(barrier);
    state.bytes -= bytes;
    emulation::settle(state);
  });
}

template <int COUNT>
void give_registers() {}
template <int COUNT>
void take_registers() {}

inline void sync_warp() { emulation::exchange(22, nullptr, 0, nullptr); }

// A barrier of its own for `threads` of the block's threads.
inline void sync_some(int id, int threads) {
  emulation::Named& state = emulation::named[id];
  const unsigned round = state.round;
  if (++state.waiting == threads) {
    state.waiting = 0;
    ++state.round;
  }
  emulation::pause_until([=] { return emulation::named[id].round != round; });
}

template <class... Registers>
void fence_products(Registers&...) {
  emulation::issuers[emulation::current].fenced = true;
}

inline void commit_products() {
  emulation::Issuer& issuer = emulation::issuers[emulation::current];
  issuer.groups.push_back(std::move(issuer.open));
  issuer.open.clear();
  if (emulation::early_products()) emulation::do_products(0);
}

// Waits until at most KEEP groups are under way; their sums may not be among `registers`.
template <int KEEP, class... Registers>
void await_products(Registers&...) {
  emulation::do_products(KEEP);
  emulation::Issuer& issuer = emulation::issuers[emulation::current];
  emulation::check(issuer.open.empty(), "a wait for products that were not committed");
  const size_t all = issuer.groups.size();
  issuer.groups.erase(issuer.groups.begin(),
                      issuer.groups.begin() + (all > KEEP ? all - KEEP : 0));
  issuer.fenced = false;
  for (auto sum = issuer.sums.begin(); sum != issuer.sums.end();) {
    bool under_way = false;
    for (const auto& group : issuer.groups)
      for (const auto& product : group) under_way |= product.sum == sum->first;
    if (!under_way) std::copy(sum->second.begin(), sum->second.end(), sum->first);
    sum = under_way ? std::next(sum) : issuer.sums.erase(sum);
  }
}

template <int GROUPS>
void multiply_shared(float (&sum)[GROUPS][4], uint64_t left, uint64_t right, bool add) {
  emulation::issue({left, right, nullptr, &sum[0][0], 8 * GROUPS, add, false, false});
}

template <int GROUPS>
void multiply_registers(float (&sum)[GROUPS][4], const uint32_t (&left)[4], uint64_t right) {
  emulation::issue({0, right, left, &sum[0][0], 8 * GROUPS, true, true, false});
}

}  // namespace device
