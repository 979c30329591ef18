// All layers of one decoding step in one parallel region, whose work is taken piece by piece, stage after stage:
//     a = norm1(x);  y = alpha * r + dense(attend(qkv(a)));  m = norm2(y);  x' = alpha * r' + W2 activation(W1 m)
// where r and r' are x and y (pre-norm), or a and m.
#pragma once
#include "attention.h"
#include "products.h"
#include "ranks.h"
#include "stages.h"

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

// One of a layer's products: x (m, k) -> to (m, n). columns: those that are shared out, of both halves the same ones, so that
// nobody has to be waited for in front of the activation; activated: where that goes, or null.
template <class T> struct LayerProduct {
    const Matrix& w;
    const void* bias;
    const T* x;
    size_t k;
    T* to;
    size_t n, columns;
    T* activated;

    static int type() { return type_number((T*)nullptr); }
    Target target() const { return {type(), type(), bias, to, n}; }
    // The same of few rows, some columns at a time, of which `operand` is x.
    const void* operand(size_t m) const { return product_operand(type(), x, m, k, w); }
    size_t each(size_t m, int threads) const { return product_piece(type(), m, k, w, columns, threads); }
    size_t parts(size_t m, int threads) const {
        const size_t some = each(m, threads);
        return (columns + some - 1) / some;
    }
    void make(const void* operand, size_t m, size_t number, int threads, Activation activation) const {
        const size_t some = each(m, threads), first = number * some;
        const Range part = {first, first + some < columns ? first + some : columns};
        product_columns(type(), operand, m, k, w, target(), part);
        if (!activated) return;
        if (is_gated(activation)) product_columns(type(), operand, m, k, w, target(), {columns + part.first, columns + part.last});
        activate_columns(activation, to, m, columns, activated, part);
    }
};

template <class T> class Stack {
    enum Stage { LOAD, QKV, ATTEND, DENSE, IN, OUT };  // of a layer; LOAD is left out where nobody brings weights
    const LayerWeights* layers;
    const StackShape& s;
    const AttentionShape& shape;
    const float *cosine, *sine;
    const T *hidden, *final_weight, *final_bias;
    T* out;
    BeforeLayer before;
    const Ranks* ranks;  // each of which holds some heads, and as large a part of what is between the halves of an MLP; or null
    const size_t m, h, local, width, first_stage, count;  // local: h of this rank's heads; count: stages of a layer
    // normed and sums (m, h), qkv (m, width), context (m, local), update (m, h), halves (m, 2i or i), activated (m, i)
    std::vector<T> buffer;
    T *normed, *sums, *qkv, *context, *update, *halves, *activated;
    const void* operand = nullptr;  // of the product that goes on
    bool is_stopped = false;
    int failure = 0;  // of ranks.h
    const size_t threads;
    Stages stages;

    LayerProduct<T> product(size_t layer, size_t stage) const {
        const LayerWeights& w = layers[layer];
        switch (stage) {
            case QKV: return {w.qkv, w.qkv_bias, normed, h, qkv, width, width, nullptr};
            case DENSE: return {w.dense, ranks ? nullptr : w.dense_bias, context, local, update, h, h, nullptr};
            case IN: return {w.in, w.in_bias, normed, h, halves, s.halves(), s.inner, activated};
            default: return {w.out, ranks ? nullptr : w.out_bias, activated, s.inner, update, h, h, nullptr};
        }
    }
    size_t kind(size_t stage) const { return first_stage + stage % count; }
    // Rows that share a context are one thread's, a head at a time: the context stays in its cache.
    size_t heads_of_piece() const { return shape.context_rows ? m : 1; }
    Attention<T> attention(size_t layer) const {
        return {qkv, cosine, sine, (T*)layers[layer].keys, (T*)layers[layer].values, shape, context};
    }

    size_t pieces(size_t stage, int thread) const {
        switch (kind(stage)) {
            case LOAD: return thread == 0;  // the caller's own: it may be Python
            case ATTEND: return m * shape.heads / heads_of_piece();
        }
        return product(stage / count, kind(stage)).parts(m, threads);
    }
    void piece(size_t stage, size_t number) {
        const size_t layer = stage / count;
        if (kind(stage) == LOAD) { is_stopped = before(layer) != 0; return; }
        if (kind(stage) == ATTEND) {
            const size_t each = heads_of_piece();
            return attention(layer).attend({number * each, (number + 1) * each});
        }
        product(layer, kind(stage)).make(operand, m, number, threads, s.activation);
    }
    // What lies between a stage and the one before it, by one thread alone: norms of a few rows cost less than waiting.
    void prepare(size_t stage) {
        const size_t layer = stage / count;
        if (ranks && stage > 0) add_up(layers[(stage - 1) / count], kind(stage - 1));
        if (is_stopped) return;
        if (stage == count * s.layers) return normalise(stage == 0, final_weight, final_bias, out);
        switch (kind(stage)) {
            case LOAD: return;
            case QKV: normalise(layer == 0, layers[layer].norm1_weight, layers[layer].norm1_bias, normed); break;
            case ATTEND:
                if (attention(layer).are_shared()) attention(layer).keep_some({0, m * shape.groups});
                return;
            case IN: normalise(false, layers[layer].norm2_weight, layers[layer].norm2_bias, normed);
        }
        operand = product(layer, kind(stage)).operand(m);
    }
    // What ranks have a part of each becomes whole, and gets its bias, which is that of the whole.
    void add_up(const LayerWeights& w, size_t kind) {
        if (kind != DENSE && kind != OUT) return;
        failure = ranks->add_up(update, m * h);
        is_stopped |= failure != 0;
        if (const T* bias = (const T*)(kind == DENSE ? w.dense_bias : w.out_bias))
            for (T* row = update; row < update + m * h; row += h) add_part(row, bias, 1.0f, row, h, 0, 1);
    }
    void normalise(bool is_first, const void* weight, const void* bias, T* to) {
        norm_rows(is_first ? (const T*)nullptr : sums ? sums : normed, is_first ? hidden : update, s.alpha, (const T*)weight,
                  (const T*)bias, s.epsilon, sums, to, h, {0, m});
    }

public:
    // hidden (b, h) -> out (b, h) after the final norm.
    Stack(const LayerWeights* layers, const StackShape& s, const AttentionShape& shape, const T* hidden, const float* cosine,
          const float* sine, const T* final_weight, const T* final_bias, T* out, BeforeLayer before, const Ranks* ranks, int threads)
        : layers(layers), s(s), shape(shape), cosine(cosine), sine(sine), hidden(hidden), final_weight(final_weight),
          final_bias(final_bias), out(out), before(before), ranks(ranks), m(shape.batch), h(s.hidden), local(shape.heads * shape.size),
          width(shape.width()), first_stage(before ? LOAD : QKV), count(OUT + 1 - first_stage),
          buffer(m * (3 * h + width + local + s.halves() + s.inner)), threads(threads), stages(count * s.layers, threads) {
        normed = buffer.data(), sums = normed + m * h, update = sums + m * h, qkv = update + m * h, context = qkv + m * width;
        halves = context + m * local, activated = halves + m * s.halves();
        if (!s.is_pre_norm) sums = nullptr;
        prepare(0);
    }
    void run(int thread, int team) {  // by every thread of the team
        stages.run(thread, team, [&](size_t stage) { return pieces(stage, thread); },
                   [&](size_t stage, size_t number) { piece(stage, number); },
                   [&](size_t next) {
                       if (!is_stopped) prepare(next);
                       return is_stopped ? count * s.layers : next;
                   });
    }
    int result() const { return failure; }
};
