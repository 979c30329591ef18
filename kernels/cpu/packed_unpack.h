// Rows of a packed matrix as scaled elements, rounded to their type, for products of many rows (tile.h).
#pragma once
#include "packed.h"

// `units` units of one row of weights -> E, in the order of x. `scales` as scales_of leaves them, from the first unit on.
template <int BITS, Scaling S, int P> static ALWAYS void unpacked(words a, const float* scales, vec scale, vec (&to)[32 / BITS]) {
    to[P] = weight_at<BITS, P>(a);
    if (S == BY_COLUMN) to[P] = mul(to[P], load(scales + P * W));
    else if (S != BY_ROW) to[P] = mul(to[P], scale);
    if constexpr (P + 1 < 32 / BITS) unpacked<BITS, S, P + 1>(a, scales, scale, to);
}
template <int BITS, Scaling S, class E>
static __attribute__((noinline)) void unpack(const Packed& w, size_t row, size_t first, size_t units, const float* scales, E* to) {
    typedef Order<BITS> O;
    const size_t bytes = w.row_bytes(), groups = O::UNIT / w.group;
    const words lanes = S == BY_PARTS ? lanes_of(O::LANE, w.group) : words();  // they take longer than some units
    const uint8_t* data = w.weight + row * bytes;
    for (size_t unit = first; unit < first + units; unit++, to += O::UNIT) {
        const size_t at = unit * O::BYTES;
        prefetch(data + at + 8192);  // many rows: the arithmetic takes longer than the memory
        words a = at + O::BYTES <= bytes ? load_words(data + at) : load_words(data + at, bytes - at);
        vec values[O::LANE], scale = fill(0.0f);
        if (S != BY_ROW && S != BY_COLUMN) scale = unit_scale<BITS, S>(scales, unit, groups, lanes);
        unpacked<BITS, S, 0>(a, scales + unit * O::UNIT, scale, values);
        UNROLL for (int p = 0; p < O::LANE; p++) store(to + p * W, values[p]);
    }
}


// One scale for the whole row is taken as one for each unit.
template <int BITS> static size_t places_of_scales(const Packed& w) {
    typedef Order<BITS> O;
    switch (O::scaling(w)) {
        case BY_ROW: return O::padded(w.k) / O::UNIT + W;
        case BY_UNIT: return scale_places<BITS, BY_UNIT>(w);
        case BY_PARTS: return scale_places<BITS, BY_PARTS>(w);
        case BY_LANE: return scale_places<BITS, BY_LANE>(w);
        default: return scale_places<BITS, BY_COLUMN>(w);
    }
}
template <int BITS> static void scales_of_row(const Packed& w, size_t row, float* to) {
    typedef Order<BITS> O;
    switch (O::scaling(w)) {
        case BY_ROW: {
            const float scale = number(w.scale, w.scale_type, row);
            for (size_t unit = 0; unit < O::padded(w.k) / O::UNIT; unit++) to[unit] = scale;
            return;
        }
        case BY_UNIT: return scales_of<BITS, BY_UNIT>(w, w.groups(), row, 1, 0, to);
        case BY_PARTS: return scales_of<BITS, BY_PARTS>(w, w.groups(), row, 1, 0, to);
        case BY_LANE: return scales_of<BITS, BY_LANE>(w, w.groups(), row, 1, 0, to);
        case BY_COLUMN: return scales_of<BITS, BY_COLUMN>(w, w.groups(), row, 1, 0, to);
    }
}
template <int BITS, class E>
static void unpack_columns(const Packed& w, size_t row, size_t first, size_t columns, const float* scales, E* to) {
    typedef Order<BITS> O;
    const size_t unit = first / O::UNIT, units = columns / O::UNIT;
    switch (O::scaling(w)) {
        case BY_ROW:
        case BY_UNIT: return unpack<BITS, BY_UNIT>(w, row, unit, units, scales, to);
        case BY_PARTS: return unpack<BITS, BY_PARTS>(w, row, unit, units, scales, to);
        case BY_LANE: return unpack<BITS, BY_LANE>(w, row, unit, units, scales, to);
        case BY_COLUMN: return unpack<BITS, BY_COLUMN>(w, row, unit, units, scales, to);
    }
}
