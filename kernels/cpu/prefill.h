// Attention of many new tokens (a prompt) in bf16: both products by the instruction that multiplies pairs of bf16 and
// adds in FP32. Torch's own reaches a third of the processor's bf16 rate here. Scores and softmax stay in FP32.
#pragma once
#include "attention.h"

#ifdef GLM_BF16_DOTS
namespace prefill {

enum { KEYS = 64, QUERIES = 4 };  // the tile of scores held in registers: 4 queries against 4 vectors of 16 keys

static inline __m512bh pair_of(const bf16* p) {  // two neighbours of a row, in all lanes
    int pair;
    std::memcpy(&pair, p, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}
static inline size_t whole_tiles(size_t total) { return (total + KEYS - 1) / KEYS * KEYS; }

// keys (total, size) -> [key / 16][size / 2][key % 16] pairs along the head; keys behind `total` are zero.
static void pack_keys(const bf16* keys, size_t total, size_t size, bf16* packed) {
    for (size_t t = 0; t < whole_tiles(total); t++) {
        bf16* to = packed + t / 16 * 16 * size + t % 16 * 2;
        for (size_t j = 0; j < size; j += 2, to += 32)
            if (t < total) std::memcpy(to, keys + t * size + j, 4);
            else std::memset(to, 0, 4);
    }
}

// values (total, size) -> [place / 2][size] pairs of neighbouring places; places behind `total` are zero.
static void pack_values(const bf16* values, size_t total, size_t size, bf16* packed) {
    const bf16 zero = {0};
    for (size_t t = 0; t < whole_tiles(total); t += 2)
        for (size_t j = 0; j < size; j++) {
            packed[t * size + 2 * j] = t < total ? values[t * size + j] : zero;
            packed[t * size + 2 * j + 1] = t + 1 < total ? values[(t + 1) * size + j] : zero;
        }
}

// scores[i][t] = query[i] . key[t] for M queries and all keys, whole tiles.
template <int M>
static inline void scores_of(const bf16* queries, const bf16* packed, size_t total, size_t size, float* scores) {
    const size_t width = whole_tiles(total);
    for (size_t t = 0; t < width; t += KEYS) {
        __m512 sums[M][4];
        UNROLL for (int i = 0; i < M; i++)
            UNROLL for (int c = 0; c < 4; c++) sums[i][c] = _mm512_setzero_ps();
        const bf16* tile = packed + t * size;
        for (size_t j = 0; j < size / 2; j++) {
            __m512bh key[4];
            UNROLL for (int c = 0; c < 4; c++)
                key[c] = (__m512bh)_mm512_loadu_si512(tile + c * 16 * size + j * 32);
            UNROLL for (int i = 0; i < M; i++) {
                __m512bh q = pair_of(queries + i * size + 2 * j);
                UNROLL for (int c = 0; c < 4; c++) sums[i][c] = _mm512_dpbf16_ps(sums[i][c], key[c], q);
            }
        }
        UNROLL for (int i = 0; i < M; i++)
            UNROLL for (int c = 0; c < 4; c++) _mm512_storeu_ps(scores + i * width + t + c * 16, sums[i][c]);
    }
}

// out[i] = sum over places of weights[i][t] * values[t], C vectors of the head from `column` on.
template <int M, int C>
static inline void values_of(const bf16* weights, const bf16* packed, size_t width, size_t size, size_t column,
                             const float* scale, bf16* out, size_t stride) {
    __m512 sums[M][C];
    UNROLL for (int i = 0; i < M; i++)
        UNROLL for (int c = 0; c < C; c++) sums[i][c] = _mm512_setzero_ps();
    for (size_t t = 0; t < width; t += 2) {
        __m512bh value[C];
        UNROLL for (int c = 0; c < C; c++)
            value[c] = (__m512bh)_mm512_loadu_si512(packed + t * size + 2 * column + c * 32);
        UNROLL for (int i = 0; i < M; i++) {
            __m512bh p = pair_of(weights + i * width + t);
            UNROLL for (int c = 0; c < C; c++) sums[i][c] = _mm512_dpbf16_ps(sums[i][c], value[c], p);
        }
    }
    UNROLL for (int i = 0; i < M; i++)
        UNROLL for (int c = 0; c < C; c++) store(out + i * stride + column + c * 16, mul(sums[i][c], fill(scale[i])));
}

// e^(factor * (score - largest)) in bf16, zero where forbidden or behind `total`; returns 1 / sum.
static inline float weights_of(float* scores, size_t total, float factor, const uint8_t* blocked, bf16* weights) {
    const size_t width = whole_tiles(total);
    bool any = false;
    for (size_t t = 0; blocked && t < total && !any; t++) any = !blocked[t];
    if (any)
        for (size_t t = 0; t < total; t++) scores[t] = blocked[t] ? -INFINITY : scores[t];
    if (blocked && !any)
        for (size_t t = 0; t < total; t++) scores[t] = 0.0f;
    for (size_t t = total; t < width; t++) scores[t] = -INFINITY;
    vec top = fill(-INFINITY), sums = fill(0.0f);
    for (size_t t = 0; t < width; t += W) top = larger(top, load(scores + t));
    vec shift = fill(-factor * largest(top)), scale = fill(factor);
    for (size_t t = 0; t < width; t += W) {
        vec e = exponential(fma(load(scores + t), scale, shift));
        sums = add(sums, e);
        store(weights + t, e);
    }
    return 1.0f / sum(sums);
}

template <int M>
static inline void query_block(const bf16* queries, const bf16* keys, const bf16* values, size_t total, size_t size,
                               const uint8_t* blocked, float* scores, bf16* weights, bf16* out, size_t stride) {
    const size_t width = whole_tiles(total);
    float scale[M];
    scores_of<M>(queries, keys, total, size, scores);
    for (int i = 0; i < M; i++)
        scale[i] = weights_of(scores + i * width, total, 1.0f / std::sqrt(float(size)),
                              blocked ? blocked + i * total : nullptr, weights + i * width);
    size_t j = 0;
    for (; j + 64 <= size; j += 64) values_of<M, 4>(weights, values, width, size, j, scale, out, stride);
    for (; j < size; j += 16) values_of<M, 1>(weights, values, width, size, j, scale, out, stride);
}

// This thread's heads: s.total - length places are cached, `length` tokens are new. size is a multiple of 16.
// qkv (batch, length, width), cosine and sine (batch, length, turned), out (batch, length, heads, size).
template <class Wait>
static void attend_part(const bf16* qkv, const float* cosine, const float* sine, bf16* keys, bf16* values,
                        const AttentionShape& s, size_t length, bf16* out, int thread, int threads, Wait wait) {
    const size_t width = whole_tiles(s.total), start = s.total - length, size = s.size;
    std::vector<bf16> packed(2 * width * size), queries(length * size), weights(QUERIES * width);
    std::vector<float> scores(QUERIES * width), turned(size);
    bf16 *packed_keys = packed.data(), *packed_values = packed_keys + width * size;
    const bool are_shared = s.groups < s.heads;
    auto keep = [&](size_t row, size_t group) {
        for (size_t i = 0; i < length; i++)
            store_key(qkv, cosine, sine, keys, values, s, row * length + i, row, group, start + i, turned.data());
    };
    if (are_shared) {
        Range tasks = share(s.batch * s.groups, 1, thread, threads);
        for (size_t task = tasks.first; task < tasks.last; task++) keep(task / s.groups, task % s.groups);
        wait();
    }
    size_t packed_of = size_t(-1);  // whose keys and values are in order: neighbouring heads share them
    Range tasks = share(s.batch * s.heads, 1, thread, threads);
    for (size_t task = tasks.first; task < tasks.last; task++) {
        const size_t row = task / s.heads, head = task % s.heads, group = s.group_of(head);
        const size_t cached = row * s.batch_stride + group * s.head_stride;
        if (!are_shared) keep(row, group);
        for (size_t i = 0; i < length; i++) {
            const size_t place = row * length + i;
            rotate(qkv + place * s.width() + s.query(head), cosine, sine, place, s, turned.data());
            for (size_t j = 0; j < size; j += W) store(queries.data() + i * size + j, load(turned.data() + j));
        }
        if (packed_of != row * s.groups + group) {
            packed_of = row * s.groups + group;
            pack_keys(keys + cached, s.total, size, packed_keys);
            pack_values(values + cached, s.total, size, packed_values);
        }
        const size_t stride = s.heads * size;
        for (size_t i = 0; i < length; i += QUERIES) {
            const bf16* q = queries.data() + i * size;
            const uint8_t* forbidden = s.blocked ? s.blocked + (row * length + i) * s.total : nullptr;
            bf16* to = out + ((row * length + i) * s.heads + head) * size;
#define BLOCK(M) query_block<M>(q, packed_keys, packed_values, s.total, size, forbidden, scores.data(), \
                                weights.data(), to, stride)
            switch (length - i) {
                case 1: BLOCK(1); break;
                case 2: BLOCK(2); break;
                case 3: BLOCK(3); break;
                default: BLOCK(4);
            }
#undef BLOCK
        }
    }
}

}  // namespace prefill
#endif
