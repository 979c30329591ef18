// Products of few rows (decoding) with a weight matrix: every weight is read from memory once, for all rows.
#pragma once
#include <cstdlib>
#include <new>
#include <type_traits>
#include <vector>
#include "simd.h"
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

static const size_t NEAREST_CACHE = 24 << 10;  // what x may take of it, beside the weights passing through
// How many bytes in front of the weights the second cache is filled. Measured, one stream, two cores: with 3 KB a loop that only
// loads and multiplies reads at the rate of the bare reading loop, where 1 KB, 8 KB, or the hardware's own fetching alone, lose
// up to a fourth. What converts or unpacks does so, too, on Intel's processors, but needs 6 KB on AMD's.
static const size_t AHEAD = 3072, AHEAD_OF_TWO = 10240;  // one row of weights at a time; two
static inline bool is_amd() {
#ifdef __x86_64__
    static const bool is = __builtin_cpu_is("amd");
    return is;
#else
    return false;
#endif
}
static inline size_t ahead_of_unpacking() { return is_amd() ? 2 * AHEAD : AHEAD; }

static inline size_t nearest_cache_ways() {  // 8 where the system does not tell
#ifdef _SC_LEVEL1_DCACHE_ASSOC
    static const long ways = sysconf(_SC_LEVEL1_DCACHE_ASSOC);
    if (ways > 0) return ways;
#endif
    return 8;
}

// Element types as the callers number them; `call` sees the type as T.
#define BY_TYPE(type, call)                            \
    switch (type) {                                    \
        case 0: { typedef float T; call; break; }      \
        case 1: { typedef bf16 T; call; break; }       \
        default: { typedef fp16 T; call; break; }      \
    }
static inline int type_number(const float*) { return 0; }
static inline int type_number(const bf16*) { return 1; }
static inline int type_number(const fp16*) { return 2; }

struct Range { size_t first, last; };

// Memory from the start of a cache line on; much of it in pages of 2 MB, where Linux gives them when asked: a product that
// passes over many pages of 4 KB waits for their addresses.
class Room {
    enum { LARGE = 2 << 20 };
    void* data = nullptr;
    size_t size = 0;

public:
    void* of(size_t bytes) {  // what was in it is lost where it grows
        if (bytes <= size) return data;
        const size_t unit = bytes < LARGE / 2 ? 64 : size_t(LARGE);
        free(data);
        size = (bytes + unit - 1) / unit * unit;
        data = aligned_alloc(unit, size);
        if (!data) throw std::bad_alloc();
#ifdef __linux__
        if (unit == LARGE) madvise(data, size, MADV_HUGEPAGE);
#endif
        return data;
    }
    ~Room() { free(data); }
};

// Scratch of one thread that only grows. Its content is lost with the next call for the same Tag. A vector that lies in two
// cache lines would cost two loads.
template <class Tag, class T> static T* scratch(size_t count) {
    static thread_local Room room;
    return (T*)room.of(count * sizeof(T));
}

// The part of 0 .. count that falls to one of `threads`, in whole blocks.
static inline Range share(size_t count, size_t block, int thread, int threads) {
    size_t blocks = (count + block - 1) / block;
    size_t first = blocks * thread / threads * block, last = blocks * (thread + 1) / threads * block;
    return {first < count ? first : count, last < count ? last : count};
}

template <int R, int M> static inline void sum_all(const vec (&total)[R][M], float (&out)[R][M]) {
    constexpr int all = R * M, fours = all / 4 * 4;
    const vec* from = &total[0][0];
    UNROLL for (int j = 0; j < fours; j += 4) sum_four(from + j, &out[0][0] + j);
    UNROLL for (int j = fours; j < all; j++) (&out[0][0])[j] = sum(from[j]);
}

// One sum after another waits for the sum before it: with few of them, each is made in CHAINS parts. Measured: with four of
// them, or eight, gcc puts their loads together, and then, depending on the code around, memory gives a fifth less.
template <int R, int M> struct Chains { enum { COUNT = R * M < 3 ? 2 : 1 }; };
template <int C, int R, int M> static inline void join(vec (&total)[C][R][M]) {
    UNROLL for (int c = 1; c < C; c++)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int i = 0; i < M; i++) total[0][r][i] = add(total[0][r][i], total[c][r][i]);
}

