// Attention of one new token per sequence: rotation, writing to the cache, and the pass over the cache.
#pragma once
#include "pointwise.h"

enum Rotary : size_t { NONE, HALVES, HALVES_2D, PAIRS };  // as kernels.layer.Rotary

struct AttentionShape {  // all parts of 8 bytes; the order of attention.py's Shape
    size_t batch, heads, groups, size;       // groups: heads of keys and values, each for neighbouring heads
    size_t total;                            // cached places and the new ones, of the longest row
    size_t batch_stride, head_stride;        // of keys and values, in elements; places are `size` apart
    Rotary rotary;
    size_t turned;                           // columns of cosine and sine; coordinates that turn, where in pairs
    size_t by_heads;                         // qkv is [q | k | v] head by head; 0: all of q, all of k, all of v
    const uint8_t* blocked;                  // (batch, total), 1 = must not attend; null: everything is seen
    const int64_t* lengths;                  // (batch), cached places of each row; null: those of all are alike
    const int64_t* context_rows;             // (batch), whose first places a row has in common; null: there are none
    const int64_t* context_lengths;          // (batch), how many of them

    size_t width() const { return (heads + 2 * groups) * size; }  // of a row of qkv; and where its parts begin:
    size_t query(size_t head) const { return (by_heads ? 3 * head : head) * size; }
    size_t key(size_t group) const { return (by_heads ? 3 * group + 1 : heads + group) * size; }
    size_t value(size_t group) const { return (by_heads ? 3 * group + 2 : heads + groups + group) * size; }
};

template <class T, class O>
static inline void rotate_head(const T* x, const float* cosine, const float* sine, size_t size, O* out) {
    size_t half = size / 2, j = 0;
    for (; j + W <= half; j += W) {
        vec a = load(x + j), b = load(x + j + half);
        store(out + j, sub(mul(a, load(cosine + j)), mul(b, load(sine + j))));
        store(out + j + half, fma(a, load(sine + j + half), mul(b, load(cosine + j + half))));
    }
    for (; j < half; j++) {
        float a = to_float(x[j]), b = to_float(x[j + half]);
        store_float(out + j, a * cosine[j] - b * sine[j]);
        store_float(out + j + half, b * cosine[j + half] + a * sine[j + half]);
    }
}
// Neighbours turn together, by the first half of cosine and sine; what is behind `turned` stays.
template <class T, class O>
static inline void rotate_pairs(const T* x, const float* cosine, const float* sine, const AttentionShape& s, O* out) {
    for (size_t j = 0; j < s.turned / 2; j++) {
        float a = to_float(x[2 * j]), b = to_float(x[2 * j + 1]);
        store_float(out + 2 * j, a * cosine[j] - b * sine[j]);
        store_float(out + 2 * j + 1, b * cosine[j] + a * sine[j]);
    }
    for (size_t j = s.turned; j < s.size; j++) store_float(out + j, to_float(x[j]));
}
// A head of queries or keys at token `place` of all (batch * new tokens).
template <class T, class O>
static inline void rotate(const T* x, const float* cosine, const float* sine, size_t place, const AttentionShape& s,
                          O* out) {
    const size_t half = s.size / 2;
    cosine += place * s.turned, sine += place * s.turned;
    switch (s.rotary) {
        case NONE:
            for (size_t j = 0; j < s.size; j++) store_float(out + j, to_float(x[j]));
            break;
        case HALVES: rotate_head(x, cosine, sine, s.size, out); break;
        case HALVES_2D:
            rotate_head(x, cosine, sine, half, out);
            rotate_head(x + half, cosine + half, sine + half, half, out + half);
            break;
        case PAIRS: rotate_pairs(x, cosine, sine, s, out);
    }
}

template <class T> static inline float dot(const float* q, const T* key, size_t size) {
    vec total = fill(0.0f);
    size_t j = 0;
    for (; j + W <= size; j += W) total = fma(load(q + j), load(key + j), total);
    float result = sum(total);
    for (; j < size; j++) result += q[j] * to_float(key[j]);
    return result;
}

// scores[t] = q . keys[t] for all places; four at a time, so that the sums across lanes overlap.
template <class T> static void score(const float* q, const T* keys, size_t size, size_t total, float* scores) {
    size_t t = 0;
    if (size % W == 0)
        for (; t + 4 <= total; t += 4) {
            vec s0 = fill(0.0f), s1 = s0, s2 = s0, s3 = s0;
            const T* key = keys + t * size;
            for (size_t j = 0; j < size; j += W) {
                vec a = load(q + j);
                s0 = fma(a, load(key + j), s0);
                s1 = fma(a, load(key + size + j), s1);
                s2 = fma(a, load(key + 2 * size + j), s2);
                s3 = fma(a, load(key + 3 * size + j), s3);
            }
            scores[t] = sum(s0), scores[t + 1] = sum(s1), scores[t + 2] = sum(s2), scores[t + 3] = sum(s3);
        }
    for (; t < total; t++) scores[t] = dot(q, keys + t * size, size);
}

