// x in bf16 with packed INT4 weights, on processors that multiply pairs of bf16: a weight becomes its bf16 value by one
// look-up for 32 of them, since the look-up sees only the lowest bits of its index. All values are exact.
#pragma once
#include "packed.h"

#ifdef GLM_BF16_DOTS
struct Int4InBf16 {
    enum { BITS = 4 };
    typedef Order<4> O;
    typedef bf16 X;
    static size_t padded(size_t k) { return O::padded(k); }

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
    template <int R, int M, int P>
    static ALWAYS void terms(const words (&a)[R], const bf16* x, size_t stride, vec (&sums)[R][M]) {
        __m512bh b[R];
        UNROLL for (int r = 0; r < R; r++)
            b[r] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(a[r], 4 * P), values());
        UNROLL for (int i = 0; i < M; i++) {
            __m512bh value = (__m512bh)_mm512_loadu_si512(x + i * stride + P * 32);
            UNROLL for (int r = 0; r < R; r++)
                sums[r][i] = _mm512_dpbf16_ps(P == 0 ? _mm512_setzero_ps() : sums[r][i], value, b[r]);
        }
        if constexpr (P < 3) terms<R, M, P + 1>(a, x, stride, sums);
    }
    template <int R, int M>
    static ALWAYS void unit(const words (&a)[R], const bf16* x, size_t stride, vec (&sums)[R][M]) {
        terms<R, M, 0>(a, x, stride, sums);
    }
};
#endif
