// What the kernels need of the machine, one instruction or one memory access a function: everything else in this folder
// is plain C++. No headers are included, since NVRTC brings none. Elsewhere than on a GPU (the tests' emulator) these
// functions come from cuda_emulator.h.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;

struct alignas(16) Quad {  // four words, moved by one 16-byte access
    u32 word[4];
};

// How the elements of a tensor are stored; the numbers are kernels/cuda/build.py's.
enum Kind { FLOAT16 = 0, BFLOAT16 = 1, FLOAT32 = 2 };

#ifndef __CUDACC__
#include "cuda_emulator.h"
#else

#define INLINE __device__ __forceinline__
#define DYNAMIC_SHARED(NAME) extern __shared__ Quad NAME[]  // as many bytes as the launch says

// a / d for d from 1, with magic = 2^31 / d + 1: exact while a * d < 2^31.
INLINE u32 divide(u32 a, u32 magic) { return __umulhi(2 * a, magic); }

INLINE u32 bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

INLINE u32 and_xor(u32 a, u32 b, u32 c) {  // (a & b) ^ c; with two constants the compiler makes two instructions of it
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// load_...: of what no kernel writes: weights, scales, biases. They may be asked for before an earlier kernel has ended.
// read_...: of what an earlier kernel has written. All are volatile so that the compiler leaves them where they are
// written: ahead of the arithmetic that hides them.
INLINE Quad load_once(const void* p) {  // weights: nobody reads them again, they need no place in L1
    Quad q;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.word[0]), "=r"(q.word[1]), "=r"(q.word[2]), "=r"(q.word[3]) : "l"(p));
    return q;
}

// Zeros where not wanted. The registers of q are written before the address is read: "&".
#define READ_IF(NAME, LOAD) \
    INLINE Quad NAME(bool wanted, const void* p) { \
        Quad q; \
        asm volatile("{ .reg .pred wanted; setp.ne.u32 wanted, %5, 0;\n" \
                     "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n" \
                     "@wanted " LOAD " {%0, %1, %2, %3}, [%4]; }" \
                     : "=&r"(q.word[0]), "=&r"(q.word[1]), "=&r"(q.word[2]), "=&r"(q.word[3]) \
                     : "l"(p), "r"((u32)wanted)); \
        return q; \
    }

READ_IF(read_if, "ld.global.v4.u32")
READ_IF(read_once_if, "ld.global.L1::no_allocate.v4.u32")  // keys and values: they need no place in L1

INLINE u32 read_u32(const void* p) {
    u32 value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(p));
    return value;
}

INLINE u32 read_u16(const void* p) {
    u16 value;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(p));
    return value;
}

INLINE u32 read_latest(const void* p) {  // what other blocks of this kernel have written: not from L1
    u32 value;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}

// Whether this call is the last of `count` for the counter, which begins and ends at zero. What the callers' blocks wrote
// before (and __syncthreads lies between) is there for the last one to read.
INLINE bool is_last(u32* counter, u32 count) {
    u32 before;
    asm volatile("fence.acq_rel.gpu; atom.relaxed.gpu.global.inc.u32 %0, [%1], %2; fence.acq_rel.gpu;"
                 : "=r"(before) : "l"(counter), "r"(count - 1) : "memory");
    return before == count - 1;
}

// Between GPUs: what a block's threads wrote before (and __syncthreads lies between) is there for whoever has seen the
// number that is told.
INLINE void tell_rank(u32* flag, u32 number) {
    asm volatile("fence.acq_rel.sys; st.relaxed.sys.global.u32 [%0], %1;" :: "l"(flag), "r"(number) : "memory");
}

// Whether the flag comes to be the number, or one behind it, in so many milliseconds.
INLINE bool wait_for_rank(const u32* flag, u32 number, u32 patience) {
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    do {
        u32 found;
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
        if ((int)(found - number) >= 0) return true;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begin < patience * 1000000ull);
    return false;
}

