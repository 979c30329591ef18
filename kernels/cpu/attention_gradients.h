// Gradients of attention over a whole sequence, in FP32: scores and weights are computed again from queries and keys, some
// queries at a time with all places, so that neither they nor the result need be kept. And attention itself where some of the
// weights are dropped, in the same way.
//
// With P = softmax(Q K^T / sqrt(d)), M = 0 where a weight is dropped and else 1 / (1 - share), and the result's gradient G:
// dV = (P * M)^T G,  dP = G V^T * M,  dS = P * (dP - rowsum(P * dP)) / sqrt(d),  dQ = dS K,  dK = dS^T Q.
#pragma once
#include <utility>
#include "attention.h"

namespace gradients {

enum { PANEL = 2 * W, HEIGHT = W == 16 ? 14 : 6, MOST_QUERIES = 96, LEAST_QUERIES = 24, SCORES = 64 << 10 };

// A matrix by its two strides.
struct Strided { const float* at; size_t row, word; };

// out (R rows, `stride` apart, two vectors) is, or grows by, the sum over words of a[row][word] * b[word].
template <int R>
static __attribute__((noinline)) void multiply_rows(Strided a, const float* b, size_t words, float* out, size_t stride,
                                                    bool adds) {
    vec total[R][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) total[r][c] = adds ? load(out + r * stride + c * W) : fill(0.0f);
    const float* from[R];
    UNROLL for (int r = 0; r < R; r++) from[r] = a.at + r * a.row;
    for (size_t i = 0; i < words; i++, b += PANEL) {
        const vec first = load(b), second = load(b + W);
        UNROLL for (int r = 0; r < R; r++) {
            const vec value = fill(from[r][i * a.word]);
            total[r][0] = fma(value, first, total[r][0]);
            total[r][1] = fma(value, second, total[r][1]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) store(out + r * stride + c * W, total[r][c]);
}
typedef void (*Multiply)(Strided, const float*, size_t, float*, size_t, bool);
template <int... R> static Multiply of_rows(size_t rows, std::integer_sequence<int, R...>) {
    static const Multiply all[] = {multiply_rows<R + 1>...};
    return all[rows - 1];
}

// out (rows, columns) = a (rows, words) b, or plus it. b: panels of PANEL columns, [word][column], `panel` apart.
static void multiply(Strided a, size_t rows, const float* b, size_t panel, size_t words, float* out, size_t stride,
                     size_t columns, bool adds) {
    for (size_t c = 0; c < columns; c += PANEL, b += panel)
        for (size_t r = 0; r < rows; r += HEIGHT) {
            const size_t height = rows - r < HEIGHT ? rows - r : size_t(HEIGHT);
            of_rows(height, std::make_integer_sequence<int, HEIGHT>())(
                {a.at + r * a.row, a.row, a.word}, b, words, out + r * stride + c, stride, adds);
        }
}

// The memory of one thread for one head: scores become P, slopes are dP and become dS. d and t: head size and places, in whole panels.
struct Head {
    size_t d, t, stride, queries;
    float *q, *q_columns, *k_columns, *k_places, *v_places, *g_columns, *dk, *dv, *dq, *scores, *slopes, *one;

    Head(size_t size, size_t length) : d((size + PANEL - 1) / PANEL * PANEL), t((length + PANEL - 1) / PANEL * PANEL),
                                       stride(t + 16) {  // rows that begin in different sets of the nearest cache
        const size_t fitting = SCORES / t / HEIGHT * HEIGHT;
        queries = fitting < LEAST_QUERIES ? size_t(LEAST_QUERIES) : fitting > MOST_QUERIES ? size_t(MOST_QUERIES) : fitting;
        float* next = scratch<Head, float>(8 * t * d + queries * (d + 2 * stride) + d + 2 * PANEL);
        for (float** each : {&q, &q_columns, &k_columns, &k_places, &v_places, &g_columns, &dk, &dv}) *each = next, next += t * d;
        dq = next, next += queries * d;
        scores = next, slopes = next + queries * stride, next += 2 * queries * stride;
        one = next;
    }
    float* v_columns() const { return v_places; }  // the values of a pass forward lie there
    // A row as columns of panels whose words are rows; and as a column of panels whose words are its numbers.
    void put_columns(const float* row, size_t size, size_t i, float* to) const {
        to += i * PANEL;
        size_t j = 0;
        for (; j + PANEL <= size; j += PANEL, to += PANEL * t) std::memcpy(to, row + j, PANEL * sizeof(float));
        for (size_t k = 0; j < d; j++, k++) to[k] = j < size ? row[j] : 0.0f;
    }
    void put_places(const float* row, size_t size, size_t i, float* to) const {
        to += i / PANEL * PANEL * d + i % PANEL;
        for (size_t j = 0; j < d; j++) to[j * PANEL] = j < size ? row[j] : 0.0f;
    }
};

// What is dropped of the weights, 0 in `kept` (batch, heads, length, length); the others grow by `scale`.
struct Drop {
    const uint8_t* kept;  // null: nothing is dropped
    float scale;
    // The row of query i of a (row, head) pair.
    void from(float* row, size_t task, size_t i, size_t length) const {
        if (!kept) return;
        const uint8_t* mine = kept + (task * length + i) * length;
        size_t t = 0;
        for (; t + PANEL <= length; t += PANEL)
            for (int j = 0; j < PANEL; j++) row[t + j] *= float(mine[t + j]) * scale;  // of a known number: vectors
        for (; t < length; t++) row[t] *= float(mine[t]) * scale;
    }
};

// The angles of the turn back are the opposite ones; coordinates that turn together have the same.
static void turn_back(const float* gradient, const float* cosine, const float* sine, size_t place, const AttentionShape& s,
                      float* opposite, float* out) {
    for (size_t j = 0; j < s.turned; j++) opposite[j] = -sine[place * s.turned + j];
    rotate(gradient, cosine + place * s.turned, opposite, 0, s, out);
}

// A row of scores becomes one of weights; one that may see nothing weighs all places alike. -> whether it saw something.
static bool weigh(float* row, size_t places, size_t padded, float factor, const uint8_t* blocked) {
    bool sees = !blocked;
    for (size_t t = 0; blocked && t < places; t++)
        if (blocked[t]) row[t] = -INFINITY; else sees = true;
    for (size_t t = places; t < padded; t++) row[t] = -INFINITY;
    if (!sees) {
        for (size_t t = 0; t < padded; t++) row[t] = t < places ? 1.0f / places : 0.0f;
        return false;
    }
    vec most = fill(-INFINITY), all = fill(0.0f);
    for (size_t t = 0; t < padded; t += W) most = larger(most, load(row + t));
    const vec shift = fill(-factor * largest(most));
    for (size_t t = 0; t < padded; t += W) {
        const vec e = exponential(fma(load(row + t), fill(factor), shift));
        store(row + t, e), all = add(all, e);
    }
    const vec scale = fill(1.0f / sum(all));
    for (size_t t = 0; t < padded; t += W) store(row + t, mul(load(row + t), scale));
    return true;
}

// Attention of some (row, head) pairs, some of whose weights are dropped: out (batch, length, heads, size). The other arguments
// are those of a prompt without a cache.
static void attend_dropped(const float* qkv, const float* cosine, const float* sine, const AttentionShape& s, Drop drop,
                           float* out, Range heads) {
    const size_t size = s.size, length = s.total, width = s.width();
    const float factor = 1.0f / std::sqrt(float(size));
    for (size_t task = heads.first; task < heads.last; task++) {
        const Head h(size, length);
        const size_t batch = task / s.heads, head = task % s.heads;
        for (size_t i = 0; i < length; i++) {
            const size_t place = batch * length + i;
            const float* token = qkv + place * width;
            rotate(token + s.query(head), cosine, sine, place, s, h.q + i * h.d);
            rotate(token + s.key(head), cosine, sine, place, s, h.one);
            h.put_places(h.one, size, i, h.k_places);
            h.put_columns(token + s.value(head), size, i, h.v_columns());
        }
        for (size_t i = length; i < h.t; i++) h.put_places(nullptr, 0, i, h.k_places);
        for (size_t first = 0; first < length; first += h.queries) {
            const size_t count = length - first < h.queries ? length - first : h.queries;
            multiply({h.q + first * h.d, h.d, 1}, count, h.k_places, PANEL * h.d, size, h.scores, h.stride, h.t, false);
            for (size_t i = 0; i < count; i++) {
                const uint8_t* blocked = s.blocked ? s.blocked + (batch * length + first + i) * length : nullptr;
                weigh(h.scores + i * h.stride, length, h.t, factor, blocked);
                drop.from(h.scores + i * h.stride, task, first + i, length);
            }
            multiply({h.scores, h.stride, 1}, count, h.v_columns(), PANEL * h.t, length, h.dq, h.d, h.d, false);
            for (size_t i = 0; i < count; i++)
                std::memcpy(out + ((batch * length + first + i) * s.heads + head) * size, h.dq + i * h.d, size * sizeof(float));
        }
    }
}

// The gradient of qkv, of some (row, head) pairs; the other arguments are those of a prompt without a cache.
static void attend_heads(const float* qkv, const float* cosine, const float* sine, const AttentionShape& s,
                         const float* gradient, Drop drop, float* out, Range heads) {
    const size_t size = s.size, length = s.total, width = s.width();
    const float factor = 1.0f / std::sqrt(float(size));
    for (size_t task = heads.first; task < heads.last; task++) {
        const Head h(size, length);
        const size_t batch = task / s.heads, head = task % s.heads;
        const float* g = gradient + (batch * length * s.heads + head) * size;
        for (size_t i = 0; i < length; i++) {
            const size_t place = batch * length + i;
            const float* token = qkv + place * width;
            rotate(token + s.query(head), cosine, sine, place, s, h.q + i * h.d);
            h.put_columns(h.q + i * h.d, size, i, h.q_columns);
            rotate(token + s.key(head), cosine, sine, place, s, h.one);
            h.put_columns(h.one, size, i, h.k_columns), h.put_places(h.one, size, i, h.k_places);
            h.put_places(token + s.value(head), size, i, h.v_places);
            h.put_columns(g + i * s.heads * size, size, i, h.g_columns);
        }
        for (size_t i = length; i < h.t; i++)
            h.put_places(nullptr, 0, i, h.k_places), h.put_places(nullptr, 0, i, h.v_places);
        for (size_t first = 0; first < length; first += h.queries) {
            const size_t count = length - first < h.queries ? length - first : h.queries;
            multiply({h.q + first * h.d, h.d, 1}, count, h.k_places, PANEL * h.d, size, h.scores, h.stride, h.t, false);
            multiply({g + first * s.heads * size, s.heads * size, 1}, count, h.v_places, PANEL * h.d, size, h.slopes,
                     h.stride, h.t, false);
            for (size_t i = 0; i < count; i++) {
                const uint8_t* blocked = s.blocked ? s.blocked + (batch * length + first + i) * length : nullptr;
                const bool sees = weigh(h.scores + i * h.stride, length, h.t, factor, blocked);
                float *p = h.scores + i * h.stride, *dp = h.slopes + i * h.stride;  // which becomes dS
                drop.from(dp, task, first + i, length);
                vec along = fill(0.0f);
                for (size_t t = 0; t < h.t; t += W) along = fma(load(p + t), load(dp + t), along);
                const vec mean = fill(sum(along)), scale = fill(sees ? factor : 0.0f);
                for (size_t t = 0; t < h.t; t += W)
                    store(dp + t, mul(mul(load(p + t), scale), sub(load(dp + t), mean)));
                drop.from(p, task, first + i, length);
            }
            multiply({h.slopes, h.stride, 1}, count, h.k_columns, PANEL * h.t, length, h.dq, h.d, h.d, false);
            multiply({h.scores, 1, h.stride}, length, h.g_columns + first * PANEL, PANEL * h.t, count, h.dv, h.d, h.d, first > 0);
            multiply({h.slopes, 1, h.stride}, length, h.q_columns + first * PANEL, PANEL * h.t, count, h.dk, h.d, h.d, first > 0);
            for (size_t i = 0; i < count; i++) {
                const size_t place = batch * length + first + i;
                turn_back(h.dq + i * h.d, cosine, sine, place, s, h.one, out + place * width + s.query(head));
            }
        }
        for (size_t i = 0; i < length; i++) {
            const size_t place = batch * length + i;
            float* to = out + place * width;
            turn_back(h.dk + i * h.d, cosine, sine, place, s, h.one, to + s.key(head));
            std::memcpy(to + s.value(head), h.dv + i * h.d, size * sizeof(float));
        }
    }
}

}  // namespace gradients