// Softmax in place, forbidden places 0. A row with every place forbidden is an even average, as in the reference.
static inline void softmax(float* scores, size_t total, const uint8_t* blocked) {
    bool any = false;
    for (size_t t = 0; blocked && t < total && !any; t++) any = !blocked[t];
    if (any)
        for (size_t t = 0; t < total; t++) if (blocked[t]) scores[t] = -INFINITY;
    if (blocked && !any)
        for (size_t t = 0; t < total; t++) scores[t] = 0.0f;
    float top = -INFINITY;
    for (size_t t = 0; t < total; t++) top = scores[t] > top ? scores[t] : top;
    vec total_sum = fill(0.0f), shift = fill(top);
    size_t t = 0;
    for (; t + W <= total; t += W) {
        vec e = exponential(sub(load(scores + t), shift));
        store(scores + t, e);
        total_sum = add(total_sum, e);
    }
    float whole = sum(total_sum);
    if (t < total) {
        float rest[W];
        store(rest, exponential(sub(load_part(scores + t, total - t), shift)));
        for (size_t i = 0; t + i < total; i++) whole += scores[t + i] = rest[i];
    }
    float scale = 1.0f / whole;
    for (t = 0; t < total; t++) scores[t] *= scale;
}

// out = sum over t of weights[t] * values[t], the first `context` of which are those of `there`; C vectors of the head at
// once, held in registers.
template <int C, class T>
static inline void gather_columns(const float* weights, const T* there, size_t context, const T* values, size_t size,
                                  size_t total, T* out) {
    vec sums[C];
    UNROLL for (int c = 0; c < C; c++) sums[c] = fill(0.0f);
    auto add = [&](const T* from, size_t begin, size_t end) {
        for (size_t t = begin; t < end; t++) {
            vec p = fill(weights[t]);
            UNROLL for (int c = 0; c < C; c++) sums[c] = fma(p, load(from + t * size + c * W), sums[c]);
        }
    };
    add(there, 0, context);
    add(values, context, total);
    UNROLL for (int c = 0; c < C; c++) store(out + c * W, sums[c]);
}
template <class T>
static void gather(const float* weights, const T* there, size_t context, const T* values, size_t size, size_t total,
                   T* out) {
    size_t j = 0;
    for (; j + 4 * W <= size; j += 4 * W)
        gather_columns<4>(weights, there + j, context, values + j, size, total, out + j);
    for (; j + W <= size; j += W) gather_columns<1>(weights, there + j, context, values + j, size, total, out + j);
    for (; j < size; j++) {
        float s = 0;
        for (size_t t = 0; t < total; t++) s += weights[t] * to_float((t < context ? there : values)[t * size + j]);
        store_float(out + j, s);
    }
}

// The key and value of a group at new token `place` of all, turned, to place `to` of the cache.
template <class T>
static inline void store_key(const T* qkv, const float* cosine, const float* sine, T* keys, T* values,
                             const AttentionShape& s, size_t place, size_t row, size_t group, size_t to) {
    const size_t target = row * s.batch_stride + group * s.head_stride + to * s.size;
    qkv += place * s.width();
    rotate(qkv + s.key(group), cosine, sine, place, s, keys + target);
    std::memcpy(values + target, qkv + s.value(group), s.size * sizeof(T));
}

// Attention of one new token of each row, head by head. qkv (batch, width), cosine and sine (batch, turned), out (batch,
// heads, size).
template <class T> struct Attention {
    const T* qkv;
    const float *cosine, *sine;
    T *keys, *values;
    const AttentionShape& s;
    T* out;

    size_t total_of(size_t row) const { return s.lengths ? size_t(s.lengths[row]) + 1 : s.total; }
    // Whether several heads read the same keys, which must be kept before any does; otherwise each head keeps its own.
    bool are_shared() const { return s.groups < s.heads; }
    // Tasks: each group of each row.
    void keep(size_t row, size_t group) const {
        store_key(qkv, cosine, sine, keys, values, s, row, row, group, total_of(row) - 1);
    }
    void keep_some(Range tasks) const {
        for (size_t task = tasks.first; task < tasks.last; task++) keep(task / s.groups, task % s.groups);
    }
    // Tasks: each head of each row, those that read the same places one after the other: the second one finds them in
    // the cache.
    void attend(Range tasks) const {
        float *q = scratch<Attention, float>(s.total + s.size + W), *scores = q + s.size;
        const float scale = 1.0f / std::sqrt(float(s.size));
        const size_t heads_of_group = s.heads / s.groups;
        for (size_t task = tasks.first; task < tasks.last; task++) {
            const size_t group = task / (s.batch * heads_of_group), row = task / heads_of_group % s.batch;
            const size_t head = group * heads_of_group + task % heads_of_group, total = total_of(row);
            const size_t own = row * s.batch_stride + group * s.head_stride;
            const size_t context = s.context_rows ? size_t(s.context_lengths[row]) : 0;  // places read elsewhere
            const size_t there = s.context_rows ? s.context_rows[row] * s.batch_stride + group * s.head_stride : 0;
            if (!are_shared()) keep(row, group);
            rotate(qkv + row * s.width() + s.query(head), cosine, sine, row, s, q);
            for (size_t j = 0; j < s.size; j++) q[j] *= scale;
            score(q, keys + there, s.size, context, scores);
            score(q, keys + own + context * s.size, s.size, total - context, scores + context);
            softmax(scores, total, s.blocked ? s.blocked + row * s.total : nullptr);
            gather(scores, values + there, context, values + own, s.size, total, out + (row * s.heads + head) * s.size);
        }
    }
    // This thread's part; `wait` is the team's barrier.
    template <class Wait> void attend_part(int thread, int threads, Wait wait) const {
        if (are_shared()) {
            keep_some(share(s.batch * s.groups, 1, thread, threads));
            wait();
        }
        attend(share(s.batch * s.heads, 1, thread, threads));
    }
};
