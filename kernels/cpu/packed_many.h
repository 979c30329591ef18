// Products of many rows with packed weights: a block of weights is unpacked once, scaled and rounded to the type of the
// products (float; bf16 where pairs of it are multiplied), and then meets all rows of x from the caches.
#pragma once
#include "packed.h"

static const size_t BLOCK_ROWS = 64, BLOCK_COLUMNS = 2048;  // of weights in the second cache; four of their rows in the first

// `units` units of one row of weights -> E, in the order of x. `scales` as scales_of leaves them, from the first unit on.
template <int BITS, Scaling S, int P> static ALWAYS void unpacked(words a, const float* scales, vec scale, vec (&to)[32 / BITS]) {
    to[P] = weight_at<BITS, P>(a);
    if (S == BY_COLUMN) to[P] = mul(to[P], load(scales + P * W));
    else if (S != BY_ROW) to[P] = mul(to[P], scale);
    if constexpr (P + 1 < 32 / BITS) unpacked<BITS, S, P + 1>(a, scales, scale, to);
}
template <int BITS, Scaling S, class E>
static __attribute__((noinline)) void unpack(const Packed& w, size_t row, size_t first, size_t units, const float* scales, words lanes, E* to) {
    typedef Order<BITS> O;
    const size_t bytes = w.row_bytes(), groups = O::UNIT / w.group;
    const uint8_t* data = w.weight + row * bytes;
    for (size_t unit = first; unit < first + units; unit++, to += O::UNIT) {
        const size_t at = unit * O::BYTES;
        prefetch(data + at + AHEAD);
        words a = at + O::BYTES <= bytes ? load_words(data + at) : load_words(data + at, bytes - at);
        vec values[O::LANE], scale = fill(0.0f);
        if (S != BY_ROW && S != BY_COLUMN) scale = unit_scale<BITS, S>(scales, unit, groups, lanes);
        unpacked<BITS, S, 0>(a, scales + unit * O::UNIT, scale, values);
        UNROLL for (int p = 0; p < O::LANE; p++) store(to + p * W, values[p]);
    }
}

template <int BITS_, class E> struct Many {
    enum { BITS = BITS_, FEW_ROWS = false };
    typedef Order<BITS> O;
    typedef E X;
    static size_t padded(size_t k) { return O::padded(k); }
    template <class T> static void arrange(const T* x, const Packed& w, E* to) { InFloats<BITS>::arrange(x, w.k, to); }

    template <Scaling S> static void rows(const Packed& w, const E* x, size_t m, const Target& to, Range rows) {
        const size_t columns = O::padded(w.k), places = S == BY_ROW ? 0 : scale_places<BITS, S>(w);
        E* block = scratch<Many, E>(BLOCK_ROWS * BLOCK_COLUMNS);
        float* scales = scratch<Packed, float>(BLOCK_ROWS * places);
        float* sums = scratch<E, float>(BLOCK_ROWS * m);
        const words lanes = lanes_of(O::LANE, w.group);
        for (size_t row = rows.first; row < rows.last; row += BLOCK_ROWS) {
            const size_t count = rows.last - row < BLOCK_ROWS ? rows.last - row : BLOCK_ROWS;
            std::memset(sums, 0, BLOCK_ROWS * m * sizeof(float));
            for (size_t r = 0; r < count; r++) scales_of<BITS, S>(w, row + r, scales + r * places);
            for (size_t j = 0; j < columns; j += BLOCK_COLUMNS) {
                const size_t length = columns - j < BLOCK_COLUMNS ? columns - j : BLOCK_COLUMNS;
                for (size_t r = 0; r < count; r++)
                    unpack<BITS, S>(w, row + r, j / O::UNIT, length / O::UNIT, scales + r * places, lanes, block + r * length);
                for (size_t i = 0; i < m; i += 4) {
                    const E* from = x + i * columns + j;
                    switch (m - i) {
                        case 1: products<1>(block, count, length, from, columns, sums + i * BLOCK_ROWS); break;
                        case 2: products<2>(block, count, length, from, columns, sums + i * BLOCK_ROWS); break;
                        case 3: products<3>(block, count, length, from, columns, sums + i * BLOCK_ROWS); break;
                        default: products<4>(block, count, length, from, columns, sums + i * BLOCK_ROWS);
                    }
                }
            }
            for (size_t r = 0; r < count; r++) {
                const float scale = S == BY_ROW ? number(w.scale, w.scale_type, row + r) : 1.0f;
                to.put(0, m, row + r, sums + r, scale, BLOCK_ROWS);
            }
        }
    }
    // Rows of w as E, scaled, in the order of x: for products that are somebody else's.
    template <Scaling S> static void unpack_rows(const Packed& w, Range rows, E* to) {
        const size_t units = O::padded(w.k) / O::UNIT;
        float* scales = scratch<Packed, float>(scale_places<BITS, S>(w) + units);
        const words lanes = lanes_of(O::LANE, w.group);
        for (size_t row = rows.first; row < rows.last; row++, to += units * O::UNIT)
            if (S == BY_ROW) {
                for (size_t unit = 0; unit < units; unit++) scales[unit] = number(w.scale, w.scale_type, row);
                unpack<BITS, BY_UNIT>(w, row, 0, units, scales, lanes, to);
            } else {
                scales_of<BITS, S>(w, row, scales);
                unpack<BITS, S>(w, row, 0, units, scales, lanes, to);
            }
    }
    template <int M>  // sums[i][r] += block[r] . x[i]
    static void products(const E* block, size_t count, size_t length, const E* x, size_t stride, float* sums) {
        size_t r = 0;
        for (; r + 4 <= count; r += 4) add_products<4, M>(block + r * length, length, x, stride, sums + r);
        for (; r < count; r++) add_products<1, M>(block + r * length, length, x, stride, sums + r);
    }
    template <int R, int M>
    static void add_products(const E* block, size_t length, const E* x, size_t stride, float* sums) {
        float found[R][M];
        Dots<R, M, E>::run(block, length, x, stride, 0, found);
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int i = 0; i < M; i++) sums[i * BLOCK_ROWS + r] += found[r][i];
    }
};
