// Rows of x as integers of 16 bits times one power of two, the largest having 15 bits: rounding errs by 2^-15 of the largest at
// most, and values of bf16 above 1/128 of it stay exact. Where the largest is an outlier, many times the mean magnitude, the
// remainders follow as a second set of integers, 15 bits further down, whose products are added. An infinity or a NaN makes NaN
// of the factor.
#pragma once
#include "words.h"

#ifdef GLM_PAIRS
// With the largest at 8 times the mean, no product errs by more than 8 * 2^-15 |x| |w| (kernels/vocabulary.py counts on it for
// FP32); with 32 times, by 5.6e-4 of the mean in each column, root mean square, where bf16's own rounding has cost 1.7e-3 of a
// value. A mean square would sooner see nothing but a few large columns, whose weights may be zeros.
static constexpr float outlier_of(const bf16*) { return 32.0f; }
template <class T> static constexpr float outlier_of(const T*) { return 8.0f; }

static inline vec magnitude(vec value) { return larger(value, sub(fill(0.0f), value)); }

struct Magnitudes {
    float largest, step, inverse;  // step: of the integers, a power of two; 1 / step
    bool is_finite;
    // margin: how far below a power of two all integers become half as large, in the last of a float's 23 bits.
    template <class T> static Magnitudes of(const T* x, size_t count, uint32_t margin = 0) {
        vec top = fill(0.0f), check = fill(0.0f);
        const auto look = [&](vec value) {
            top = larger(top, magnitude(value));
            check = fma(value, fill(0.0f), check);  // NaN from an infinity, too
        };
        size_t j = 0;
        for (; j + W <= count; j += W) look(load(x + j));
        if (j < count) look(load_part(x + j, count - j));
        const bool is_finite = ::sum(check) == 0.0f;
        const float most = is_finite ? ::largest(top) : 0.0f;
        const uint32_t exponent = (to_bits(most) + margin) >> 23, clamped = exponent < 30 ? 30 : exponent;
        return {most, from_bits((clamped - 14) << 23), from_bits((254 + 14 - clamped) << 23), is_finite};
    }
    float factor() const { return is_finite ? step : from_bits(0x7fc00000); }
    float rest_factor() const { return step / 32768.0f; }
    template <class T> bool is_outlier(const T* x, size_t count, float sum) const {  // sum: of the magnitudes of x / step
        return is_finite && largest * inverse * count > outlier_of(x) * sum;
    }
};
// What the integers leave of a value / step, in the unit of the second set.
static inline vec rest_of(vec value) { return mul(sub(value, smaller(round_even(value), fill(32767.0f))), fill(32768.0f)); }
#endif
