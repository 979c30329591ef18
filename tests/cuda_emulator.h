// Runs kernels/cuda on a processor: device.h's functions and the little of CUDA that the kernels use, for g++.
//
// The threads of a block are fibers of one thread, in turns; a fiber gives way only where it waits for others:
// at __syncthreads, at a shuffle, at a warp's matrix product. Every access to memory is checked: it must lie in a buffer
// of the arguments, aligned as the instruction wants it, and writes only in the output. Blocks run one after the other.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#define INLINE inline
#define __global__ __attribute__((visibility("default")))
#define __launch_bounds__(...)
#define __shared__ static  // of each kernel, used by one block at a time

struct Dimensions {
    u32 x, y, z;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Buffer {
    const char* begin;
    unsigned long long size;
    u32 writable;
};
static std::vector<Buffer> buffers;
static char failure[256];

static void fail(const char* what, const void* where, size_t size) {
    if (!failure[0])
        snprintf(failure, sizeof failure, "%s of %zu bytes at %p by thread %u of block (%u, %u)", what, size, where,
                 threadIdx.x, blockIdx.x, blockIdx.y);
}

static bool allowed(const void* p, size_t size, bool write) {
    if ((unsigned long long)p % size) {
        fail("misaligned access", p, size);
        return false;
    }
    for (const Buffer& b : buffers) {
        const char* at = (const char*)p;
        if (at >= b.begin && at + size <= b.begin + b.size && (bool)b.writable == write) return true;
    }
    fail(write ? "write outside of the output" : "read outside of the inputs", p, size);
    return false;
}

template <class T>
static T read(const void* p) {
    T value{};
    if (allowed(p, sizeof(T), false)) memcpy(&value, p, sizeof(T));
    return value;
}

template <class T>
static void write(void* p, T value) {
    if (allowed(p, sizeof(T), true)) memcpy(p, &value, sizeof(T));
}

struct Warp {
    const char* operation;  // the one its lanes meet at
    u32 arrived, meetings;
    void* lane[32];
};

struct Fiber {
    ucontext_t start;  // once; afterwards _setjmp and _longjmp, which ask nothing of the system
    jmp_buf here;
    std::vector<char> stack;
    bool started, done;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static jmp_buf scheduler;
static u32 at_barrier, barriers;
static bool progress;
static void (*kernel)(Arguments);
static Arguments arguments;

static __attribute__((noinline)) void give_way() {
    if (!_setjmp(fibers[threadIdx.x].here)) _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void resume(u32 thread) {  // returns when the fiber gives way
    if (_setjmp(scheduler)) return;
    Fiber& fiber = fibers[thread];
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

// All lanes of a warp bring something; the last to come handles it for all.
template <class Handle>
static void meet(const char* operation, void* mine, Handle handle) {
    Warp& warp = warps[threadIdx.x / 32];
    if (warp.arrived == 0) warp.operation = operation;
    if (strcmp(warp.operation, operation)) fail("lanes of a warp diverge before an operation", mine, 1);
    warp.lane[threadIdx.x % 32] = mine;
    progress = true;
    if (++warp.arrived == 32) {
        handle(warp.lane);
        warp.arrived = 0;
        warp.meetings++;
    } else {
        for (const u32 now = warp.meetings; warp.meetings == now;) give_way();
    }
}

static void fiber_main() {
    kernel(arguments);
    fibers[threadIdx.x].done = progress = true;
    give_way();
}

static void run_block() {
    const u32 threads = blockDim.x;
    fibers.resize(threads);
    warps.assign((threads + 31) / 32, Warp{});
    at_barrier = 0;
    for (Fiber& fiber : fibers) {
        fiber.started = fiber.done = false;
        fiber.stack.resize(64 << 10);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = fiber.stack.size();
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
    }
    for (progress = true; progress;) {
        progress = false;
        for (u32 i = 0; i < threads; i++) {
            threadIdx.x = i;
            if (!fibers[i].done) resume(i);
        }
    }
    for (const Fiber& fiber : fibers)
        if (!fiber.done) fail("threads wait for others that never come", &fiber, 1);
}

}  // namespace emulator

static inline void __syncthreads() {
    using namespace emulator;
    progress = true;
    if (++at_barrier == blockDim.x) {
        at_barrier = 0;
        barriers++;
    } else {
        for (const u32 now = barriers; barriers == now;) give_way();
    }
}

static inline u32 min(u32 a, u32 b) { return a < b ? a : b; }

INLINE u32 divide(u32 a, u32 magic) { return (unsigned long long)(2 * a) * magic >> 32; }

INLINE u32 bytes(u32 a, u32 b, u32 selector) {
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        const u32 place = selector >> 4 * i & 7;
        result |= ((place < 4 ? a >> 8 * place : b >> 8 * (place - 4)) & 0xff) << 8 * i;
    }
    return result;
}

INLINE u32 and_xor(u32 a, u32 b, u32 c) { return (a & b) ^ c; }

INLINE Quad load_once(const void* p) { return emulator::read<Quad>(p); }
INLINE Quad load_if(bool wanted, const void* p) { return wanted ? emulator::read<Quad>(p) : Quad{}; }
INLINE u32 load_u32(const void* p) { return emulator::read<u32>(p); }
INLINE u32 load_u16(const void* p) { return emulator::read<u16>(p); }
INLINE u32 load_u8(const void* p) { return emulator::read<unsigned char>(p); }
INLINE void store(void* p, Quad q) { emulator::write(p, q); }
INLINE void store_u16(void* p, u32 value) { emulator::write(p, (u16)value); }

INLINE float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE u32 as_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float from_half(u32 low_half) {
    const u16 bits = low_half;
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
}

template <class Float>
static u32 half_bits(Float value) {  // one rounding, from float as from double
    const _Float16 half = value;
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
}

INLINE u32 to_half(float value) { return half_bits(value); }

INLINE u32 fma_half2(u32 a, u32 b, u32 c) {
    const double low = (double)from_half(a) * from_half(b) + from_half(c);
    const double high = (double)from_half(a >> 16) * from_half(b >> 16) + from_half(c >> 16);
    return half_bits(low) | half_bits(high) << 16;
}

INLINE u32 add_half2(u32 a, u32 b) { return fma_half2(a, 0x3c003c00, b); }

u32 to_bfloat(float value);  // unpack.h

INLINE u32 fma_bfloat2(u32 a, u32 b, u32 c) {
    u32 result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto part = [=](u32 pair) { return (double)as_float(pair >> shift << 16); };
        result |= to_bfloat((float)(part(a) * part(b) + part(c))) << shift;
    }
    return result;
}

INLINE float shuffle_xor(float value, u32 mask) {
    struct Lane {
        float value, result;
        u32 mask;
    } mine{value, 0.0f, mask};
    emulator::meet("shuffle", &mine, [](void** lanes) {
        for (u32 i = 0; i < 32; i++)
            ((Lane*)lanes[i])->result = ((Lane*)lanes[i ^ ((Lane*)lanes[i])->mask])->value;
    });
    return mine.result;
}

template <int KIND>
INLINE void multiply_add(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    struct Lane {
        u32 a[4], b[2];
        float* c;
    } mine{{a0, a1, a2, a3}, {b0, b1}, c};
    emulator::meet("matrix product", &mine, [](void** lanes) {
        const auto value = [](u32 bits) { return KIND == FLOAT16 ? from_half(bits) : as_float(bits << 16); };
        float a[16][16], b[16][8];
        for (u32 i = 0; i < 32; i++) {
            const Lane& lane = *(const Lane*)lanes[i];
            const u32 g = i / 4, t = i % 4;
            for (u32 r = 0; r < 4; r++)
                for (u32 h = 0; h < 2; h++)
                    a[g + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = value(lane.a[r] >> 16 * h & 0xffff);
            for (u32 r = 0; r < 2; r++)
                for (u32 h = 0; h < 2; h++) b[2 * t + h + 8 * r][g] = value(lane.b[r] >> 16 * h & 0xffff);
        }
        for (u32 i = 0; i < 32; i++)
            for (u32 r = 0; r < 4; r++) {
                float& sum = ((const Lane*)lanes[i])->c[r];
                for (u32 k = 0; k < 16; k++) sum += a[i / 4 + 8 * (r / 2)][k] * b[k][2 * (i % 4) + r % 2];
            }
    });
}

// The message of what went wrong, empty if nothing did. buffers: those that the kernel may touch.
extern "C" __attribute__((visibility("default"))) const char* emulate(void* kernel, u32 grid_x, u32 grid_y, u32 threads,
                                                                      const Arguments* arguments,
                                                                      const emulator::Buffer* buffers, u32 count) {
    emulator::kernel = (void (*)(Arguments))kernel;
    emulator::arguments = *arguments;
    emulator::buffers.assign(buffers, buffers + count);
    emulator::failure[0] = 0;
    blockDim = {threads, 1, 1};
    gridDim = {grid_x, grid_y, 1};
    for (u32 y = 0; y < grid_y; y++)
        for (u32 x = 0; x < grid_x; x++) {
            blockIdx = {x, y, 0};
            emulator::run_block();
        }
    return emulator::failure;
}
