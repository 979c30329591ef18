// Attention of many new tokens (a prompt): blocks of queries pass over blocks of places, and the softmax is made on the
// way (Milakov and Gimelshein 2018): with a larger score than any before, what was summed so far is scaled down.
// Scores, softmax and sums are FP32. Blocks of places that none of the queries may see are left out.
#pragma once
#include "prefill_products.h"

namespace prefill {

enum { PLACES = 256 };  // that a block of queries meets at a time: scores and weights take 48 KB, nearest caches

// Memory of a thread that is kept from call to call; each piece begins a cache line.
class Room {
    std::vector<uint8_t> bytes;
    size_t used = 0;

public:
    void begin(size_t size) {
        if (bytes.size() < size + 64) bytes.resize(size + 64);
        used = -size_t(bytes.data()) % 64;
    }
    template <class E> E* take(size_t count) {
        E* piece = (E*)(bytes.data() + used);
        used += (count * sizeof(E) + 63) / 64 * 64;
        return piece;
    }
};

// A row of a head as the products take it, zeros behind its `size`.
template <class T, class E> static inline void copy_row(const T* from, size_t size, size_t depth, E* to) {
    size_t j = 0;
    for (; j + W <= size; j += W) store(to + j, load(from + j));
    for (; j < size; j++) store_float(to + j, to_float(from[j]));
    for (; j < depth; j++) store_float(to + j, 0.0f);
}

// What a thread works on: keys and values of one group in panels, and one block of queries. E: Products::Element.
template <class T, class Products> class Head {
    typedef typename Products::Element E;
    enum { PANEL = Products::PANEL, PAIR = Products::PAIR };
    size_t size, depth, total = 0, width;  // of a head, in whole blocks; places, those that there is room for
    float factor;                          // of scores, in exponents of what Products::weight takes powers of
    E *keys, *values, *queries, *weights, *rows;
    float *scores, *sums, *turned, *average, top[BLOCK], whole[BLOCK];
    const T* cached_values;
    bool is_averaged;

public:
    Head(const AttentionShape& s, Room& room) : size(s.size), depth(whole_blocks(s.size)), width(whole_blocks(s.total)) {
        factor = Products::BASE / std::sqrt(float(size));
        room.begin(sizeof(E) * (2 * width * depth + BLOCK * (depth + PLACES) + PAIR * depth) +
                   sizeof(float) * (BLOCK * (PLACES + depth) + 2 * depth) + 9 * 64);
        keys = room.take<E>(width * depth), values = room.take<E>(width * depth);
        queries = room.take<E>(BLOCK * depth), weights = room.take<E>(BLOCK * PLACES), rows = room.take<E>(PAIR * depth);
        scores = room.take<float>(BLOCK * PLACES), sums = room.take<float>(BLOCK * depth);
        turned = room.take<float>(depth), average = room.take<float>(depth);
    }

    float* scratch() { return turned; }

    // Keys and values (count, size) into panels: keys are columns, of values the columns are.
    void pack(const T* from_keys, const T* from_values, size_t count) {
        total = count, cached_values = from_values, is_averaged = false;
        const size_t places = whole_blocks(total);
        for (size_t t = 0; t < places; t++) {
            copy_row(from_keys + (t < total ? t : 0) * size, t < total ? size : 0, depth, rows);
            E* to = keys + t / PANEL * PANEL * depth + t % PANEL * PAIR;
            for (size_t j = 0; j < depth; j += PAIR, to += PANEL * PAIR) std::memcpy(to, rows + j, PAIR * sizeof(E));
        }
        for (size_t t = 0; t < places; t += PAIR) {
            for (size_t i = 0; i < PAIR; i++)
                copy_row(from_values + (t + i < total ? t + i : 0) * size, t + i < total ? size : 0, depth, rows + i * depth);
            E* to = values + t * PANEL;
            for (size_t j = 0; j < depth; j += PANEL, to += PANEL * width) Products::put_rows(rows + j, depth, to);
        }
    }

    // `count` queries, `stride` apart, against all places; their results take their places. blocked: of the first of them,
    // or null.
    void attend(size_t count, const uint8_t* blocked, size_t blocked_stride, T* queries_then_out, size_t stride) {
        bool is_first = true;
        for (size_t i = 0; i < count; i++) {
            copy_row(queries_then_out + i * stride, size, depth, queries + i * depth);
            top[i] = -INFINITY, whole[i] = 0.0f;
        }
        for (size_t t = 0; t < total; t += PLACES) {
            const size_t here = total - t < PLACES ? total - t : size_t(PLACES), places = whole_blocks(here);
            const uint8_t* forbidden = blocked ? blocked + t : nullptr;
            size_t hidden = 0;
            for (size_t i = 0; forbidden && i < count; i++) hidden += count_of(forbidden + i * blocked_stride, here);
            if (hidden == count * here) continue;
            if (!hidden) forbidden = nullptr;
            for (size_t c = 0; c < places; c += BLOCK)
                Products::multiply(queries, depth, count, keys + (t + c) * depth, PANEL * depth, depth, scores + c, PLACES,
                                   true);
            for (size_t i = 0; i < count; i++)
                weigh(i, here, places, forbidden ? forbidden + i * blocked_stride : nullptr, is_first);
            for (size_t c = 0; c < depth; c += BLOCK)
                Products::multiply(weights, PLACES, count, values + c * width + t * PANEL, PANEL * width, places, sums + c,
                                   depth, is_first);
            is_first = false;
        }
        for (size_t i = 0; i < count; i++) finish(i, queries_then_out + i * stride);
    }

private:
    static inline size_t count_of(const uint8_t* flags, size_t count) {  // of ones
        size_t result = 0, t = 0;
        for (uint64_t eight; t + 8 <= count; t += 8) {
            std::memcpy(&eight, flags + t, 8);
            result += eight * 0x0101010101010101u >> 56;
        }
        for (; t < count; t++) result += flags[t];
        return result;
    }

    // A query's scores of a block become weights; what came before is scaled to the largest score so far.
    inline void weigh(size_t i, size_t here, size_t places, const uint8_t* forbidden, bool is_first) {
        float* row = scores + i * PLACES;
        for (size_t t = 0; forbidden && t < here; t++) row[t] = forbidden[t] ? -INFINITY : row[t];
        for (size_t t = here; t < places; t++) row[t] = -INFINITY;
        vec most = fill(top[i]);
        for (size_t t = 0; t < places; t += W) most = larger(most, load(row + t));
        const float before = top[i];
        top[i] = largest(most);
        if (top[i] > before && !is_first) {
            const float less = before == -INFINITY ? 0.0f : std::exp((before - top[i]) * factor / Products::BASE);
            whole[i] *= less;
            for (size_t j = 0; j < depth; j += W) store(sums + i * depth + j, mul(load(sums + i * depth + j), fill(less)));
        }
        const float shift = top[i] == -INFINITY ? 0.0f : -factor * top[i];
        whole[i] += forbidden || here < places ? powers<true>(i, places, shift) : powers<false>(i, places, shift);
    }

    template <bool CAN_BE_ZERO> inline float powers(size_t i, size_t places, float shift) {
        const float* row = scores + i * PLACES;
        E* to = weights + i * PLACES;
        vec all = fill(0.0f);
        for (size_t t = 0; t < places; t += W) {
            vec e = Products::template weight<CAN_BE_ZERO>(fma(load(row + t), fill(factor), fill(shift)));
            all = add(all, e);
            store(to + t, e);
        }
        return sum(all);
    }

    // A query that saw nothing gets an even average of all values, as in the reference.
    inline void finish(size_t i, T* out) {
        const bool is_blind = whole[i] == 0.0f;
        if (is_blind && !is_averaged) average_values();
        const float* from = is_blind ? average : sums + i * depth;
        const float scale = is_blind ? 1.0f / total : 1.0f / whole[i];
        size_t j = 0;
        for (; j + W <= size; j += W) store(out + j, mul(load(from + j), fill(scale)));
        for (; j < size; j++) store_float(out + j, from[j] * scale);
    }

    void average_values() {
        is_averaged = true;
        for (size_t j = 0; j < size; j++) average[j] = 0.0f;
        for (size_t t = 0; t < total; t++)
            for (size_t j = 0; j < size; j++) average[j] += to_float(cached_values[t * size + j]);
    }
};

// A token's queries, turned, to `out` (heads, size), its keys and values to place `to` of the cache. All heads in turn,
// which read the same angles.
template <class T>
static inline void turn(const T* qkv, const float* cosine, const float* sine, T* keys, T* values, const AttentionShape& s,
                        size_t row, size_t place, size_t to, float* turned, T* out) {
    for (size_t head = 0; head < s.heads; head++) {
        rotate(qkv + place * s.width() + s.query(head), cosine, sine, place, s, turned);
        copy_row(turned, s.size, s.size, out + (place * s.heads + head) * s.size);
    }
    for (size_t group = 0; group < s.groups; group++)
        store_key(qkv, cosine, sine, keys, values, s, place, row, group, to, turned);
}

// This thread's part. `length` tokens of every row are new; qkv (batch, length, width), cosine and sine (batch, length,
// turned), out (batch, length, heads, size); s.blocked (batch, length, total). First some of the tokens, whose turned
// queries wait in `out`; then, once all have been there (`wait` is the team's barrier), some of the heads: of each group
// of them all queries, or where there are few groups some, in blocks.
template <class Products, class T, class Wait>
static void attend_part(const T* qkv, const float* cosine, const float* sine, T* keys, T* values, const AttentionShape& s,
                        size_t length, T* out, int thread, int threads, Wait wait) {
    static thread_local Room room;
    typename Products::Scope scope;
    Head<T, Products> head(s, room);
    auto start_of = [&](size_t row) { return s.lengths ? size_t(s.lengths[row]) : s.total - length; };
    const Range tokens = share(s.batch * length, 1, thread, threads);
    for (size_t token = tokens.first; token < tokens.last; token++) {
        const size_t row = token / length;
        turn(qkv, cosine, sine, keys, values, s, row, token, start_of(row) + token % length, head.scratch(), out);
    }
    wait();
    const size_t shared = s.heads / s.groups, groups = s.batch * s.groups, blocks = (length + BLOCK - 1) / BLOCK;
    const size_t work = shared * blocks, wanted = threads == 1 ? 1 : (4 * threads + groups - 1) / groups;
    const size_t parts = wanted < work ? wanted : work;  // of a group
    size_t packed = size_t(-1);
    const Range mine = share(groups * parts, 1, thread, threads);
    for (size_t task = mine.first; task < mine.last; task++) {
        const size_t row = task / parts / s.groups, group = task / parts % s.groups;
        if (packed != task / parts) {
            const size_t cached = row * s.batch_stride + group * s.head_stride;
            head.pack(keys + cached, values + cached, start_of(row) + length);
            packed = task / parts;
        }
        const Range pieces = share(work, 1, task % parts, parts);
        for (size_t piece = pieces.first; piece < pieces.last; piece++) {
            const size_t number = group * shared + piece / blocks, first = piece % blocks * BLOCK;
            const size_t count = length - first < BLOCK ? length - first : size_t(BLOCK), token = row * length + first;
            head.attend(count, s.blocked ? s.blocked + token * s.total : nullptr, s.total,
                        out + (token * s.heads + number) * s.size, s.heads * s.size);
        }
    }
}

}  // namespace prefill
