// All layers of one decoding step in one parallel region: what remains between the products is a few barriers.
//     a = LN1(alpha * m' + mlp');  m = LN2(alpha * a + dense(attend(qkv(a))));  mlp = W2 geglu(W1 m)
// Layer norms are computed by every thread for itself: a copy of a few rows costs less than waiting for them.
#pragma once
#include "attention.h"

struct LayerWeights {  // the order of kernels.reference.LayerWeights, then the layer's cache
    const void *norm1_weight, *norm1_bias, *qkv_weight, *qkv_bias, *dense_weight, *dense_bias;
    const void *norm2_weight, *norm2_bias, *in_weight, *in_bias, *out_weight, *out_bias;
    void *keys, *values;
};

struct StackShape {
    size_t layers, hidden, inner;
    float alpha, epsilon;
};

// What the threads share: qkv (b, 3 * n * d), context (b, n * d), update (b, h), halves (b, 2i), gated (b, i).
template <class T> struct StackScratch {
    std::vector<T> buffer;
    T *qkv, *context, *update, *halves, *gated;
    StackScratch(const StackShape& s, const AttentionShape& a) {
        size_t local = a.heads * a.size;
        buffer.resize(a.batch * (4 * local + s.hidden + 3 * s.inner));
        qkv = buffer.data();
        context = qkv + a.batch * 3 * local;
        update = context + a.batch * local;
        halves = update + a.batch * s.hidden;
        gated = halves + a.batch * 2 * s.inner;
    }
};

// This thread's part of gated = geglu(x W1^T + b1): the same columns of both halves, so nobody has to be waited for.
template <class T>
static void gated_part(const T* x, size_t m, size_t h, const T* weight, const T* bias, size_t inner, T* halves, T* gated,
                       int thread, int threads) {
    Range value = share(inner, 4, thread, threads), gate = {inner + value.first, inner + value.last};
    auto operand_x = operand(x, m * h);
    linear_rows(operand_x, m, h, weight, bias, halves, 2 * inner, value);
    linear_rows(operand_x, m, h, weight, bias, halves, 2 * inner, gate);
    geglu_columns(halves, m, inner, gated, value);
}

// hidden (b, h) -> out (b, h) after the final layer norm. Run by every thread of the team; `wait` is its barrier.
template <class T, class Wait>
static void stack_part(const LayerWeights* layers, const StackShape& s, const AttentionShape& shape, const T* hidden,
                       const float* cosine, const float* sine, const T* final_weight, const T* final_bias, T* out,
                       StackScratch<T>& shared, int thread, int threads, Wait wait) {
    static thread_local std::vector<T> own;  // not the scratch of the stages, which they resize
    const size_t m = shape.batch, h = s.hidden, local = shape.heads * shape.size;
    own.resize(2 * m * h);
    T *a = own.data(), *b = a + m * h;
    const Range all = {0, m};
    for (size_t i = 0; i < s.layers; i++) {
        const LayerWeights& w = layers[i];
        if (i == 0)
            norm_rows((const T*)nullptr, hidden, 0.0f, (const T*)w.norm1_weight, (const T*)w.norm1_bias, s.epsilon, a,
                      h, all);
        else
            norm_rows(b, shared.update, s.alpha, (const T*)w.norm1_weight, (const T*)w.norm1_bias, s.epsilon, a, h,
                      all);
        linear_part(a, m, h, (const T*)w.qkv_weight, (const T*)w.qkv_bias, shared.qkv, 3 * local, thread, threads);
        wait();
        attend_part(shared.qkv, cosine, sine, (T*)w.keys, (T*)w.values, shape, shared.context, thread, threads);
        wait();
        linear_part(shared.context, m, local, (const T*)w.dense_weight, (const T*)w.dense_bias, shared.update, h,
                    thread, threads);
        wait();
        norm_rows(a, shared.update, s.alpha, (const T*)w.norm2_weight, (const T*)w.norm2_bias, s.epsilon, b, h, all);
        gated_part(b, m, h, (const T*)w.in_weight, (const T*)w.in_bias, s.inner, shared.halves, shared.gated, thread,
                   threads);
        wait();  // also: everybody has read `update` before it is written again
        linear_part(shared.gated, m, s.inner, (const T*)w.out_weight, (const T*)w.out_bias, shared.update, h, thread,
                    threads);
        wait();
    }
    if (thread == 0)
        norm_rows(b, shared.update, s.alpha, final_weight, final_bias, s.epsilon, out, h, all);
}
