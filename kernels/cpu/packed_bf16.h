// x in bf16 with packed weights, on processors with instructions for pairs of 16 bits.
#pragma once
#include "packed.h"

#ifdef GLM_BF16_DOTS
// A weight becomes its bf16 value by one look-up for 32 of them, since the look-up sees only the lowest bits of its index.
// All values are exact.
struct Int4InBf16 {
    enum { BITS = 4, SPAN = 1, REMAINDERS = 0 };
    typedef Order<4> O;
    typedef bf16 X;
    typedef vec Sum;
    static size_t padded(size_t k) { return O::padded(k); }
    static size_t widest(Scaling, size_t, size_t rows) { return rows; }

    // Column 4 * j + O::column(p) of a unit goes to place j of vector p: nibble p of 16-bit word j.
    static void arrange(const bf16* x, size_t k, bf16* to) {
        uint16_t first[4][32];
        for (int p = 0; p < 4; p++)
            for (int j = 0; j < 32; j++) first[p][j] = 4 * (j % 16) + O::column(p);
        for (size_t j = 0; j < k; j += O::UNIT, to += O::UNIT) {
            const bf16* from = x + j;
            bf16 tail[O::UNIT];
            if (k - j < O::UNIT) {
                std::memset(tail, 0, sizeof(tail));
                std::memcpy(tail, from, (k - j) * sizeof(bf16));
                from = tail;
            }
            __m512i a[4];
            UNROLL for (int i = 0; i < 4; i++) a[i] = _mm512_loadu_si512(from + 32 * i);
            UNROLL for (int p = 0; p < 4; p++) {
                __m512i index = _mm512_loadu_si512(first[p]);
                __m512i low = _mm512_permutex2var_epi16(a[0], index, a[1]), high = _mm512_permutex2var_epi16(a[2], index, a[3]);
                _mm512_storeu_si512(to + 32 * p, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
            }
        }
    }
    static inline __m512i values() {  // bf16 of 0 ... 7, -8 ... -1, twice
        const __m256i once = _mm256_setr_epi16(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, (short)0xc100,
                                               (short)0xc0e0, (short)0xc0c0, (short)0xc0a0, (short)0xc080, (short)0xc040,
                                               (short)0xc000, (short)0xbf80);
        return _mm512_broadcast_i64x4(once);
    }
    template <int R, int M>
    static ALWAYS void add(const words (&a)[R], const bf16* x, size_t stride, vec (&sums)[R][M]) {
        __m512bh b[R][4];
        UNROLL for (int r = 0; r < R; r++) {
            b[r][0] = (__m512bh)_mm512_permutexvar_epi16(a[r], values());
            b[r][1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(a[r], 4), values());
            b[r][2] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(a[r], 8), values());
            b[r][3] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(a[r], 12), values());
        }
        UNROLL for (int i = 0; i < M; i++)
            UNROLL for (int p = 0; p < 4; p++) {
                __m512bh value = (__m512bh)_mm512_loadu_si512(x + i * stride + 32 * p);
                UNROLL for (int r = 0; r < R; r++) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], value, b[r][p]);
            }
    }
    static ALWAYS vec value(vec sum, const bf16*, size_t, size_t) { return sum; }
};

#ifdef __AVX512VNNI__
// INT8 weights are multiplied as integers: of x the 256 values of each SPAN become 16-bit integers times a power of two,
// the largest having 15 bits, so that 32 bits hold their sums. What has 8 bits in bf16 and is larger than 1/128 of the
// largest stays exact; the rest errs by 2^-16 of the largest. Where the largest is an outlier, more than OUTLIER times the
// root mean square, the remainders follow as a second set of integers, 15 bits further down. A span with an infinity or a
// NaN gives NaN.
struct Int8InWords {
    enum { BITS = 8, SPAN = 4, REMAINDERS = 1 };
    typedef Order<8> O;
    typedef int16_t X;
    typedef __m512i Sum;
    static size_t units_of(size_t k) { return O::padded(k) / O::UNIT; }
    // A row holds the first integers of all units, the remainders of all units, then for each span the factors of both as
    // floats, the remainders' being 0 where there are none, and whether there are any.
    static size_t padded(size_t k) {
        const size_t units = units_of(k);
        return (2 * units * O::UNIT + 4 * ((units + SPAN - 1) / SPAN) + 2 + 31) / 32 * 32;
    }
    // Without groups two rows of x after two cost no more arithmetic than four, and their integers fit into the nearest
    // cache.
    static size_t widest(Scaling scaling, size_t k, size_t rows) {
        return scaling == BY_ROW && rows > 2 && rows * k * sizeof(X) > NEAREST_CACHE ? 2 : rows;
    }
    static constexpr float OUTLIER = 8.0f;

