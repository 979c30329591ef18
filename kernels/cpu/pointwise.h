// The light operations between the products: norms, residual addition, activations. Statistics in FP32.
#pragma once
#include "linear.h"

// out = alpha * residual + update over one row; residual null: out = update.
template <class T> static inline vec mixed(const T* residual, const T* update, float alpha, size_t j) {
    return residual ? fma(load(residual + j), fill(alpha), load(update + j)) : load(update + j);
}
template <class T>
static inline vec mixed_part(const T* residual, const T* update, float alpha, size_t j, size_t count) {
    vec u = load_part(update + j, count);
    return residual ? fma(load_part(residual + j, count), fill(alpha), u) : u;
}

// Rows of the norm of alpha * residual + update, h wide; two passes over a row that stays in the nearest cache. Without
// a bias it is the RMS norm. sums: where alpha * residual + update goes, or null; it may be `residual`, as may `out`.
template <class T>
static void norm_rows(const T* residual, const T* update, float alpha, const T* weight, const T* bias, float epsilon,
                      T* sums, T* out, size_t h, Range rows) {
    static thread_local std::vector<float> row_floats;
    if (row_floats.size() < h + W) row_floats.resize(h + W);
    float* row = row_floats.data();
    for (size_t i = rows.first; i < rows.last; i++) {
        const T* u = update + i * h;
        const T* r = residual ? residual + i * h : nullptr;
        T* s = sums ? sums + i * h : nullptr;
        size_t j = 0, whole = h / W * W;
        vec total = fill(0.0f);
        for (; j < whole; j += W) {
            vec a = mixed(r, u, alpha, j);
            if (s) store(s + j, a);
            store(row + j, a);
            total = add(total, a);
        }
        if (j < h) {
            vec a = mixed_part(r, u, alpha, j, h - j);
            if (s) store_part(s + j, a, h - j);
            store(row + j, a);
            total = add(total, a);
        }
        float mean = bias ? sum(total) / h : 0.0f;
        vec centre = fill(mean), squares = fill(0.0f);
        for (j = 0; j < whole; j += W) {
            vec a = sub(load(row + j), centre);
            store(row + j, a);
            squares = fma(a, a, squares);
        }
        float variance = sum(squares);
        for (; j < h; j++) {
            row[j] -= mean;
            variance += row[j] * row[j];
        }
        vec scale = fill(1.0f / std::sqrt(variance / h + epsilon));
        T* o = out + i * h;
        for (j = 0; j < whole; j += W)
            store(o + j, fma(mul(load(row + j), scale), load(weight + j), bias ? load(bias + j) : fill(0.0f)));
        if (j < h)
            store_part(o + j, fma(mul(load(row + j), scale), load_part(weight + j, h - j),
                                  bias ? load_part(bias + j, h - j) : fill(0.0f)), h - j);
    }
}

// This thread's part of alpha * residual + update over `count` values.
template <class T>
static void add_part(const T* residual, const T* update, float alpha, T* out, size_t count, int thread, int threads) {
    Range range = share(count, W, thread, threads);
    size_t j = range.first;
    for (; j + W <= range.last; j += W) store(out + j, mixed(residual, update, alpha, j));
    if (j < range.last)
        store_part(out + j, mixed_part(residual, update, alpha, j, range.last - j), range.last - j);
}

