// The light operations between the products: layer norm, residual addition, gated GELU. Statistics in FP32.
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

// Rows of layer_norm(alpha * residual + update), h wide; two passes over a row that stays in the nearest cache.
template <class T>
static void norm_rows(const T* residual, const T* update, float alpha, const T* weight, const T* bias, float epsilon,
                      T* out, size_t h, Range rows) {
    static thread_local std::vector<float> row_floats;
    if (row_floats.size() < h + W) row_floats.resize(h + W);
    float* row = row_floats.data();
    for (size_t i = rows.first; i < rows.last; i++) {
        const T* u = update + i * h;
        const T* r = residual ? residual + i * h : nullptr;
        size_t j = 0, whole = h / W * W;
        vec total = fill(0.0f);
        for (; j < whole; j += W) {
            vec a = mixed(r, u, alpha, j);
            store(row + j, a);
            total = add(total, a);
        }
        if (j < h) {
            vec a = mixed_part(r, u, alpha, j, h - j);
            store(row + j, a);
            total = add(total, a);
        }
        float mean = sum(total) / h;
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
            store(o + j, fma(mul(load(row + j), scale), load(weight + j), load(bias + j)));
        if (j < h)
            store_part(o + j, fma(mul(load(row + j), scale), load_part(weight + j, h - j), load_part(bias + j, h - j)),
                       h - j);
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

// A range of columns of x (m, 2i) = (value, gate) -> value * gelu(gate) (m, i), for all rows.
template <class T> static void geglu_columns(const T* x, size_t m, size_t inner, T* out, Range range) {
    for (size_t row = 0; row < m; row++) {
        const T *value = x + row * 2 * inner, *gate = value + inner;
        T* o = out + row * inner;
        size_t j = range.first;
        for (; j + W <= range.last; j += W) store(o + j, mul(load(value + j), gelu(load(gate + j))));
        if (j < range.last) {
            size_t count = range.last - j;
            store_part(o + j, mul(load_part(value + j, count), gelu(load_part(gate + j, count))), count);
        }
    }
}