// out[r][i] = sum over k of w[r][k] * x[i][k] for R rows of weights and M rows of x.
// FETCHED * k elements from `next` on are fetched meanwhile, in the order of memory: R streams at once is what neither the
// hardware's own prefetching nor the memory is good at.
template <int R, int M, int FETCHED, class T> struct Dots {
    static inline void run(const T* w, size_t k, const float* x, size_t stride, const T* next, float (&out)[R][M]) {
        constexpr int C = Chains<R, M>::COUNT;
        vec total[C][R][M];
        UNROLL for (int c = 0; c < C; c++)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int i = 0; i < M; i++) total[c][r][i] = fill(0.0f);
        size_t j = 0;
        for (; j + C * W <= k; j += C * W)
            UNROLL for (int c = 0; c < C; c++) step(w, k, x, stride, next, j + c * W, total[c]);
        for (; C > 1 && j + W <= k; j += W) step(w, k, x, stride, next, j, total[0]);
        if (j < k)
            UNROLL for (int r = 0; r < R; r++) {
                vec b = load_part(w + r * k + j, k - j);
                UNROLL for (int i = 0; i < M; i++)
                    total[0][r][i] = fma(load_part(x + i * stride + j, k - j), b, total[0][r][i]);
            }
        join(total);
        sum_all(total[0], out);
    }
    static inline __attribute__((always_inline)) void step(const T* w, size_t k, const float* x, size_t stride,
                                                           const T* next, size_t j, vec (&total)[R][M]) {
        vec a[M];
        UNROLL for (int i = 0; i < M; i++) a[i] = load(x + i * stride + j);
        UNROLL for (int f = 0; f < FETCHED; f++) prefetch(next + j * FETCHED + f * W);
        UNROLL for (int r = 0; r < R; r++) {
            vec b = load(w + r * k + j);
            UNROLL for (int i = 0; i < M; i++) total[r][i] = fma(a[i], b, total[r][i]);
        }
    }
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define GLM_BF16_DOTS
// Pairs of bf16 are multiplied exactly and added in FP32 by one instruction: no conversion of either side.
template <int R, int M, int FETCHED> static inline __attribute__((always_inline)) void bf16_step(
    const bf16* w, size_t k, const bf16* x, size_t stride, const bf16* next, size_t j, vec (&total)[R][M]) {
    __m512bh a[M];
    UNROLL for (int i = 0; i < M; i++) a[i] = (__m512bh)_mm512_loadu_si512(x + i * stride + j);
    UNROLL for (int f = 0; f < FETCHED; f++) prefetch(next + j * FETCHED + f * 32);
    UNROLL for (int r = 0; r < R; r++) {
        __m512bh b = (__m512bh)_mm512_loadu_si512(w + r * k + j);
        UNROLL for (int i = 0; i < M; i++) total[r][i] = _mm512_dpbf16_ps(total[r][i], a[i], b);
    }
}
template <int R, int M, int FETCHED> static inline void bf16_dots(const bf16* w, size_t k, const bf16* x, size_t stride,
                                                                  const bf16* next, float (&out)[R][M]) {
    constexpr int C = Chains<R, M>::COUNT;
    vec total[C][R][M];
    UNROLL for (int c = 0; c < C; c++)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int i = 0; i < M; i++) total[c][r][i] = fill(0.0f);
    size_t j = 0;
    for (; j + C * 32 <= k; j += C * 32)
        UNROLL for (int c = 0; c < C; c++) bf16_step<R, M, FETCHED>(w, k, x, stride, next, j + c * 32, total[c]);
    for (; C > 1 && j + 32 <= k; j += 32) bf16_step<R, M, FETCHED>(w, k, x, stride, next, j, total[0]);
    if (j < k) {
        __mmask32 mask = (1u << (k - j)) - 1;
        UNROLL for (int r = 0; r < R; r++) {
            __m512bh b = (__m512bh)_mm512_maskz_loadu_epi16(mask, w + r * k + j);
            UNROLL for (int i = 0; i < M; i++) {
                __m512bh a = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + i * stride + j);
                total[0][r][i] = _mm512_dpbf16_ps(total[0][r][i], a, b);
            }
        }
    }
    join(total);
    sum_all(total[0], out);
}
template <int R, int M, int FETCHED> struct Dots<R, M, FETCHED, bf16> {
    static inline void run(const bf16* w, size_t k, const bf16* x, size_t stride, const bf16* next, float (&out)[R][M]) {
        bf16_dots<R, M, FETCHED>(w, k, x, stride, next, out);
    }
};
#endif

