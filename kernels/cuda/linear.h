// What all kernels of linear.cu are given, and how a sum becomes a result: its scale, bias, activation and residual.
#pragma once

#include "unpack.h"

// What stands at the end of a product: nothing, or one of kernels.layer.Activation, whose numbers are one less. Gated
// ones take two rows of the weight for one column of the result: row i and row n / 2 + i.
enum Ending : u32 { PLAIN, GEGLU, GELU, GELU_TANH, SWIGLU };

struct Arguments {  // kernels/cuda/linear.py fills it
    const void* x;         // (m, k) in the module's 16-bit type
    const void* weight;    // packed (n, k * bits / 8)
    const void* scale;     // (n) or (n, groups)
    const void* bias;      // (n) in x's type, or null
    const void* residual;  // (m, results) in x's type, or null: what `alpha` times is added
    float* partial;        // (splits, m, n): sums over parts of the columns, before anything else; or null
    void* out;             // (m, results) in x's type; the dequantising kernels: (n, k)
    u32 m, n, k;
    u32 groups;        // 0: one scale a row
    u32 group_size;    // columns; k when groups is 0
    u32 group_magic;   // see divide
    u32 scale_kind;    // Kind
    u32 ending;        // Ending
    u32 splits;        // parts of the columns, each of other blocks: of a wide kernel
    float alpha;

    INLINE bool is_gated() const { return ending == GEGLU || ending == SWIGLU; }
    INLINE u32 results() const { return is_gated() ? n / 2 : n; }
};

INLINE u32 load_scale(const Arguments& a, u32 index) {  // as stored: what waits for it is scale_value
    if (a.scale_kind == FLOAT32) return load_u32((const u32*)a.scale + index);
    return load_u16((const u16*)a.scale + index);
}

INLINE float scale_value(const Arguments& a, u32 stored) {
    if (a.scale_kind == FLOAT16) return from_half(stored);
    return as_float(a.scale_kind == FLOAT32 ? stored : stored << 16);
}

INLINE float gelu(float x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678f)); }

INLINE float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
}

INLINE float silu(float x) { return x / (1.0f + power_of_two(-1.44269504f * x)); }

// A sum of products with a row of the weight, scaled if that has not been done, and the row's bias.
template <int KIND>
INLINE float with_bias(const Arguments& a, bool scaled_by_row, float sum, u32 row) {
    if (scaled_by_row) sum *= scale_value(a, load_scale(a, row));
    return a.bias ? sum + load_element<KIND>(a.bias, row) : sum;
}

// The result's column `at` of row x_row, of the sums with one row of the weight, or with both of a gated ending.
template <int KIND>
INLINE void store_result(const Arguments& a, bool scaled_by_row, float sum, float gated_sum, u32 at, u32 x_row) {
    float value = with_bias<KIND>(a, scaled_by_row, sum, at);
    if (a.is_gated()) {
        const float other = with_bias<KIND>(a, scaled_by_row, gated_sum, a.results() + at);
        value = a.ending == GEGLU ? value * gelu(other) : silu(value) * other;
    } else if (a.ending != PLAIN) {
        value = a.ending == GELU ? gelu(value) : gelu_tanh(value);
    }
    const u64 place = (u64)x_row * a.results() + at;
    if (a.residual) value += a.alpha * read_element<KIND>(a.residual, place);
    store_element<KIND>(a.out, place, value);
}
