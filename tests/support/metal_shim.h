// Enough of Metal to run a kernel's body on the CPU, thread by thread: each thread is a fiber, which gives way where
// it waits for others. A matrix of a simdgroup is held whole by each of its threads.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>
#include <ucontext.h>

using uint = unsigned int;
using ulong = unsigned long;
struct uint3 { uint x, y, z; };
struct ulong2 { ulong x, y; ulong2(ulong a, ulong b) : x(a), y(b) {} };
struct bfloat16_t {
  uint16_t bits;
  bfloat16_t() = default;
  bfloat16_t(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = (word + 0x7fff + (word >> 16 & 1)) >> 16;
  }
  operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

namespace shim {
struct Barrier {
  int live = 0, arrived = 0, generation = 0;
  void release() {
    if (live && arrived == live) arrived = 0, generation++;
  }
  void leave() { live--, release(); }
  void wait();
};
struct Simdgroup {
  Barrier barrier;
  double slots[2][32];
};
struct Fiber {
  ucontext_t context;  // to begin in
  jmp_buf place;       // to go on from: a switch of contexts would call the system
  bool begun = false, done = false;
  uint3 grid, local, group;
  uint lane, simdgroup;
  int turn = 0;
  Simdgroup* mates;
};
constexpr int STACK = 1 << 16;
inline std::vector<std::unique_ptr<char[]>> stacks;  // of one threadgroup's threads
inline jmp_buf scheduler;
inline Fiber* me;
inline Barrier everyone;
inline uint3 grid_size;
inline const std::function<void()>* body;

inline void resume(Fiber* fiber) {
  me = fiber;
  if (_setjmp(scheduler)) return;
  if (fiber->begun) _longjmp(fiber->place, 1);
  fiber->begun = true;
  setcontext(&fiber->context);
}
inline void give_way() {
  if (!_setjmp(me->place)) _longjmp(scheduler, 1);
}
inline void Barrier::wait() {
  int seen = generation;
  arrived++;
  release();
  while (generation == seen) give_way();
}
inline void start() {
  Fiber* mine = me;
  (*body)();
  mine->done = true;
  mine->mates->barrier.leave();
  everyone.leave();
  _longjmp(scheduler, 1);
}
// All lanes' values, once all have come.
inline double* together(double value) {
  double* slots = me->mates->slots[me->turn ^= 1];
  slots[me->lane] = value;
  me->mates->barrier.wait();
  return slots;
}

inline void run(uint3 grid, uint3 block, const std::function<void()>& function) {
  body = &function;
  grid_size = grid;
  const uint threads = block.x * block.y * block.z;
  for (uint gz = 0; gz < grid.z; gz += block.z)
    for (uint gy = 0; gy < grid.y; gy += block.y)
      for (uint gx = 0; gx < grid.x; gx += block.x) {
        std::vector<Simdgroup> simdgroups((threads + 31) / 32);
        std::vector<std::unique_ptr<Fiber>> fibers;
        everyone = Barrier{int(threads), 0, 0};
        for (uint i = 0; i < threads; i++) {
          auto fiber = std::make_unique<Fiber>();
          fiber->local = {i % block.x, i / block.x % block.y, i / block.x / block.y};
          fiber->grid = {gx + fiber->local.x, gy + fiber->local.y, gz + fiber->local.z};
          fiber->group = {gx / block.x, gy / block.y, gz / block.z};
          fiber->lane = i % 32, fiber->simdgroup = i / 32, fiber->mates = &simdgroups[i / 32];
          fiber->mates->barrier.live++;
          if (stacks.size() == i) stacks.emplace_back(new char[STACK]);
          getcontext(&fiber->context);
          fiber->context.uc_stack.ss_sp = stacks[i].get();
          fiber->context.uc_stack.ss_size = STACK;
          makecontext(&fiber->context, start, 0);
          fibers.push_back(std::move(fiber));
        }
        for (bool left = true; left;) {
          left = false;
          for (auto& fiber : fibers)
            if (!fiber->done) {
              left = true;
              resume(fiber.get());
            }
        }
      }
}
}  // namespace shim

namespace metal {
namespace precise {
inline float exp(float x) { return std::exp(x); }
inline float tanh(float x) { return std::tanh(x); }
inline float sin(float x) { return std::sin(x); }
inline float cos(float x) { return std::cos(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
}  // namespace precise
inline float exp2(float x) { return std::exp2(x); }
template <typename A> A min(A a, A b) { return b < a ? b : a; }
template <typename A> A max(A a, A b) { return a < b ? b : a; }
enum class mem_flags { mem_threadgroup, mem_device };
inline void threadgroup_barrier(mem_flags) { shim::everyone.wait(); }
template <typename A> A simd_sum(A x) {
  double* all = shim::together(x);
  A sum = 0;
  for (int i = 0; i < 32; i++) sum += A(all[i]);
  return sum;
}
template <typename A> A simd_max(A x) {
  double* all = shim::together(x);
  A best = A(all[0]);
  for (int i = 1; i < 32; i++) best = max(best, A(all[i]));
  return best;
}
template <typename A> A simd_min(A x) {
  double* all = shim::together(x);
  A best = A(all[0]);
  for (int i = 1; i < 32; i++) best = min(best, A(all[i]));
  return best;
}
template <typename A> A simd_prefix_exclusive_sum(A x) {
  double* all = shim::together(x);
  A sum = 0;
  for (uint i = 0; i < shim::me->lane; i++) sum += A(all[i]);
  return sum;
}
template <typename A, int R, int C> struct simdgroup_matrix { A at[R][C]; };
template <typename A, int R, int C> simdgroup_matrix<A, R, C> make_filled_simdgroup_matrix(A x) {
  simdgroup_matrix<A, R, C> m;
  for (int i = 0; i < R; i++) for (int j = 0; j < C; j++) m.at[i][j] = x;
  return m;
}
template <typename A>
void simdgroup_load(simdgroup_matrix<A, 8, 8>& m, const A* p, ulong stride, ulong2 = {0, 0}, bool transpose = false) {
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 8; j++) m.at[i][j] = transpose ? p[j * stride + i] : p[i * stride + j];
}
template <typename A> void simdgroup_store(const simdgroup_matrix<A, 8, 8>& m, A* p, ulong stride) {
  for (int i = 0; i < 8; i++) for (int j = 0; j < 8; j++) p[i * stride + j] = m.at[i][j];
}
template <typename A>
void simdgroup_multiply_accumulate(simdgroup_matrix<float, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                   const simdgroup_matrix<A, 8, 8>& b, const simdgroup_matrix<float, 8, 8>& c) {
  auto sum = c;
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 8; j++)
      for (int k = 0; k < 8; k++) sum.at[i][j] += float(a.at[i][k]) * float(b.at[k][j]);
  d = sum;
}
}  // namespace metal
using namespace metal;

#define SHARED static
#define UNROLL
#define threadgroup
#define device
#define constant
#define thread_position_in_grid (shim::me->grid)
#define thread_position_in_threadgroup (shim::me->local)
#define threadgroup_position_in_grid (shim::me->group)
#define threads_per_grid (shim::grid_size)
#define thread_index_in_simdgroup (shim::me->lane)
#define simdgroup_index_in_threadgroup (shim::me->simdgroup)