// Of rows of x (m, n): the largest number, and the logarithm of the sum of all exponentials.
static inline void log_sums(const float* x, size_t n, float* highest, float* sums, Range rows) {
    const size_t whole = n / (4 * W) * (4 * W);
    for (size_t row = rows.first; row < rows.last; row++) {
        const float* values = x + row * n;
        vec tops[4], totals[4];
        UNROLL for (int i = 0; i < 4; i++) tops[i] = fill(-INFINITY), totals[i] = fill(0.0f);
        for (size_t j = 0; j < whole; j += 4 * W)
            UNROLL for (int i = 0; i < 4; i++) tops[i] = larger(tops[i], load(values + j + i * W));
        float top = largest(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
        for (size_t j = whole; j < n; j++) top = values[j] > top ? values[j] : top;
        const float shift = std::isinf(top) ? 0.0f : top;  // an infinity from itself is NaN
        for (size_t j = 0; j < whole; j += 4 * W)
            UNROLL for (int i = 0; i < 4; i++)
                totals[i] = add(totals[i], exponential(sub(load(values + j + i * W), fill(shift))));
        float total = sum(add(add(totals[0], totals[1]), add(totals[2], totals[3])));
        for (size_t j = whole; j < n; j++) total += std::exp(values[j] - shift);
        highest[row] = top, sums[row] = std::log(total) + top;
    }
}

// numbers (n) of the ids 0 ... n - 1: the hash of generation/sampling.py, in the middle of one of 2^32 parts of 0 ... 1.
static inline void uniforms(uint32_t key, uint32_t second, float* numbers, Range ids) {
    const size_t block = 16;  // a fixed number, so that the compiler makes vectors of it
    for (size_t first = ids.first; first < ids.last; first += block) {
        float found[block];
        for (size_t i = 0; i < block; i++) {
            uint32_t x = uint32_t(first + i) * 0x1E3779B1u + key;
            x = (x ^ x >> 16) * 0x7FEB352Du;
            x ^= second;
            x = (x ^ x >> 15) * 0x046CA68Bu;
            x ^= x >> 16;
            found[i] = float(x) * 0x1p-32f + 0x1p-33f;
        }
        const size_t count = ids.last - first < block ? ids.last - first : block;
        std::memcpy(numbers + first, found, count * sizeof(float));
    }
}

enum Activation : size_t { GEGLU, GELU, GELU_TANH, SWIGLU };  // as kernels.layer.Activation
static inline bool is_gated(Activation activation) { return activation == GEGLU || activation == SWIGLU; }

static inline vec sigmoid(vec x) {
    return divide(fill(1.0f), add(fill(1.0f), exponential(sub(fill(0.0f), x))));
}
// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), for (1 + tanh(y)) / 2 is sigmoid(2 y)
static inline vec gelu_tanh(vec x) {
    return mul(x, sigmoid(mul(mul(x, fill(1.59576912f)), fma(mul(x, x), fill(0.044715f), fill(1.0f)))));
}

// out = function(first, second), or function(first), of rows `stride` apart, of which out's are `out_stride` apart.
template <class T, class Function>
static void each_row(const T* first, const T* second, size_t stride, size_t rows, size_t columns, T* out, size_t out_stride,
                     Function function) {
    for (size_t row = 0; row < rows; row++, first += stride, second += stride, out += out_stride) {
        size_t j = 0;
        for (; j + W <= columns; j += W) store(out + j, function(load(first + j), load(second + j)));
        if (j < columns) {
            const size_t count = columns - j;
            store_part(out + j, function(load_part(first + j, count), load_part(second + j, count)), count);
        }
    }
}
template <class T>
static void activate(Activation activation, const T* first, const T* second, size_t stride, size_t rows, size_t columns, T* out,
                     size_t out_stride) {
    const auto all = [&](auto function) { each_row(first, second, stride, rows, columns, out, out_stride, function); };
    switch (activation) {
        case GEGLU: return all([](vec value, vec gate) { return mul(value, gelu(gate)); });
        case SWIGLU: return all([](vec gate, vec value) { return mul(mul(gate, sigmoid(gate)), value); });
        case GELU: return all([](vec x, vec) { return gelu(x); });
        case GELU_TANH: return all([](vec x, vec) { return gelu_tanh(x); });
    }
}
// A range of columns of out (m, i), for all rows; x is (m, 2i) where it is gated, else (m, i).
template <class T>
static void activate_columns(Activation activation, const T* x, size_t m, size_t inner, T* out, Range range) {
    const T *first = x + range.first, *second = is_gated(activation) ? first + inner : first;
    activate(activation, first, second, is_gated(activation) ? 2 * inner : inner, m, range.last - range.first, out + range.first, inner);
}
