// What a CUDA kernel sees of a card, on a processor: included before a .cu file, it makes the kernels plain functions that
// `launch` runs, one block after the other, each thread of a block a fibre. Knows nothing of any kernel; says nothing
// about speed.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace card {

struct Place {
    unsigned x = 1, y = 1, z = 1;
};
constexpr unsigned WARP = 32;
constexpr std::size_t STACK = 64 * 1024;

// Fibres that wait for each other. What is not there does not count: a block may end with part of a warp.
struct Barrier {
    unsigned members, arrived, passed;
};

struct Fibre {
    std::vector<char> stack = std::vector<char>(STACK);
    ucontext_t start;
    jmp_buf here;
    Place thread;
    unsigned number, shuffles;
    bool begun, done;
};

struct Block {
    std::vector<Fibre> fibres;
    Barrier all;
    std::vector<Barrier> warps;
    // What lanes hand over; two in turn, so that none is overwritten before everybody has read it.
    std::vector<std::uint64_t> slots[2];
    jmp_buf scheduler;
    const std::function<void()> *kernel;
    bool moved;
};

inline Block block;
inline Fibre *self;

inline void leave() {
    if (!_setjmp(self->here)) _longjmp(block.scheduler, 1);
}

inline void pass(Barrier &barrier) {
    const unsigned before = barrier.passed;
    if (++barrier.arrived == barrier.members) {
        barrier.arrived = 0, barrier.passed++, block.moved = true;
    }
    while (barrier.passed == before) leave();
}

inline void entry() {
    (*block.kernel)();
    self->done = true, block.moved = true;
    _longjmp(block.scheduler, 1);
}

// A lane's number as another lane has it.
template <typename T>
T exchange(T x, unsigned from) {
    static_assert(sizeof(T) <= 8);
    const unsigned warp = self->number / WARP;
    auto &slots = block.slots[self->shuffles++ % 2];
    std::memcpy(&slots[self->number], &x, sizeof x);
    pass(block.warps[warp]);
    if (from < block.warps[warp].members) std::memcpy(&x, &slots[warp * WARP + from], sizeof x);
    return x;
}

}  // namespace card

inline card::Place threadIdx, blockIdx, blockDim, gridDim;

namespace card {

inline void resume(Fibre &fibre) {
    self = &fibre, ::threadIdx = fibre.thread;
    if (_setjmp(block.scheduler)) return;
    if (fibre.begun) _longjmp(fibre.here, 1);
    fibre.begun = true;
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack.data(), fibre.start.uc_stack.ss_size = STACK;
    fibre.start.uc_link = nullptr;
    makecontext(&fibre.start, entry, 0);
    setcontext(&fibre.start);
}

inline void prepare(Place threads, const std::function<void()> &kernel) {
    const unsigned count = threads.x * threads.y * threads.z;
    if (block.fibres.size() < count) block.fibres.resize(count);
    for (unsigned i = 0; i < count; i++) {
        Fibre &fibre = block.fibres[i];
        fibre.thread = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
        fibre.number = i, fibre.shuffles = 0, fibre.begun = fibre.done = false;
    }
    block.all = {count, 0, 0};
    block.warps.clear();
    for (unsigned first = 0; first < count; first += WARP)
        block.warps.push_back({count - first < WARP ? count - first : WARP, 0, 0});
    for (auto &slots : block.slots) slots.assign(count, 0);
    block.kernel = &kernel;
}

// A grid of blocks of threads.
inline void launch(Place grid, Place threads, const std::function<void()> &kernel) {
    ::gridDim = grid, ::blockDim = threads;
    for (unsigned number = 0; number < grid.x * grid.y * grid.z; number++) {
        ::blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        prepare(threads, kernel);
        const unsigned count = block.all.members;
        for (bool busy = true; busy;) {
            busy = false, block.moved = false;
            for (unsigned i = 0; i < count; i++) {
                if (!block.fibres[i].done) busy = true, resume(block.fibres[i]);
            }
            if (busy && !block.moved) {
                std::fprintf(stderr, "threads of a block wait for each other for ever\n");
                std::abort();
            }
        }
    }
}

}  // namespace card

inline void __syncthreads() { card::pass(card::block.all); }
inline unsigned lane() { return card::self->number % card::WARP; }
template <typename T>
T __shfl_xor_sync(unsigned, T x, unsigned step, unsigned = 32) {
    return card::exchange(x, lane() ^ step);
}
template <typename T>
T __shfl_sync(unsigned, T x, unsigned from, unsigned = 32) {
    return card::exchange(x, from);
}
// Threads of one block take turns, and blocks run one after the other.
template <typename T>
T atomicAdd(T *to, T x) {
    const T before = *to;
    *to = before + x;
    return before;
}
