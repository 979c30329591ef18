// All layers of one decoding step in one parallel region: what remains between the products is a few barriers.
//     a = norm1(x);  y = alpha * r + dense(attend(qkv(a)));  m = norm2(y);  x' = alpha * r' + W2 activation(W1 m)
// where r and r' are x and y (pre-norm), or a and m. Norms are computed by every thread for itself: a copy of a few rows
// costs less than waiting for them.
#pragma once
#include <initializer_list>
#include "attention.h"
#include "products.h"

struct LayerWeights {  // the order of kernels.layer.LayerWeights, then the layer's cache; all parts of 8 bytes
    const void *norm1_weight, *norm1_bias;
    Matrix qkv;
    const void* qkv_bias;
    Matrix dense;
    const void *dense_bias, *norm2_weight, *norm2_bias;
    Matrix in;
    const void* in_bias;
    Matrix out;
    const void* out_bias;
    void *keys, *values;
};

struct StackShape {  // all parts of 8 bytes; the order of stack.py's Shape
    size_t layers, hidden, inner, is_pre_norm;
    Activation activation;
    double alpha, epsilon;
    size_t halves() const { return is_gated(activation) ? 2 * inner : inner; }
};

// Where weights are brought as they are needed: called before each layer by one thread while the others wait. From then
// on the table has this layer's addresses, and no other layer is looked at. Anything but 0: stop.
typedef int (*BeforeLayer)(size_t layer);

// What the threads share: qkv (b, width), context (b, n * d), update (b, h), halves (b, 2i or i), activated (b, i).
template <class T> struct StackScratch {
    std::vector<T> buffer;
    T *qkv, *context, *update, *halves, *activated;
    bool is_stopped = false;
    StackScratch(const StackShape& s, const AttentionShape& a) {
        size_t local = a.heads * a.size;
        buffer.resize(a.batch * (a.width() + local + s.hidden + s.halves() + s.inner));
        qkv = buffer.data();
        context = qkv + a.batch * a.width();
        update = context + a.batch * local;
        halves = update + a.batch * s.hidden;
        activated = halves + a.batch * s.halves();
    }
};

template <class T>
static void product(const Matrix& w, const T* x, size_t m, size_t k, const void* bias, T* out, size_t n,
                    std::initializer_list<Range> parts) {
    product_part(type_number(x), x, m, k, w, {type_number(x), type_number(x), bias, out, n}, parts);
}

// hidden (b, h) -> out (b, h) after the final norm. Run by every thread of the team; `wait` is its barrier.
template <class T, class Wait>
static void stack_part(const LayerWeights* layers, const StackShape& s, const AttentionShape& shape, const T* hidden,
                       const float* cosine, const float* sine, const T* final_weight, const T* final_bias, T* out,
                       StackScratch<T>& shared, BeforeLayer before, int thread, int threads, Wait wait) {
    static thread_local std::vector<T> own;  // not the scratch of the stages, which they resize
    const size_t m = shape.batch, h = s.hidden, local = shape.heads * shape.size;
    own.resize(2 * m * h);
    T *a = own.data(), *sums = s.is_pre_norm ? a + m * h : nullptr, *residual = sums ? sums : a;
    const Range all = {0, m};
    auto normalise = [&](bool is_first, const void* weight, const void* bias, T* to) {
        norm_rows(is_first ? (const T*)nullptr : residual, is_first ? hidden : shared.update, s.alpha, (const T*)weight,
                  (const T*)bias, s.epsilon, sums, to, h, all);
    };
    for (size_t i = 0; i < s.layers; i++) {
        if (before) {
            if (thread == 0) shared.is_stopped = before(i) != 0;
            wait();
            if (shared.is_stopped) return;
        }
        const LayerWeights& w = layers[i];
        normalise(i == 0, w.norm1_weight, w.norm1_bias, a);
        const size_t width = shape.width();
        product(w.qkv, a, m, h, w.qkv_bias, shared.qkv, width, {share(width, 4, thread, threads)});
        wait();
        attend_part(shared.qkv, cosine, sine, (T*)w.keys, (T*)w.values, shape, shared.context, thread, threads, wait);
        wait();
        product(w.dense, shared.context, m, local, w.dense_bias, shared.update, h, {share(h, 4, thread, threads)});
        wait();
        normalise(false, w.norm2_weight, w.norm2_bias, a);
        // the same columns of both halves, so that nobody has to be waited for
        const Range first = share(s.inner, 4, thread, threads), second = {s.inner + first.first, s.inner + first.last};
        if (is_gated(s.activation)) product(w.in, a, m, h, w.in_bias, shared.halves, 2 * s.inner, {first, second});
        else product(w.in, a, m, h, w.in_bias, shared.halves, s.inner, {first});
        activate_columns(s.activation, shared.halves, m, s.inner, shared.activated, first);
        wait();  // also: everybody has read `update` before it is written again
        product(w.out, shared.activated, m, s.inner, w.out_bias, shared.update, h, {share(h, 4, thread, threads)});
        wait();
    }
    if (thread == 0) normalise(s.layers == 0, final_weight, final_bias, out);
}
