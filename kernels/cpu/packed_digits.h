// x as packed_words.h has it, in two digits of 8 bits: an instruction multiplies fours of bytes and adds the four products,
// and INT4 becomes bytes in three instructions where it takes seven to become words. The same integers, the same sums.
// INT8 gains nothing; and with 16 registers, that is with 256 bits, groups lose what rows gain.
#pragma once
#include "packed_words.h"

#ifdef GLM_FOURS
// A unit of x: for the low and for the high halves of bytes in turn, the high digits, then the low ones, in the weights' order.
template <int BITS_> struct InDigits : InWords<BITS_> {
    static_assert(BITS_ == 4, "halves of bytes");
    typedef InWords<BITS_> Words;
    typedef typename Words::O O;
    struct Sum { words high, low; };

    template <class T> static void arrange(const T* x, const Packed& w, int16_t* to) {
        const size_t units = O::padded(w.k) / O::UNIT;
        Words::template arrange<T, true>(x, w, to);
        for (int set = 0; set < Words::SETS && Words::factor(to, units) != 0.0f; set++, to += Words::set_size(units))
            for (size_t unit = 0; unit < units; unit++) in_digits(to + unit * O::UNIT);
    }
    static void in_digits(int16_t* unit) {
        words parts[4];
        UNROLL for (int p = 0; p < 4; p++) parts[p] = load_words((const uint8_t*)(unit + p * 2 * W));
        UNROLL for (int p = 0; p < 2; p++) {  // the halves p and p + 2 of a 16-bit word are the same ones of its bytes
            store_words(unit + p * 4 * W, high_digits(parts[p], parts[p + 2]));
            store_words(unit + p * 4 * W + 2 * W, low_digits(parts[p], parts[p + 2]));
        }
    }

    static ALWAYS Sum start(const int16_t* set, size_t units, size_t span) { return {no_words(), Words::start(set, units, span)}; }
    template <int R, int M, int P = 0>
    static ALWAYS void add(const words (&a)[R], const int16_t* x, size_t stride, Sum (&sums)[R][M]) {
        words b[R];
        UNROLL for (int r = 0; r < R; r++) b[r] = positive_half<P>(a[r]);
        UNROLL for (int i = 0; i < M; i++) {
            const uint8_t* digits = (const uint8_t*)(x + i * stride + P * 4 * W);
            const words high = load_words(digits), low = load_words(digits + 4 * W);
            UNROLL for (int r = 0; r < R; r++) {
                sums[r][i].high = add_fours(sums[r][i].high, b[r], high);
                sums[r][i].low = add_fours(sums[r][i].low, b[r], low);
            }
        }
        if constexpr (P == 0) add<R, M, 1>(a, x, stride, sums);
    }
    static ALWAYS words loaded(words a) { return a; }
    // The sums of the high digits of one unit have 15 bits.
    template <bool ONE_UNIT> static ALWAYS vec value(Sum sum) {
        return floats_of(ONE_UNIT ? add_pairs(sum.low, sum.high, low_words(256)) : add_shifted<8>(sum.low, sum.high));
    }
};
#endif
