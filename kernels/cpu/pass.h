// Layers of a pass over many tokens in one parallel region, whose work is taken piece by piece, stage after stage
// (stages.h): beside other programs nobody waits for a thread that has no core, and what a piece leaves in the nearest caches
// is read there. Values are those of the operations one by one (layer.py), rounded where these round.
#pragma once
#include "prompt.h"
#include "stack.h"

template <class T> class Pass {
    // X: what a product reads is made and put in order. Of attention, some rows of the batch at a time: their tokens, then
    // their heads.
    enum Stage { QKV_X, QKV, ATTEND, DENSE_X, DENSE, IN_X, IN, OUT_X, OUT };
    struct Place { size_t layer, stage, part; };  // part: of ATTEND
    const LayerWeights* layers;
    const StackShape& s;
    const AttentionShape& shape;
    const size_t length;
    const float *cosine, *sine;
    const T* hidden;
    const int64_t* places;  // (wanted), the tokens that are asked for, ascending, some perhaps twice; null: all
    const int products;     // of attention: see prompt.h
    const size_t wanted, m, h, local, threads, attends, count;  // attends: stages of ATTEND; count: of a layer
    T* out;
    // normed, sums and update (m, h), qkv (m, width), context (m, local), activated (m, i); chosen (wanted, h): what the last
    // layer's update is added to; halves: in front of the activation, where rows are few
    T *normed = nullptr, *sums = nullptr, *qkv = nullptr, *context = nullptr, *update = nullptr, *activated = nullptr;
    T *chosen = nullptr, *halves = nullptr;
    float* room;                    // x of the product that goes on, in order; of the calling thread
    const void* operand = nullptr;  // the same of few rows
    Stages stages;

    struct Buffers {};  // memory of the calling thread
    struct Made {};     // of each
    static int type() { return type_number((T*)nullptr); }
    Place place(size_t stage) const {
        const size_t layer = stage / count, number = stage % count;
        if (number < ATTEND) return {layer, number, 0};
        if (number < ATTEND + attends) return {layer, ATTEND, number - ATTEND};
        return {layer, number - attends + 1, 0};
    }
    bool is_chosen(const Place& at) const { return places && at.layer + 1 == s.layers && at.stage >= DENSE_X; }
    size_t rows(const Place& at) const { return is_chosen(at) ? wanted : m; }
    static bool makes_x(size_t stage) { return stage == QKV_X || stage == DENSE_X || stage == IN_X || stage == OUT_X; }

    LayerProduct<T> product(const Place& at) const {
        const LayerWeights& w = layers[at.layer];
        switch (at.stage) {
            case QKV_X: case QKV: return {w.qkv, w.qkv_bias, normed, h, qkv, shape.width(), shape.width(), nullptr};
            case DENSE_X: case DENSE: return {w.dense, w.dense_bias, context, local, update, h, h, nullptr};
            case IN_X: case IN: return {w.in, w.in_bias, normed, h, halves, s.halves(), s.inner, activated};
            default: return {w.out, w.out_bias, activated, s.inner, update, h, h, nullptr};
        }
    }
    SharedProduct shared(const LayerProduct<T>& p, size_t rows) const { return {type(), rows, p.k, p.w, p.columns, int(threads)}; }
    PromptAttention attention(size_t layer) const {
        const bool is_last = places && layer + 1 == s.layers;
        return {type(), products, shape, length, is_last ? places : nullptr, is_last ? wanted : m, qkv, cosine, sine,
                layers[layer].keys, layers[layer].values, context, int(threads)};
    }

    enum { ROWS = 32 };  // of the last sum
    size_t pieces(size_t stage) const {
        const Place at = place(stage);
        if (at.layer == s.layers) return ((places ? wanted : m) + ROWS - 1) / ROWS;
        if (at.stage == ATTEND) return attention(at.layer).pieces(at.part);
        const LayerProduct<T> p = product(at);
        if (!is_shared(p.type(), p.w, rows(at), p.k)) return makes_x(at.stage) ? 1 : p.parts(rows(at), threads);
        const SharedProduct product = shared(p, rows(at));
        return makes_x(at.stage) ? product.pieces() : product.parts();
    }
    void piece(size_t stage, size_t number) {
        const Place at = place(stage);
        if (at.layer == s.layers) {
            const size_t all = places ? wanted : m, first = number * ROWS, last = first + ROWS < all ? first + ROWS : all;
            return add_part(residual() + first * h, update + first * h, s.alpha, out + first * h, (last - first) * h, 0, 1);
        }
        if (at.stage == ATTEND) return attention(at.layer).piece(at.part, number);
        const LayerProduct<T> p = product(at);
        if (!is_shared(p.type(), p.w, rows(at), p.k)) return few(at, p, number);
        const SharedProduct product = shared(p, rows(at));
        if (makes_x(at.stage)) {
            make_x(at, product.rows_of(number));
            return product.put_in_order(p.x, number, room);
        }
        const SharedProduct::Part part = product.part(number);
        if (!p.activated) return product.make(room, part, p.target());
        // Both halves of some columns, for the activation to read from this thread's caches.
        const size_t columns = part.columns.last - part.columns.first, stride = is_gated(s.activation) ? 2 * columns : columns;
        T* made = scratch<Made, T>((part.rows.last - part.rows.first) * stride);
        T* origin = made - part.rows.first * stride - part.columns.first;
        product.make(room, part, {type(), type(), p.bias, origin, stride});
        if (is_gated(s.activation))
            product.make(room, {part.panels, part.rows, {s.inner + part.columns.first, s.inner + part.columns.last}},
                         {type(), type(), p.bias, origin - s.inner + columns, stride});
        activate(s.activation, made, is_gated(s.activation) ? made + columns : made, stride, part.rows.last - part.rows.first, columns,
                 activated + part.rows.first * s.inner + part.columns.first, s.inner);
    }
    // The same for the few rows that the last layer may go on with.
    void few(const Place& at, const LayerProduct<T>& p, size_t number) {
        if (!makes_x(at.stage)) return p.make(operand, rows(at), number, threads, s.activation);
        make_x(at, {0, rows(at)});
        operand = p.operand(rows(at));
    }
    // What the update before the place is added to: behind the last layer, and at the beginning of the others.
    const T* residual() const { return s.is_pre_norm ? sums : normed; }
    void make_x(const Place& at, Range rows) {
        const LayerWeights& w = layers[at.layer];
        if (at.stage == QKV_X && at.layer == 0) normalise(nullptr, hidden, w.norm1_weight, w.norm1_bias, normed, rows);
        else if (at.stage == QKV_X) normalise_sums(residual(), w.norm1_weight, w.norm1_bias, normed, rows);
        else if (at.stage == IN_X && s.is_pre_norm)
            normalise_sums(is_chosen(at) ? chosen : at.layer == 0 ? hidden : sums, w.norm2_weight, w.norm2_bias, normed, rows);
        else if (at.stage == IN_X)  // not rounded between
            normalise(is_chosen(at) ? chosen : normed, update, w.norm2_weight, w.norm2_bias, normed, rows);
    }
    void normalise(const T* residual, const T* x, const void* weight, const void* bias, T* to, Range rows) const {
        norm_rows(residual, x, s.alpha, (const T*)weight, (const T*)bias, s.epsilon, (T*)nullptr, to, h, rows);
    }
    // sums = alpha * residual + update, rounded, and `to` their norm.
    void normalise_sums(const T* residual, const void* weight, const void* bias, T* to, Range rows) {
        const size_t first = rows.first * h;
        add_part(residual + first, update + first, s.alpha, sums + first, (rows.last - rows.first) * h, 0, 1);
        normalise(nullptr, sums, weight, bias, to, rows);
    }
    // Between attention and dense of the last layer, by one thread: what the wanted places' updates are added to.
    void choose() {
        const T* from = !s.is_pre_norm ? normed : s.layers == 1 ? hidden : sums;
        for (size_t i = 0; i < wanted; i++) std::memcpy(chosen + i * h, from + places[i] * h, h * sizeof(T));
    }

public:
    // hidden (b, length, h) -> out (b, length, h), or (wanted, h) at `places`: what the layer behind these is given.
    Pass(const LayerWeights* layers, const StackShape& s, const AttentionShape& shape, int products, size_t length, const T* hidden,
         const float* cosine, const float* sine, const int64_t* places, size_t wanted, T* out, int threads)
        : layers(layers), s(s), shape(shape), length(length), cosine(cosine), sine(sine), hidden(hidden),
          places(places), products(products), wanted(wanted), m(shape.batch * length),
          h(s.hidden), local(shape.heads * shape.size),
          threads(threads),
          attends(PromptAttention{type(), products, shape, length, nullptr, m, nullptr, cosine, sine, nullptr, nullptr, nullptr, threads}.stages()),
          count(OUT + attends), out(out), stages(count * s.layers + 1, threads) {
        size_t floats = 0, few = 0;  // few: rows of products that are not shared
        for (size_t stage = 0; stage < count * s.layers; stage++) {
            const Place at = place(stage);
            if (!makes_x(at.stage)) continue;
            const LayerProduct<T> p = product(at);
            if (!is_shared(p.type(), p.w, rows(at), p.k)) few = rows(at) > few ? rows(at) : few;
            else if (const size_t needed = shared(p, rows(at)).room(); needed > floats) floats = needed;
        }
        room = scratch<Pass, float>(floats);
        const size_t most = wanted > m ? wanted : m;
        T** const parts[] = {&normed, &sums, &update, &context, &activated, &qkv, &chosen, &halves};
        const size_t sizes[] = {most * h, most * h, most * h, most * local, most * s.inner, m * shape.width(),
                                places ? wanted * h : 0, few * s.halves()};
        size_t all = 0;
        for (size_t size : sizes) all += (size + 31) / 32 * 32;  // from the start of a cache line each
        T* next = scratch<Buffers, T>(all);
        for (size_t i = 0; i < 8; i++) *parts[i] = next, next += (sizes[i] + 31) / 32 * 32;
    }
    void run(int thread, int team) {  // by every thread of the team
        stages.run(thread, team, [&](size_t stage) { return pieces(stage); },
                   [&](size_t stage, size_t number) { piece(stage, number); },
                   [&](size_t next) {
                       const Place at = place(next);
                       if (at.stage == DENSE_X && at.layer < s.layers && is_chosen(at)) choose();
                       return next;
                   });
    }
};
