// Rows of a packed matrix as elements in the order of columns, scaled and rounded to their type or as integers, for products of
// many rows (tile.h).
#pragma once
#include "packed_product.h"
#include "words.h"

// Scales of one row as floats, zeros behind the last: as they are, where a group is the whole row, or 2^n columns and whole
// vectors, so that a shift finds a vector's; otherwise one for every column.
enum { BLOCK_OF_COLUMNS = 4 * W };
static inline bool are_found_by_shift(const Packed& w) {
    return w.group == w.k || (w.group % W == 0 && (w.group & (w.group - 1)) == 0);
}
static inline size_t places_of_scales(const Packed& w) {
    return are_found_by_shift(w) ? w.groups() + W : (w.k + BLOCK_OF_COLUMNS) / W * W + W;
}
static inline void scales_of_row(const Packed& w, size_t row, float* to) {
    const float* end = to + places_of_scales(w) - W;
    const size_t groups = w.groups(), times = are_found_by_shift(w) ? 1 : w.group;
    BY_TYPE(w.scale_type, to = repeated_scales((const T*)w.scale + row * groups, groups, times, to))
    do store(to, fill(0.0f)), to += W; while (to < end);
}

// Calls use(bytes, column) for the blocks of columns first ... first + columns of a row, zeros behind the last one, up to a
// whole block; first begins one.
template <int BITS, class Use>
static inline void in_blocks(const Packed& w, size_t row, size_t first, size_t columns, Use use) {
    enum { BYTES = BLOCK_OF_COLUMNS * BITS / 8 };
    const size_t bytes = w.row_bytes(), end = first + columns;
    const uint8_t* data = w.weight + row * bytes + first * BITS / 8;
    for (size_t column = first; column < end; column += BLOCK_OF_COLUMNS, data += BYTES) {
        prefetch(data + ROWS_AHEAD * bytes);
        uint8_t part[BYTES];
        const uint8_t* some = data;
        if (column + BLOCK_OF_COLUMNS > w.k) {
            std::memset(part, 0, BYTES);
            if (column < w.k) std::memcpy(part, data, (w.k - column) * BITS / 8);
            some = part;
        }
        use(some, column);
    }
}

template <int BITS, bool BY_SHIFT, class E>
static void unpack(const Packed& w, size_t row, size_t first, size_t columns, const float* scales, E* to) {
    const size_t shift = w.group == w.k ? 8 * sizeof(size_t) - 1 : __builtin_ctzll(w.group);
    in_blocks<BITS>(w, row, first, columns, [&](const uint8_t* some, size_t column) {
        vec scaled[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const vec numbers = BITS == 4 ? load_halves(some + i * W / 2) : load((const int8_t*)some + i * W);
            scaled[i] = mul(numbers, BY_SHIFT ? fill(scales[(column + i * W) >> shift]) : load(scales + column + i * W));
        }
        store_two(to, scaled[0], scaled[1]);
        store_two(to + 2 * W, scaled[2], scaled[3]);
        to += BLOCK_OF_COLUMNS;
    });
}
template <int BITS, class E>
static void unpack_columns(const Packed& w, size_t row, size_t first, size_t columns, const float* scales, E* to) {
    if (are_found_by_shift(w)) unpack<BITS, true>(w, row, first, columns, scales, to);
    else unpack<BITS, false>(w, row, first, columns, scales, to);
}
#ifdef GLM_PAIRS
template <int BITS>  // integers, without their scales
static void unpack_columns(const Packed& w, size_t row, size_t first, size_t columns, const float*, int16_t* to) {
    in_blocks<BITS>(w, row, first, columns, [&](const uint8_t* some, size_t) {
        store_words(to, widened<BITS>(some)), store_words(to + 2 * W, widened<BITS>(some + 2 * W * BITS / 8));
        to += BLOCK_OF_COLUMNS;
    });
}
#endif
