// The products of a prompt's attention: out (rows, columns) (+)= a (rows, k) b (k, columns), in FP32.
//
// b lies in panels of some columns, [column / PANEL][k / PAIR][column % PANEL][k % PAIR], as the instructions want it;
// columns and k are multiples of BLOCK. Three ways: tiles of the processor's matrix unit, pairs of bf16, and plain FP32.
#pragma once
#include "attention.h"
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace prefill {

// 2^x, to 1.7e-7 relative (DEGREE 5) or 2.9e-6 (4); 0 below -126.5. A NaN stays one by the order of operands.
template <int DEGREE> static ALWAYS vec power(vec x) {
    static const float c[2][5] = {{0.00958285294f, 0.0559064262f, 0.240240991f, 0.693124175f},
                                  {0.00132647273f, 0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f}};
    const vec whole = fill(12582912.0f + 127);  // 1.5 * 2^23: a sum with it is rounded; 127 is where exponents begin
    const vec y = larger(fill(-127.0f), x), shifted = add(y, whole), r = sub(y, sub(shifted, whole));
    vec p = fill(c[DEGREE - 4][0]);
    UNROLL for (int i = 1; i < DEGREE; i++) p = fma(p, r, fill(c[DEGREE - 4][i]));
    return mul(fma(p, r, fill(1.0f)), shifted_23(shifted));
}

// ROWS of a against two vectors of columns, whose sums fill the registers; `Step` says what is multiplied at a time.
template <int ROWS, class Step, class E>
static __attribute__((noinline)) void rows_by_vectors(const E* a, size_t a_stride, const E* b, size_t panel, size_t k, float* out,
                                   size_t out_stride, bool is_first) {
    vec sums[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int c = 0; c < 2; c++) sums[i][c] = is_first ? fill(0.0f) : load(out + i * out_stride + c * W);
    for (size_t j = 0; j < k; j += Step::PAIR, a += Step::PAIR, b += Step::PAIR * W) {
        const auto first = Step::columns(b), second = Step::columns(b + panel);
        UNROLL for (int i = 0; i < ROWS; i++) {
            const auto x = Step::everywhere(a + i * a_stride);
            sums[i][0] = Step::add(sums[i][0], x, first);
            sums[i][1] = Step::add(sums[i][1], x, second);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int c = 0; c < 2; c++) store(out + i * out_stride + c * W, sums[i][c]);
}

// A panel stays in the nearest cache while all rows pass by. Up to three rows behind the last one are there, too.
template <class Step, class E>
static inline void by_vectors(const E* a, size_t a_stride, size_t rows, const E* b, size_t panel, size_t k, size_t columns,
                              float* out, size_t out_stride, bool is_first) {
    enum { MOST = W == 16 ? 12 : 6, SOME = W == 16 ? 8 : 4, FEW = W == 16 ? 4 : 2 };
    for (size_t c = 0; c < columns; c += 2 * W, b += 2 * panel, out += 2 * W) {
        size_t i = 0;
        const auto pass = [&](auto multiply) { multiply(a + i * a_stride, a_stride, b, panel, k, out + i * out_stride, out_stride, is_first); };
        for (; i + SOME < rows; i += MOST) pass(rows_by_vectors<MOST, Step, E>);
        if (i + FEW < rows) pass(rows_by_vectors<SOME, Step, E>);
        else if (i < rows) pass(rows_by_vectors<FEW, Step, E>);
    }
}

struct Floats {
    typedef float Element;
    enum { BLOCK = 2 * W, PANEL = W, PAIR = 1, ROWS = 24, PLACES = 256 };  // ROWS: of a at a time
    struct Step {
        enum { PAIR = 1 };
        static inline vec columns(const float* b) { return load(b); }
        static inline vec everywhere(const float* a) { return fill(*a); }
        static inline vec add(vec sum, vec x, vec b) { return fma(x, b, sum); }
    };
    struct Scope {};
    static void multiply(const float* a, size_t a_stride, size_t rows, const float* b, size_t panel, size_t k, size_t columns,
                         float* out, size_t out_stride, bool is_first) {
        by_vectors<Step>(a, a_stride, rows, b, panel, k, columns, out, out_stride, is_first);
    }
    static inline void put_rows(const float* rows, size_t, float* to) { store(to, load(rows)); }
    static ALWAYS vec weight(vec x) { return power<5>(x); }
};

#ifdef GLM_BF16_DOTS
struct Dots {
    typedef bf16 Element;
    enum { BLOCK = 32, PANEL = 16, PAIR = 2, ROWS = 24, PLACES = 256 };
    struct Step {
        enum { PAIR = 2 };
        static inline __m512bh columns(const bf16* b) { return (__m512bh)_mm512_loadu_si512(b); }
        static inline __m512bh everywhere(const bf16* a) {
            int pair;
            std::memcpy(&pair, a, 4);
            return (__m512bh)_mm512_set1_epi32(pair);
        }
        static inline vec add(vec sum, __m512bh x, __m512bh b) { return _mm512_dpbf16_ps(sum, b, x); }
    };
    struct Scope {};
    static void multiply(const bf16* a, size_t a_stride, size_t rows, const bf16* b, size_t panel, size_t k, size_t columns,
                         float* out, size_t out_stride, bool is_first) {
        by_vectors<Step>(a, a_stride, rows, b, panel, k, columns, out, out_stride, is_first);
    }
    // 16 columns of two rows, `stride` apart, side by side.
    static inline void put_rows(const bf16* rows, size_t stride, bf16* to) {
        __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)rows));
        __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows + stride)));
        _mm512_storeu_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
    static ALWAYS vec weight(vec x) { return power<4>(x); }  // 500 times finer than the bf16 that it becomes
};

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define GLM_TILES
// Tiles of 16 rows of 64 bytes: 0-3 are sums, 4 and 5 rows of a, 6 and 7 panels of b.
struct Tiles : Dots {
    enum { ROWS = 32, PLACES = 256 };
    struct Scope {  // in which a thread may use tiles
        Scope() {
            alignas(64) uint8_t shape[64] = {1};
            for (int tile = 0; tile < 8; tile++) shape[16 + 2 * tile] = 64, shape[48 + tile] = 16;
            asm volatile("" :: "r"(shape) : "memory");  // compilers see only the first bytes read
            _tile_loadconfig(shape);
        }
        ~Scope() { _tile_release(); }
    };
    static void multiply(const bf16* a, size_t a_stride, size_t rows, const bf16* b, size_t panel, size_t k, size_t columns,
                         float* out, size_t out_stride, bool is_first) {
        asm volatile("" ::: "memory");  // compilers do not know that tiles read memory
        const auto nothing = [](size_t) {};
        for (size_t c = 0; c < columns; c += 32, b += 2 * panel, out += 32)
            rows > 16 ? halves<true, true>(a, 2 * a_stride, b, panel, k, out, out_stride, is_first, nothing)
                      : halves<false, true>(a, 2 * a_stride, b, panel, k, out, out_stride, is_first, nothing);
    }
    // 16 rows of a or 32 (BOTH), and 16 columns or 32 (WIDE); meanwhile(j) is called for every 16 words from word j on.
    template <bool BOTH, bool WIDE, class Meanwhile>
    static inline void halves(const bf16* a, size_t a_bytes, const bf16* b, size_t panel, size_t k, float* out,
                              size_t out_stride, bool is_first, Meanwhile meanwhile) {
        const size_t out_bytes = 4 * out_stride;
        float* below = out + 16 * out_stride;
        if (is_first) {
            _tile_zero(0);
            if (WIDE) _tile_zero(1);
            if (BOTH) _tile_zero(2);
            if (BOTH && WIDE) _tile_zero(3);
        } else {
            _tile_loadd(0, out, out_bytes);
            if (WIDE) _tile_loadd(1, out + 16, out_bytes);
            if (BOTH) _tile_loadd(2, below, out_bytes);
            if (BOTH && WIDE) _tile_loadd(3, below + 16, out_bytes);
        }
        for (size_t j = 0; j < k; j += 32) {
            meanwhile(j / 2);
            _tile_loadd(6, b + 16 * j, 64);
            if (WIDE) _tile_loadd(7, b + panel + 16 * j, 64);
            _tile_loadd(4, a + j, a_bytes);
            _tile_dpbf16ps(0, 4, 6);
            if (WIDE) _tile_dpbf16ps(1, 4, 7);
            if (BOTH) {
                _tile_loadd(5, a + 8 * a_bytes + j, a_bytes);  // 16 rows of bf16 further
                _tile_dpbf16ps(2, 5, 6);
                if (WIDE) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out, out_bytes);
        if (WIDE) _tile_stored(1, out + 16, out_bytes);
        if (BOTH) _tile_stored(2, below, out_bytes);
        if (BOTH && WIDE) _tile_stored(3, below + 16, out_bytes);
    }
};
#endif
#endif

// Whether Dots are faster than Floats: on Zen 4 prompts are read at 2.2 times the rate (docs/benchmarks.md). Intel's processors
// take two cycles for an instruction of Dots where two of Floats take one: 119 and 241 GFLOP/s of one core, measured on one
// with tiles. A test says GLM_FAST_DOTS.
static inline bool are_dots_fast() {
#ifdef GLM_FAST_DOTS
    return true;
#elif defined(GLM_BF16_DOTS)
    return !__builtin_cpu_is("intel");
#else
    return false;
#endif
}

// The best there are: 0 Floats, 1 Dots, 2 Tiles, which the system must allow this process (Linux, x86/xstate.rst).
static inline int best_products() {
#ifdef GLM_TILES
    const long REQUEST = 0x1023, TILE_DATA = 18;
    if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0) return 2;
#endif
    return are_dots_fast();
}

}  // namespace prefill