// out is of the weights' type, or float where the sums are wanted as they are.
template <int R, int M, int FETCHED, class T, class X, class O>
static inline void block(const T* w, size_t k, const X* x, const T* bias, O* out, size_t n, size_t row, const T* next) {
    float products[R][M];
    Dots<R, M, FETCHED, T>::run(w + row * k, k, x, k, next, products);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < M; i++)
            store_float(out + i * n + row + r, products[r][i] + (bias ? to_float(bias[row + r]) : 0.0f));
}

// R rows of weights against all rows of x, four at a time: those behind the first four find the weights in the nearest cache.
// Each block of them fetches a part of the R rows that lie `ahead` elements further on, so that the memory never rests.
template <int R, int FETCHED, class T, class X, class O>
static inline void all_rows(const T* w, size_t k, const X* x, size_t m, const T* bias, O* out, size_t n, size_t row,
                            size_t ahead) {
    const T *next = w + row * k + ahead, *end = next + R * k;
    size_t i = 0;
    for (; i + 4 <= m; i += 4) {
        block<R, 4, FETCHED>(w, k, x + i * k, bias, out + i * n, n, row, next);
        next = next + FETCHED * k < end ? next + FETCHED * k : w + row * k;  // what is there costs nothing
    }
    switch (m - i) {
        case 3: block<R, 3, FETCHED>(w, k, x + i * k, bias, out + i * n, n, row, next); break;
        case 2: block<R, 2, FETCHED>(w, k, x + i * k, bias, out + i * n, n, row, next); break;
        case 1: block<R, 1, FETCHED>(w, k, x + i * k, bias, out + i * n, n, row, next); break;
    }
}

template <class T, class X, class O>
static void linear_rows(const X* x, size_t m, size_t k, const T* w, const T* bias, O* out, size_t n, Range rows) {
    size_t row = rows.first;
    const auto pass = [&](auto some, auto fetched, size_t ahead) {
        for (; row + some <= rows.last; row += some) all_rows<some, fetched>(w, k, x, m, bias, out, n, row, ahead);
    };
    // Measured: one or two rows of x leave the processor idle, and a single stream through the weights suits the memory
    // best. From three on the loads of x count, so that two rows of weights share them; or four, when x overflows the
    // nearest cache or the arithmetic is the limit anyway.
    const std::integral_constant<int, 1> one;
    const std::integral_constant<int, 2> two;
    const std::integral_constant<int, 4> four;
    const size_t near = AHEAD_OF_TWO / sizeof(T);
    if (m > 8 || (m > 4 && m * k * sizeof(X) > NEAREST_CACHE)) pass(four, two, 4 * k);
    else if (m > 4) pass(two, one, near);
    else if (m > 2) pass(two, two, near);
    pass(one, one, (sizeof(X) == sizeof(T) ? AHEAD : ahead_of_unpacking()) / sizeof(T));
}

// x (m, k) as the products above take it: in FP32, or in bf16 where that is multiplied as it is. One or two rows lie 1 KB
// further into their page than the weights. Measured: rows of whole pages come from memory at 28 GB/s where x is at the same
// place in its pages (FP32: or half a KB around it), and at 33 where it is not. It is the calling thread's, or x itself.
template <class T> struct OperandOf { typedef float type; };
#ifdef GLM_BF16_DOTS
template <> struct OperandOf<bf16> { typedef bf16 type; };
#endif
template <class T>
static const typename OperandOf<T>::type* operand(const T* x, size_t m, size_t k, const void* weights) {
    typedef typename OperandOf<T>::type X;
    enum { PAGE = 4096, BESIDE = 1024, LINE = 64 };
    const size_t count = m * k;
    if constexpr (sizeof(X) == sizeof(T))
        if (m > 2) return x;
    X* to = scratch<Range, X>(count + PAGE / sizeof(X));
    to += ((size_t)weights + BESIDE - (size_t)to) % PAGE / LINE * LINE / sizeof(X);
    if constexpr (sizeof(X) == sizeof(T)) {
        std::memcpy(to, x, count * sizeof(T));
    } else {
        size_t i = 0;
        for (; i + W <= count; i += W) store(to + i, load(x + i));
        for (; i < count; i++) to[i] = to_float(x[i]);
    }
    return to;
}