    // 64 integers in 4 vectors -> first those of the even columns, then those of the odd ones, as bytes lie in 16 bits
    static void store_words(const __m512i (&a)[4], int16_t* to) {
        __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a[0])), _mm512_cvtepi32_epi16(a[1]), 1);
        __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a[2])), _mm512_cvtepi32_epi16(a[3]), 1);
        uint16_t first[2][32];
        for (int p = 0; p < 2; p++)
            for (int j = 0; j < 32; j++) first[p][j] = 2 * j + p;
        for (int p = 0; p < 2; p++)
            _mm512_storeu_si512(to + 32 * p, _mm512_permutex2var_epi16(low, _mm512_loadu_si512(first[p]), high));
    }
    static void arrange(const bf16* x, size_t k, int16_t* to) {
        const size_t units = units_of(k);
        float* factors = (float*)(to + 2 * units * O::UNIT);
        bool any = false;
        for (size_t first = 0; first < units; first += SPAN, factors += 2) {
            const size_t count = units - first < SPAN ? units - first : size_t(SPAN), columns = k - first * O::UNIT;
            bf16 from[SPAN * O::UNIT] = {};
            std::memcpy(from, x + first * O::UNIT, (columns < SPAN * O::UNIT ? columns : SPAN * O::UNIT) * sizeof(bf16));
            vec squares = fill(0.0f);
            __m512i top = _mm512_setzero_si512();
            for (int j = 0; j < SPAN * O::UNIT; j += W) {
                vec value = load(from + j);
                squares = fma(value, value, squares);
                top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff)));
            }
            const float largest = from_bits(_mm512_reduce_max_epu32(top));  // NaN and infinity are the largest patterns
            const uint32_t exponent = to_bits(largest) >> 23;
            const uint32_t clamped = exponent < 60 ? 60 : exponent > 250 ? 250 : exponent;
            const float step = from_bits((clamped - 14) << 23), inverse = from_bits((254 + 14 - clamped) << 23);
            for (size_t unit = 0; unit < count; unit++) {
                __m512i whole[4], rest[4];
                for (int j = 0; j < 4; j++) {
                    vec value = load(from + unit * O::UNIT + W * j);
                    whole[j] = _mm512_cvtps_epi32(mul(value, fill(inverse)));
                    vec remainder = fma(_mm512_cvtepi32_ps(whole[j]), fill(-step), value);
                    rest[j] = _mm512_cvtps_epi32(mul(remainder, fill(inverse * 32768.0f)));
                }
                store_words(whole, to + (first + unit) * O::UNIT);
                store_words(rest, to + (units + first + unit) * O::UNIT);
            }
            factors[0] = exponent > 250 ? from_bits(0x7fc00000) : step;
            const bool outlier = largest * largest * (SPAN * O::UNIT) > OUTLIER * OUTLIER * sum(squares);
            factors[1] = outlier && exponent <= 250 ? step / 32768.0f : 0.0f;
            any |= factors[1] != 0.0f;
        }
        factors[0] = any;
    }
    template <int R, int M>
    static ALWAYS void add(const words (&a)[R], const int16_t* x, size_t stride, __m512i (&sums)[R][M]) {
        UNROLL for (int p = 0; p < 2; p++) {
            __m512i b[R];
            UNROLL for (int r = 0; r < R; r++) b[r] = _mm512_srai_epi16(p ? a[r] : _mm512_slli_epi16(a[r], 8), 8);
            UNROLL for (int i = 0; i < M; i++) {
                __m512i value = _mm512_loadu_si512(x + i * stride + 32 * p);
                UNROLL for (int r = 0; r < R; r++) sums[r][i] = _mm512_dpwssd_epi32(sums[r][i], value, b[r]);
            }
        }
    }
    static ALWAYS const float* factors(const int16_t* x, size_t unit, size_t units) {
        return (const float*)(x + 2 * units * O::UNIT) + unit / SPAN * 2;
    }
    static ALWAYS vec value(__m512i sum, const int16_t* x, size_t unit, size_t units) {
        return mul(_mm512_cvtepi32_ps(sum), fill(factors(x, unit, units)[0]));
    }
    static ALWAYS bool has_remainders(const int16_t* x, size_t stride, size_t units, int rows) {
        for (int i = 0; i < rows; i++)
            if (factors(x + i * stride, units + SPAN - 1, units)[0] != 0.0f) return true;
        return false;
    }
    static vec remainder(words a, const int16_t* x, size_t unit, size_t units) {
        const float factor = factors(x, unit, units)[1];
        if (factor == 0.0f) return fill(0.0f);
        __m512i sum[1][1] = {_mm512_setzero_si512()};
        const words one[1] = {a};
        add<1, 1>(one, x + (units + unit) * O::UNIT, 0, sum);
        return mul(_mm512_cvtepi32_ps(sum[0][0]), fill(factor));
    }
};
#endif
#endif
