// The products of a prompt's attention: out (rows, 32) (+)= a (rows, k) b (k, 32), in FP32, for at most 32 rows.
//
// b lies in panels of some columns, [column / PANEL][k / PAIR][column % PANEL][k % PAIR], as the instructions want it, and k
// is a multiple of 32. Three ways: tiles of the processor's matrix unit, pairs of bf16, and plain FP32.
#pragma once
#include "attention.h"
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace prefill {

enum { BLOCK = 32 };  // rows of a product, its columns, and what k is a multiple of

static inline size_t whole_blocks(size_t count) { return (count + BLOCK - 1) / BLOCK * BLOCK; }

// ROWS of a against two vectors of columns, which stay in registers; `Step` says what is multiplied at a time.
template <int ROWS, class Step, class E>
static inline void rows_by_vectors(const E* a, size_t a_stride, const E* b, size_t panel, size_t k, float* out,
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

template <class Step, class E>
static inline void by_vectors(const E* a, size_t a_stride, size_t rows, const E* b, size_t panel, size_t k, float* out,
                              size_t out_stride, bool is_first) {
    enum { ROWS = W == 16 ? 8 : 4 };  // twice as many sums, the columns and x fit the registers
    for (size_t c = 0; c < BLOCK; c += 2 * W, b += 2 * panel, out += 2 * W)
        for (size_t i = 0; i < rows; i += ROWS)  // those behind the last row are there, too
            rows_by_vectors<ROWS, Step>(a + i * a_stride, a_stride, b, panel, k, out + i * out_stride, out_stride, is_first);
}

struct Floats {
    typedef float Element;
    enum { PANEL = W, PAIR = 1 };
    struct Step {
        enum { PAIR = 1 };
        static inline vec columns(const float* b) { return load(b); }
        static inline vec everywhere(const float* a) { return fill(*a); }
        static inline vec add(vec sum, vec x, vec b) { return fma(x, b, sum); }
    };
    struct Scope {};
    static void multiply(const float* a, size_t a_stride, size_t rows, const float* b, size_t panel, size_t k, float* out,
                         size_t out_stride, bool is_first) {
        by_vectors<Step>(a, a_stride, rows, b, panel, k, out, out_stride, is_first);
    }
    static inline void put_rows(const float* rows, size_t, float* to) { store(to, load(rows)); }
    template <bool> static inline vec weight(vec x) { return exponential(x); }
    static constexpr float BASE = 1.0f;  // weight(x) is e^(x / BASE)
};

#ifdef GLM_BF16_DOTS
// 2^x to 3e-6 relative, which is 500 times finer than the bf16 that it becomes; below 2^-126 that, or 0 where it must be.
template <bool CAN_BE_ZERO> static inline vec power_of(vec x) {
    const vec whole = fill(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to whole numbers
    vec y = larger(fill(-126.0f), x), shifted = add(y, whole), r = sub(y, sub(shifted, whole));
    vec p = fill(9.58285e-3f);
    p = fma(p, r, fill(5.590643e-2f));
    p = fma(p, r, fill(2.4024099e-1f));
    p = fma(p, r, fill(6.9312419e-1f));
    p = fma(p, r, fill(1.0f));
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
    return CAN_BE_ZERO ? if_negative(add(x, fill(126.0f)), fill(0.0f), p) : p;
}

struct Dots {
    typedef bf16 Element;
    enum { PANEL = 16, PAIR = 2 };
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
    static void multiply(const bf16* a, size_t a_stride, size_t rows, const bf16* b, size_t panel, size_t k, float* out,
                         size_t out_stride, bool is_first) {
        by_vectors<Step>(a, a_stride, rows, b, panel, k, out, out_stride, is_first);
    }
    // 16 columns of two rows, `stride` apart, side by side.
    static inline void put_rows(const bf16* rows, size_t stride, bf16* to) {
        __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)rows));
        __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows + stride)));
        _mm512_storeu_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
    template <bool CAN_BE_ZERO> static inline vec weight(vec x) { return power_of<CAN_BE_ZERO>(x); }
    static constexpr float BASE = 1.44269504f;  // 1 / ln 2
};

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define GLM_TILES
// Tiles of 16 rows of 64 bytes: 0-3 are sums, 4 and 5 rows of a, 6 and 7 panels of b.
struct Tiles : Dots {
    struct Scope {  // in which a thread may use tiles
        Scope() {
            alignas(64) uint8_t shape[64] = {1};
            for (int tile = 0; tile < 8; tile++) shape[16 + 2 * tile] = 64, shape[48 + tile] = 16;
            _tile_loadconfig(shape);
        }
        ~Scope() { _tile_release(); }
    };
    static void multiply(const bf16* a, size_t a_stride, size_t rows, const bf16* b, size_t panel, size_t k, float* out,
                         size_t out_stride, bool is_first) {
        asm volatile("" ::: "memory");  // compilers do not know that tiles read memory
        const auto nothing = [](size_t) {};
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

// What there is: 0 Floats alone, 1 Dots, 2 Tiles, which the system must allow this process (Linux, x86/xstate.rst).
static inline int best_products() {
#ifdef GLM_TILES
    const long REQUEST = 0x1023, TILE_DATA = 18;
    if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0) return 2;
#endif
#ifdef GLM_BF16_DOTS
    return 1;
#else
    return 0;
#endif
}

}  // namespace prefill