INLINE void give_up(u32* failure, u32 reason) {  // all kernels of the process end, and the host is told
    asm volatile("st.relaxed.sys.global.u32 [%0], %1; fence.acq_rel.sys; trap;" :: "l"(failure), "r"(reason) : "memory");
}

INLINE Quad read_of_rank(const void* p) {  // another GPU's memory, as it is now
    Quad q;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.word[0]), "=r"(q.word[1]), "=r"(q.word[2]), "=r"(q.word[3]) : "l"(p) : "memory");
    return q;
}

INLINE u32 load_u32(const void* p) {
    u32 value;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(p));
    return value;
}

INLINE u32 load_u16(const void* p) {
    u16 value;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(p));
    return value;
}

INLINE u32 load_u8(const void* p) {
    u32 value;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(value) : "l"(p));
    return value;
}

INLINE Quad read_shared(const Quad* p) {
    const uint4 q = *(const uint4*)p;
    return Quad{{q.x, q.y, q.z, q.w}};
}

INLINE void store(void* p, Quad q) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(p), "r"(q.word[0]), "r"(q.word[1]), "r"(q.word[2]), "r"(q.word[3]) : "memory");
}

INLINE void store_u32(void* p, u32 value) {
    asm volatile("st.global.u32 [%0], %1;" :: "l"(p), "r"(value) : "memory");
}

INLINE void store_u16(void* p, u32 value) {
    asm volatile("st.global.u16 [%0], %1;" :: "l"(p), "h"((u16)value) : "memory");
}

INLINE float as_float(u32 bits) { return __uint_as_float(bits); }
INLINE u32 as_bits(float value) { return __float_as_uint(value); }

INLINE float from_half(u32 low_half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)low_half));
    return value;
}

INLINE u32 to_half(float value) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

INLINE float power_of_two(float exponent) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
    return value;
}

// Where kernels overlap (driver.py), this one may begin while the one before is at work: what that one writes can be read
// behind the call, and only there may anything be written. Every kernel calls it.
INLINE void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

INLINE void let_next_kernel_begin() {  // once all blocks have called it or ended
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Pairs of 16-bit floats in a word: a * b + c, rounded once.
INLINE u32 fma_half2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

INLINE u32 add_half2(u32 a, u32 b) {
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

INLINE float shuffle_xor(float value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// The functions of C, which need no headers.
INLINE float error_function(float x) { return erff(x); }
INLINE float hyperbolic_tangent(float x) { return tanhf(x); }
INLINE float reciprocal_root(float x) { return rsqrtf(x); }

#if __CUDA_ARCH__ >= 800

// 16 bytes of memory into shared memory, zeros where not wanted, past the registers. They are there for the thread that
// asked once it has waited (and for others behind a barrier after that). The rest of the line is brought to the L2 cache.
INLINE void copy_async(Quad* shared, const void* p, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(shared)), "l"(p), "r"(wanted ? 16 : 0) : "memory");
}

INLINE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }  // of this thread, into a group

template <int OPEN>
INLINE void wait_for_copies() {  // all groups of this thread but the last OPEN ones
    asm volatile("cp.async.wait_group %0;" :: "n"(OPEN) : "memory");
}

INLINE u32 fma_bfloat2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

INLINE u32 to_bfloat(float value) {
    u16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
    return rounded;
}

// A warp's product of a 16 x 16 matrix a with a 16 x 8 matrix b, added to the 16 x 8 matrix c. Of lane = 4 * g + t,
// a[0] is row g, columns 2t and 2t + 1; a[1] row g + 8; a[2], a[3] the same rows, columns 2t + 8 and 2t + 9; b0 is
// column g, rows 2t and 2t + 1; b1 rows 2t + 8 and 2t + 9; c[0], c[1] is row g, columns 2t and 2t + 1; c[2], c[3] row
// g + 8. (PTX ISA, "mma.m16n8k16 with floating point type".)
template <int KIND>
INLINE void multiply_add(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if (KIND == FLOAT16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#endif
#endif
