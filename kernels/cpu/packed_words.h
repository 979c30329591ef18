// x as integers of 16 bits with packed weights: an instruction multiplies pairs of them and adds the two products, so that
// weights need no conversion, only masks. It takes a third of the instructions of FP32 products.
#pragma once
#include "integers.h"
#include "packed.h"

#ifdef GLM_PAIRS
// Weights are made positive, by adding BIAS; sums of a span of units start from what that adds: -BIAS times x's sum.
template <int BITS_> struct InWords {
    enum { BITS = BITS_, PARTS = 16 / BITS, BIAS = 1 << (BITS - 1) };
    enum { SPAN = BITS == 4 ? 512 : 64 };  // units whose sums have 30 bits
    enum { SETS = 2 };
    typedef Order<BITS> O;
    typedef int16_t X;
    typedef words Sum;
    // A set: the integers, the starts of all spans (at most as many as units), the factor; from a cache line on.
    static size_t set_size(size_t units) { return (units * (O::UNIT + 2 * W) + 2 + 31) / 32 * 32; }
    static size_t padded(size_t k) { return SETS * set_size(O::padded(k) / O::UNIT); }
    static const words* starts(const int16_t* set, size_t units) { return (const words*)(set + units * O::UNIT); }
    static float& factor(int16_t* set, size_t units) { return *(float*)(set + units * (O::UNIT + 2 * W)); }
    static float factor(const int16_t* set, size_t units) { return factor((int16_t*)set, units); }

    // Rows of weights that share the loads of x, and whose sums over lanes are made together, as far as registers reach.
    // But long ones are read one after the other: as a single stream they come from memory a quarter faster than as four (Intel);
    // on Zen 4 INT4, which is bound by its unpacking there, comes a tenth faster as two.
    static constexpr int together(int m) {
        if (m < 3 && BITS == 8) return 4;
        return m == 1 || W == 16 ? 2 : 1;
    }
    static bool are_single(size_t row_bytes, int m) { return m < 3 && row_bytes >= 512 && !(BITS == 4 && is_amd()); }
    // Rows of x at a time. Of INT8 two after two cost no more arithmetic than four, and their integers fit into the nearest
    // cache; of INT4 in groups the sums of four find no room in 16 registers, beside what is unpacked and scaled.
    static size_t widest(Scaling scaling, size_t k, size_t rows) {
        const bool overflow = BITS == 8 ? scaling == BY_ROW && rows * k * sizeof(X) > NEAREST_CACHE
                                        : scaling != BY_ROW && W == 8 && rows > 3;
        return rows > 2 && overflow ? 2 : rows;
    }

    // IN_DIGITS: integers are at most 32639, so that both digits of packed_digits.h have 8 bits with a sign: where the largest
    // would be 32576 (2^15 - 3 * 2^6) or more, all are half as large.
    template <class T, bool IN_DIGITS = false> static void arrange(const T* x, const Packed& w, int16_t* to) {
        const size_t units = O::padded(w.k) / O::UNIT, span = span_of<InWords>(w);
        const Magnitudes found = Magnitudes::of(x, w.k, IN_DIGITS ? 3 << 15 : 0);
        const float sum = found.is_finite ? store_set<false>(x, w.k, span, found.inverse, to) : 0.0f;
        factor(to, units) = found.factor();
        const bool outlier = found.is_outlier(x, w.k, sum);
        int16_t* rest = to + set_size(units);
        factor(rest, units) = outlier ? found.rest_factor() : 0.0f;
        if (outlier) store_set<true>(x, w.k, span, found.inverse, rest);
    }
    // Returns the sum of magnitudes of x * inverse, of which the integers or their remainders are stored.
    template <bool REST, class T>
    static float store_set(const T* x, size_t k, size_t span, float inverse, int16_t* to) {
        const size_t units = O::padded(k) / O::UNIT;
        words* start = (words*)starts(to, units);
        words added = no_words();
        vec magnitudes = fill(0.0f);
        for (size_t unit = 0; unit < units; unit++) {
            float tail[O::UNIT] = {0};
            const size_t first = unit * O::UNIT, count = k - first < O::UNIT ? k - first : size_t(O::UNIT);
            if (count < O::UNIT) for (size_t j = 0; j < count; j++) tail[j] = to_float(x[first + j]);
            vec values[O::LANE];
            UNROLL for (int j = 0; j < O::LANE; j++) {
                vec value = mul(count < O::UNIT ? load(tail + j * W) : load(x + first + j * W), fill(inverse));
                magnitudes = ::add(magnitudes, magnitude(value));
                values[j] = REST ? rest_of(value) : value;
            }
            words parts[PARTS];
            in_parts(values, parts);
            UNROLL for (int p = 0; p < PARTS; p++) {
                store_words(to + first + p * 2 * W, parts[p]);
                added = add_pairs(added, parts[p], same_pairs(1));
            }
            if ((unit + 1) % span == 0 || unit + 1 == units) {
                store_words((int16_t*)(start + unit / span), shifted_negative<BITS - 1>(added));
                added = no_words();
            }
        }
        return sum(magnitudes);
    }
    // Place j of part p is column PARTS * j + O::column(p) of the unit: what meets bits BITS * p of 16-bit word j.
    static void in_parts(const vec (&values)[8], words (&parts)[4]) {
        words even[2], odd[2];
        split(rounded(values[0], values[1]), rounded(values[2], values[3]), even[0], odd[0]);
        split(rounded(values[4], values[5]), rounded(values[6], values[7]), even[1], odd[1]);
        split(even[0], even[1], parts[1], parts[3]);
        split(odd[0], odd[1], parts[0], parts[2]);
    }
    static void in_parts(const vec (&values)[4], words (&parts)[2]) {
        split(rounded(values[0], values[1]), rounded(values[2], values[3]), parts[0], parts[1]);
    }

    static ALWAYS words start(const int16_t* set, size_t units, size_t span) { return starts(set, units)[span]; }
    template <int R, int M, int P = 0>
    static ALWAYS void add(const words (&a)[R], const int16_t* x, size_t stride, words (&sums)[R][M]) {
        words b[R];
        UNROLL for (int r = 0; r < R; r++) b[r] = field<BITS, P>(a[r]);
        UNROLL for (int i = 0; i < M; i++) {
            words value = load_words((const uint8_t*)(x + i * stride + P * 2 * W));
            UNROLL for (int r = 0; r < R; r++) sums[r][i] = add_pairs(sums[r][i], value, b[r]);
        }
        if constexpr (P + 1 < PARTS) add<R, M, P + 1>(a, x, stride, sums);
    }
    static ALWAYS words loaded(words a) { return flipped(a, BITS == 4 ? 0x88888888 : 0x80808080); }
    template <bool> static ALWAYS vec value(words sum) { return floats_of(sum); }
};
#endif
