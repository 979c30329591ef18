// Attention of many new tokens (a prompt): blocks of queries pass over blocks of places, and the softmax is made on the
// way (Milakov and Gimelshein 2018): with a larger score than any before, what was summed so far is scaled down.
// Scores, softmax and sums are FP32. Blocks of places that none of the queries may see are left out.
#pragma once
#include <algorithm>
#include "prefill_products.h"

namespace prefill {

// A row of a head as the products take it, zeros behind its `size`.
template <class T, class E> static inline void copy_row(const T* from, size_t size, size_t depth, E* to) {
    size_t j = 0;
    for (; j + W <= size; j += W) store(to + j, load(from + j));
    for (; j < size; j++) store_float(to + j, to_float(from[j]));
    for (; j < depth; j++) store_float(to + j, 0.0f);
}

// Whether one of the flags is 0: eight at a time.
static inline bool has_zero(const uint8_t* flags, size_t count) {
    const uint64_t ones = 0x0101010101010101u;
    size_t t = 0;
    for (uint64_t eight; t + 8 <= count; t += 8) {
        std::memcpy(&eight, flags + t, 8);
        if (eight != ones) return true;
    }
    for (; t < count; t++) if (!flags[t]) return true;
    return false;
}
static inline bool has_one(const uint8_t* flags, size_t count) {
    uint64_t all = 0;
    size_t t = 0;
    for (uint64_t eight; t + 8 <= count; t += 8) {
        std::memcpy(&eight, flags + t, 8);
        all |= eight;
    }
    for (; t < count; t++) all |= flags[t];
    return all != 0;
}
// One more than the last of `count` flags that is 0, if that is more than `least`; else `least`.
static inline size_t end_of_zeros(const uint8_t* flags, size_t least, size_t count) {
    while (count >= least + 8 && !has_zero(flags + count - 8, 8)) count -= 8;
    while (count > least && flags[count - 1]) count--;
    return count;
}

// `length` new tokens of every row: qkv (batch, length, width), cosine and sine (batch, length, turned), s.blocked (batch,
// length, total). out (batch, length, heads, size), or of the `asked` tokens alone, in their order, (count, heads, size).
template <class T> struct Prompt {
    const T* qkv;
    const float *cosine, *sine;
    T *keys, *values;
    const AttentionShape& s;
    size_t length;
    const int64_t* asked;  // null: all
    size_t count;          // of those that are wanted
    T* out;

    size_t start_of(size_t row) const { return s.lengths ? size_t(s.lengths[row]) : s.total - length; }
    size_t token(size_t query) const { return asked ? size_t(asked[query]) : query; }
    size_t first_query(size_t token) const {  // of this token or a later one
        return asked ? std::lower_bound(asked, asked + count, int64_t(token)) - asked : token;
    }
    Range queries_of(size_t row) const { return {first_query(row * length), first_query((row + 1) * length)}; }

    // Keys and values of some tokens, turned, go to the cache, the queries that are asked for to `out`. All heads in turn,
    // which read the same angles.
    void turn(Range tokens) const {
        size_t query = first_query(tokens.first);
        for (size_t place = tokens.first; place < tokens.last; place++) {
            const size_t row = place / length, to = start_of(row) + place % length;
            for (; query < count && token(query) == place; query++)
                for (size_t head = 0; head < s.heads; head++)
                    rotate(qkv + place * s.width() + s.query(head), cosine, sine, place, s, out + (query * s.heads + head) * s.size);
            for (size_t group = 0; group < s.groups; group++)
                store_key(qkv, cosine, sine, keys, values, s, place, row, group, to);
        }
    }
};

// What a thread works on: keys and values of one group in panels, and one block of queries. E: Products::Element.
template <class T, class Products> class Head {
    typedef typename Products::Element E;
    enum { PANEL = Products::PANEL, PAIR = Products::PAIR, ROWS = Products::ROWS, PLACES = Products::PLACES };
    const Prompt<T>& prompt;
    const AttentionShape& s;
    size_t depth, total = 0, width;  // of a head, in whole blocks; places, those that there is room for
    float factor;                    // of scores, in exponents of 2
    E *keys, *values, *queries, *rows;
    float *scores, *sums, *average, top[ROWS], whole[ROWS];
    bool is_averaged;

    static size_t whole_blocks(size_t count) { return (count + Products::BLOCK - 1) / Products::BLOCK * Products::BLOCK; }

public:
    explicit Head(const Prompt<T>& prompt)
        : prompt(prompt), s(prompt.s), depth(whole_blocks(s.size)), width(whole_blocks(s.total)) {
        factor = 1.44269504f / std::sqrt(float(s.size));
        // depth and width are whole blocks: each begins a cache line
        keys = scratch<Head, E>(2 * width * depth + (ROWS + W) * depth), values = keys + width * depth;
        queries = values + width * depth, rows = queries + ROWS * depth;
        scores = scratch<Head*, float>(ROWS * PLACES + (ROWS + 1) * depth), sums = scores + ROWS * PLACES;
        average = sums + ROWS * depth;
    }

    // All keys and values of a group into panels: keys are columns, of values the columns are.
    void pack(size_t row, size_t group) {
        const size_t cached = row * s.batch_stride + group * s.head_stride;
        total = prompt.start_of(row) + prompt.length, is_averaged = false;
        for (size_t t = 0; t < whole_blocks(total); t += W) {
            const float* words[W];
            const E* some = lines(prompt.keys + cached, t, W);
            for (size_t i = 0; i < W; i++) words[i] = (const float*)(some + i * depth);
            float* to = (float*)(keys + t / PANEL * PANEL * depth) + t % PANEL;
            for (size_t j = 0; j < depth / PAIR; j += W, to += W * PANEL) {
                vec lanes[W];
                transposed(words, j, lanes);
                UNROLL for (int i = 0; i < W; i++) store(to + i * PANEL, lanes[i]);
            }
        }
        for (size_t t = 0; t < whole_blocks(total); t += PAIR) {
            const E* some = lines(prompt.values + cached, t, PAIR);
            E* to = values + t * PANEL;
            for (size_t j = 0; j < depth; j += PANEL, to += PANEL * width) Products::put_rows(some + j, depth, to);
        }
    }

    // `count` queries of a row, from `first` on, against all places that they see.
    void attend(size_t head, size_t first, size_t count) {
        const uint8_t* blocked[ROWS];
        size_t seen = s.blocked ? 0 : total;
        bool is_first = true;
        T* out = prompt.out + (first * s.heads + head) * s.size;  // where the queries are
        for (size_t i = 0; i < count; i++) {
            copy_row(out + i * s.heads * s.size, s.size, depth, queries + i * depth);
            blocked[i] = s.blocked ? s.blocked + prompt.token(first + i) * s.total : nullptr;
            if (s.blocked) seen = end_of_zeros(blocked[i], seen, total);
            top[i] = -INFINITY, whole[i] = 0.0f;
        }
        for (size_t t = 0; t < seen; t += PLACES) {
            const size_t here = seen - t < PLACES ? seen - t : size_t(PLACES), places = whole_blocks(here);
            bool is_seen = !s.blocked;
            for (size_t i = 0; i < count && !is_seen; i++) is_seen = has_zero(blocked[i] + t, here);
            if (!is_seen) continue;
            Products::multiply(queries, depth, count, keys + t * depth, PANEL * depth, depth, places, scores, PLACES, true);
            for (size_t i = 0; i < count; i++)
                find_top(i, here, places, s.blocked ? blocked[i] + t : nullptr, is_first);
            for (size_t i = 0; i < count; i++) weigh(i, places);  // one need not wait for the other
            Products::multiply((const E*)scores, PLACES * PAIR, count, values + t * PANEL, PANEL * width, places, depth, sums,
                               depth, is_first);
            is_first = false;
        }
        for (size_t i = 0; i < count; i++) finish(i, out + i * s.heads * s.size);
    }

private:
    // Places t ... t + count - 1 of `from`, rows of `depth` numbers, zeros behind the last place: where they lie, or copied.
    const E* lines(const T* from, size_t t, size_t count) {
        from += t * s.size;
        if (std::is_same<T, E>::value && depth == s.size && t + count <= total) return (const E*)from;
        for (size_t i = 0; i < count; i++, from += s.size)
            copy_row(t + i < total ? from : nullptr, t + i < total ? s.size : 0, depth, rows + i * depth);
        return rows;
    }

    // The largest of a query's scores so far; what was summed is scaled to it.
    inline void find_top(size_t i, size_t here, size_t places, const uint8_t* forbidden, bool is_first) {
        float* row = scores + i * PLACES;
        if (forbidden && has_one(forbidden, here)) {
            size_t t = 0;
            for (; t + W <= here; t += W) store(row + t, hidden(load(row + t), forbidden + t));
            for (; t < here; t++) row[t] = forbidden[t] ? -INFINITY : row[t];
        }
        for (size_t t = here; t < places; t++) row[t] = -INFINITY;
        const float before = top[i];
        vec most[2] = {fill(before), fill(before)};
        for (size_t t = 0; t < places; t += 2 * W)
            UNROLL for (int c = 0; c < 2; c++) most[c] = larger(most[c], load(row + t + c * W));
        top[i] = largest(larger(most[0], most[1]));
        if (top[i] > before && !is_first) {
            const float less = before == -INFINITY ? 0.0f : std::exp2((before - top[i]) * factor);
            whole[i] *= less;
            float* sum = sums + i * depth;
            for (size_t j = 0, end = depth; j < end; j += W) store(sum + j, mul(load(sum + j), fill(less)));
        }
    }

    // The scores of a query become weights, in their place.
    inline void weigh(size_t i, size_t places) {
        const float* row = scores + i * PLACES;
        const vec shift = fill(top[i] == -INFINITY ? 0.0f : -factor * top[i]), by = fill(factor);
        E* to = (E*)row;
        vec all[2] = {fill(0.0f), fill(0.0f)};
        for (size_t t = 0; t < places; t += 2 * W)
            UNROLL for (int c = 0; c < 2; c++) {
                const vec e = Products::weight(fma(load(row + t + c * W), by, shift));
                all[c] = add(all[c], e);
                store(to + t + c * W, e);
            }
        whole[i] += sum(add(all[0], all[1]));
    }

    // A query that saw nothing gets an even average of all values, as in the reference.
    inline void finish(size_t i, T* out) {
        const bool is_blind = whole[i] == 0.0f;
        if (is_blind && !is_averaged) average_values();
        const float* from = is_blind ? average : sums + i * depth;
        const float scale = is_blind ? 1.0f / total : 1.0f / whole[i];
        size_t j = 0;
        for (; j + W <= s.size; j += W) store(out + j, mul(load(from + j), fill(scale)));
        for (; j < s.size; j++) store_float(out + j, from[j] * scale);
    }

    void average_values() {
        is_averaged = true;
        for (size_t j = 0; j < s.size; j++) {
            const E* column = values + j / PANEL * PANEL * width + j % PANEL * PAIR;
            average[j] = 0.0f;
            for (size_t t = 0; t < total; t++) average[j] += to_float(column[t / PAIR * PANEL * PAIR + t % PAIR]);
        }
    }
};

// Task [row][group][part]: of a group of heads all queries, or where there are few groups some, in blocks.
template <class Products, class T> static void attend_task(const Prompt<T>& prompt, size_t parts, size_t task) {
    const AttentionShape& s = prompt.s;
    enum { ROWS = Products::ROWS };
    const size_t row = task / parts / s.groups, group = task / parts % s.groups, shared = s.heads / s.groups;
    const Range queries = prompt.queries_of(row);
    const size_t blocks = (queries.last - queries.first + ROWS - 1) / ROWS;
    const Range pieces = share(shared * blocks, 1, task % parts, parts);
    if (pieces.first == pieces.last) return;
    typename Products::Scope scope;
    Head<T, Products> head(prompt);
    head.pack(row, group);
    for (size_t piece = pieces.first; piece < pieces.last; piece++) {
        const size_t first = queries.first + piece % blocks * ROWS, left = queries.last - first;
        head.attend(group * shared + piece / blocks, first, left < ROWS ? left : size_t(ROWS));
    }
}

}  // namespace prefill
