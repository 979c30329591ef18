// Runs kernels/cuda on a processor: device.h's functions and the little of CUDA that the kernels use, for g++.
//
// The threads of a block are fibers of one thread, in turns; a fiber gives way only where it waits for others:
// at __syncthreads, at a shuffle, at a warp's matrix product. Every access to memory is checked: it must lie in a buffer
// of the arguments, aligned as the instruction wants it, and that may be read or written; what is loaded as constant must
// be read only. Blocks run one after the other, the first or the last one first. An asynchronous copy is made as late as
// a thread's wait allows; where the last block is the first, at once: what is read too early, or overwritten too early,
// gives wrong numbers in one of the two.
#pragma once

#include <sched.h>
#include <setjmp.h>
#include <ucontext.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#define INLINE inline
#define __global__ __attribute__((visibility("default")))
#define __launch_bounds__(...)
#define __shared__ static  // of each kernel, used by one block at a time
#define DYNAMIC_SHARED(NAME) Quad* const NAME = (Quad*)emulator::dynamic_shared.data()

struct Dimensions {
    u32 x, y, z;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum Use : u32 { READ = 1, WRITE = 2 };

struct Buffer {
    const char* begin;
    unsigned long long size;
    u32 uses;
};
static std::vector<Buffer> buffers;
static char failure[256];

static void fail(const char* what, const void* where, size_t size) {
    if (!failure[0])
        snprintf(failure, sizeof failure, "%s of %zu bytes at %p by thread %u of block (%u, %u)", what, size, where,
                 threadIdx.x, blockIdx.x, blockIdx.y);
}

static bool allowed(const void* p, size_t size, u32 use, u32 never = 0) {
    if ((unsigned long long)p % size) {
        fail("misaligned access", p, size);
        return false;
    }
    for (const Buffer& b : buffers) {
        const char* at = (const char*)p;
        if (at >= b.begin && at + size <= b.begin + b.size && b.uses & use && !(b.uses & never)) return true;
    }
    fail(use == WRITE ? "write outside of the output" : never ? "constant load outside of what nobody writes"
                                                              : "read outside of the inputs", p, size);
    return false;
}

template <class T>
static T read(const void* p) {
    T value{};
    if (allowed(p, sizeof(T), READ)) memcpy(&value, p, sizeof(T));
    return value;
}

template <class T>
static T load(const void* p) {
    T value{};
    if (allowed(p, sizeof(T), READ, WRITE)) memcpy(&value, p, sizeof(T));
    return value;
}

template <class T>
static void write(void* p, T value) {
    if (allowed(p, sizeof(T), WRITE)) memcpy(p, &value, sizeof(T));
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
static bool progress, backwards;
static std::vector<char> dynamic_shared;

struct Copy {
    char* to;
    Quad value;
};
struct Copies {  // of a thread: those of each group, the open one last
    std::vector<std::vector<Copy>> groups;
};
static std::vector<Copies> copies;
struct Raw {  // the arguments of any kernel: structs as large as these are handed over in memory, whatever is in them
    unsigned long long words[40];
};
static void (*kernel)(Raw);
static Raw arguments;

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
    copies.assign(threads, Copies{{{}}});
    for (char& byte : dynamic_shared) byte = 0x7e;
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

INLINE Quad load_once(const void* p) { return emulator::load<Quad>(p); }
INLINE u32 load_u32(const void* p) { return emulator::load<u32>(p); }
INLINE u32 load_u16(const void* p) { return emulator::load<u16>(p); }
INLINE u32 load_u8(const void* p) { return emulator::load<unsigned char>(p); }
INLINE Quad read_if(bool wanted, const void* p) { return wanted ? emulator::read<Quad>(p) : Quad{}; }
INLINE Quad read_once_if(bool wanted, const void* p) { return read_if(wanted, p); }
INLINE u32 read_u32(const void* p) { return emulator::read<u32>(p); }
INLINE u32 read_u16(const void* p) { return emulator::read<u16>(p); }
INLINE u32 read_latest(const void* p) { return read_u32(p); }
INLINE void tell_rank(u32* flag, u32 number) {
    if (emulator::allowed(flag, 4, emulator::WRITE)) __atomic_store_n(flag, number, __ATOMIC_RELEASE);
}

INLINE bool wait_for_rank(const u32* flag, u32 number, u32 patience) {  // other ranks are other processes
    if (!emulator::allowed(flag, 4, emulator::READ)) return false;
    const auto begin = std::chrono::steady_clock::now();
    while ((int)(__atomic_load_n(flag, __ATOMIC_ACQUIRE) - number) < 0) {
        if (std::chrono::steady_clock::now() - begin > std::chrono::milliseconds(patience)) return false;
        sched_yield();
        emulator::progress = true;
        emulator::give_way();
    }
    return true;
}

INLINE void give_up(u32* failure, u32 reason) {
    emulator::write(failure, reason);
    emulator::fail("a wait in vain", failure, 4);
}

INLINE Quad read_of_rank(const void* p) { return emulator::read<Quad>(p); }
INLINE void store(void* p, Quad q) { emulator::write(p, q); }
INLINE void store_u32(void* p, u32 value) { emulator::write(p, value); }
INLINE void store_u16(void* p, u32 value) { emulator::write(p, (u16)value); }

INLINE void check_shared(const void* p, u32 size) {
    const char* begin = emulator::dynamic_shared.data();
    if ((const char*)p < begin || (const char*)p + size > begin + emulator::dynamic_shared.size())
        emulator::fail("access beyond the shared memory", p, size);
}

INLINE Quad read_shared(const Quad* p) {
    check_shared(p, sizeof *p);
    return *p;
}

INLINE void copy_async(Quad* shared, const void* p, bool wanted) {
    check_shared(shared, sizeof *shared);
    const emulator::Copy copy{(char*)shared, read_if(wanted, p)};
    if (emulator::backwards) memcpy(copy.to, &copy.value, sizeof copy.value);
    else emulator::copies[threadIdx.x].groups.back().push_back(copy);
}

INLINE void close_copies() { emulator::copies[threadIdx.x].groups.push_back({}); }

template <int OPEN>
INLINE void wait_for_copies() {
    auto& groups = emulator::copies[threadIdx.x].groups;
    while (groups.size() > OPEN + 1) {
        for (const emulator::Copy& copy : groups.front()) memcpy(copy.to, &copy.value, sizeof copy.value);
        groups.erase(groups.begin());
    }
}

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

u32 to_bfloat(float value);  // numbers.h

INLINE bool is_last(u32* counter, u32 count) {
    const u32 before = emulator::read<u32>(counter);
    emulator::write(counter, before >= count - 1 ? 0 : before + 1);
    return before == count - 1;
}

INLINE void wait_for_earlier_kernels() {}  // kernels run one after the other
INLINE void let_next_kernel_begin() {}
INLINE float power_of_two(float exponent) { return exp2f(exponent); }
INLINE float error_function(float x) { return erff(x); }
INLINE float hyperbolic_tangent(float x) { return tanhf(x); }
INLINE float reciprocal_root(float x) { return 1.0f / sqrtf(x); }

INLINE u32 fma_bfloat2(u32 a, u32 b, u32 c) {
    u32 result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto part = [=](u32 pair) { return (double)as_float(pair >> shift << 16); };
        result |= to_bfloat((float)(part(a) * part(b) + part(c))) << shift;
    }
    return result;
}

template <class T>
static T shuffle_xor(T value, u32 mask) {
    struct Lane {
        T value, result;
        u32 mask;
    } mine{value, T{}, mask};
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
                                                                      const void* arguments, u32 size,
                                                                      const emulator::Buffer* buffers, u32 count,
                                                                      u32 shared_bytes, bool backwards) {
    emulator::kernel = (void (*)(emulator::Raw))kernel;
    memcpy(&emulator::arguments, arguments, size);
    emulator::buffers.assign(buffers, buffers + count);
    emulator::failure[0] = 0;
    emulator::backwards = backwards;
    emulator::dynamic_shared.resize(shared_bytes);
    blockDim = {threads, 1, 1};
    gridDim = {grid_x, grid_y, 1};
    for (u32 i = 0; i < grid_x * grid_y; i++) {
        const u32 block = backwards ? grid_x * grid_y - 1 - i : i;
        blockIdx = {block % grid_x, block / grid_x, 0};
        emulator::run_block();
    }
    return emulator::failure;
}
