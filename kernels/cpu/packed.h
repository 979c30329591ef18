// Products of few rows (decoding) with packed INT8 or INT4 weights, which are read once and become floats in registers.
// A vector of words holds UNIT columns; lane L of it holds the LANE columns from L * LANE on. x is put into the same
// order once, so that weight P of all lanes meets its column of x; and the columns of a lane have one scale, if groups
// are multiples of LANE columns, so that sums by lane are scaled, not weights: products with integers are more exact.
#pragma once
#include <numeric>
#include "packed_product.h"
#include "words.h"

// How a unit's lanes find their scales.
enum Scaling {
    BY_ROW,    // one scale for the whole row: sums are scaled at the end
    BY_UNIT,   // a group is two or more whole units
    BY_PARTS,  // a unit is one or more whole groups
    BY_LANE,   // groups are whole lanes: scales are laid out lane by lane first
    BY_COLUMN  // any group: scaled one by one, for many rows only (packed_unpack.h)
};
template <int BITS> struct Order {
    enum { LANE = 32 / BITS, UNIT = LANE * W, BYTES = 4 * W };
    static constexpr size_t column(size_t place) { return BITS == 4 ? place ^ 1 : place; }  // the even one is in the high half
    static Scaling scaling(const Packed& w) {
        if (w.group == w.k) return BY_ROW;
        if (w.group % LANE) return BY_COLUMN;
        if (UNIT % w.group == 0) return BY_PARTS;
        return w.group % UNIT == 0 ? BY_UNIT : BY_LANE;
    }
    static size_t padded(size_t k) { return (k + UNIT - 1) / UNIT * UNIT; }
};

// The scales of one row of weights as floats, as its Scaling wants them; W places behind them may be read.
template <int BITS, Scaling S, class T> static void scales_of(const Packed& w, size_t groups, const T* scale, float* to) {
    enum { LANE = Order<BITS>::LANE };
    float* end = repeated_scales(scale, groups, S == BY_LANE ? w.group / LANE : 1, to);
    if (S == BY_LANE)
        for (const float* last = to + Order<BITS>::padded(w.k) / LANE; end < last; end++) *end = 0.0f;
    store(end, fill(0.0f));
}
// The same of `rows` rows from `row` on, `places` apart.
template <int BITS, Scaling S>
static void scales_of(const Packed& w, size_t groups, size_t row, size_t rows, size_t places, float* to) {
    if (S == BY_ROW) return;
    BY_TYPE(w.scale_type, for (size_t r = 0; r < rows; r++)
        (scales_of<BITS, S>(w, groups, (const T*)w.scale + (row + r) * groups, to + r * places)))
}
template <int BITS, Scaling S> static size_t scale_places(const Packed& w) {  // floats that scales_of writes at most
    const size_t lanes = Order<BITS>::padded(w.k) / Order<BITS>::LANE;
    return (lanes > w.groups() ? lanes : w.groups()) + W;
}

// Scales of the lanes of unit `number`, for BY_UNIT of group `number`; for BY_PARTS it has `groups` groups, and `lanes` is
// lane * LANE / group.
template <int BITS, Scaling S> static inline vec unit_scale(const float* scales, size_t number, size_t groups, words lanes) {
    if (S == BY_UNIT) return fill(scales[number]);
    if (S == BY_PARTS) return choose(scales + number * groups, lanes);
    return load(scales + number * W);
}

// A Form says how x is laid out and multiplied. `add` adds a unit of R rows of weights, which `loaded` made ready, and M of
// x to sums; those of a span of up to SPAN units, which have one scale, begin with `start`, and `value`, which is told whether
// spans have one unit, makes floats of them.
// What is found is to be multiplied with `factor`; and x may be the sum of two SETS, one behind the other.

// Units with one scale and one start.
template <class Form> static size_t span_of(const Packed& w) {
    switch (Form::O::scaling(w)) {
        case BY_ROW: return Form::SPAN;
        case BY_UNIT: return std::gcd(w.group / Form::O::UNIT, size_t(Form::SPAN));
        default: return 1;
    }
}

#ifndef GLM_PAIRS
// x in FP32: products and sums are FP32, weights are exact.
template <int BITS_> struct InFloats {
    enum { BITS = BITS_, SPAN = 1, SETS = 1 };
    typedef Order<BITS> O;
    typedef float X;
    typedef vec Sum;
    static size_t padded(size_t k) { return O::padded(k); }
    static constexpr int together(int m) { return m > 1 ? 2 : 1; }
    static bool are_single(size_t, int) { return false; }
    static size_t widest(Scaling, size_t, size_t rows) { return rows; }

    template <class T> static void arrange(const T* x, const Packed& w, float* to) {
        for (size_t unit = 0; unit < w.k; unit += O::UNIT)
            for (size_t p = 0; p < O::LANE; p++)
                for (size_t lane = 0; lane < W; lane++, to++) {
                    const size_t column = unit + lane * O::LANE + O::column(p);
                    *to = column < w.k ? to_float(x[column]) : 0.0f;
                }
    }
    template <int R, int M, int P = 0>
    static ALWAYS void add(const words (&a)[R], const float* x, size_t stride, vec (&sums)[R][M]) {
        vec b[R];
        UNROLL for (int r = 0; r < R; r++) b[r] = weight_at<BITS, P>(a[r]);
        UNROLL for (int i = 0; i < M; i++) {
            vec value = load(x + i * stride + P * W);
            UNROLL for (int r = 0; r < R; r++) sums[r][i] = P == 0 ? mul(value, b[r]) : fma(value, b[r], sums[r][i]);
        }
        if constexpr (P + 1 < O::LANE) add<R, M, P + 1>(a, x, stride, sums);
    }
    static ALWAYS vec start(const float*, size_t, size_t) { return fill(0.0f); }
    static ALWAYS words loaded(words a) { return a; }
    template <bool> static ALWAYS vec value(vec sum) { return sum; }
    static float factor(const float*, size_t) { return 1.0f; }
};
#endif

// What the products of one matrix need to know of it, found once: divisions take long.
template <class Form, Scaling S> struct Walk {
    typedef Order<Form::BITS> O;
    size_t bytes, groups, places;  // of a row
    size_t units, whole, span, group_spans, unit_groups, stride, ahead, ahead_rows;
    words lanes;
    explicit Walk(const Packed& w)
        : bytes(w.row_bytes()), groups(w.groups()), places(scale_places<Form::BITS, S>(w)), units(O::padded(w.k) / O::UNIT),
          whole(bytes / O::BYTES), span(span_of<Form>(w)), group_spans(w.group / (span * O::UNIT)),
          unit_groups(O::UNIT / w.group), stride(Form::padded(w.k)),
          ahead(ahead_of_unpacking()), ahead_rows(ahead / bytes), lanes(lanes_of(O::LANE, w.group)) {}
};

// out[r][i] = sum over k of w[r][k] * x[i][k], without the row's scale where S is BY_ROW. Not inlined, since that would make
// a copy of it for every type of out.
template <class Form, Scaling S, int R, int M>
static __attribute__((noinline)) void few_dots(const Walk<Form, S>& walk, const uint8_t* data, const typename Form::X* x,
                                               size_t stride, size_t ahead, const float* scales, float (&out)[R][M]) {
    typedef Order<Form::BITS> O;
    const size_t bytes = walk.bytes, places = walk.places, groups = walk.unit_groups, units = walk.units, whole = walk.whole;
    const size_t span = walk.span;
    const words lanes = walk.lanes;
    constexpr bool ONE_UNIT = S == BY_PARTS || S == BY_LANE;  // each unit is a span
    vec total[R][M];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < M; i++) total[r][i] = fill(0.0f);
    typename Form::Sum sums[R][M];
    const auto begin = [&](size_t span_number) __attribute__((always_inline)) {
        UNROLL for (int i = 0; i < M; i++) {
            const typename Form::Sum start = Form::start(x + i * stride, units, span_number);
            UNROLL for (int r = 0; r < R; r++) sums[r][i] = start;
        }
    };
    const auto add_unit = [&](size_t unit) __attribute__((always_inline)) {
        words a[R];
        UNROLL for (int r = 0; r < R; r++) {
            prefetch(data + (unit * R + r) * O::BYTES + ahead);
            a[r] = Form::loaded(kept(load_words(data + r * bytes + unit * O::BYTES)));
        }
        Form::template add<R, M>(a, x + unit * O::UNIT, stride, sums);
    };
    const auto add_part = [&](size_t unit) {  // of the last unit, what there is
        words a[R];
        UNROLL for (int r = 0; r < R; r++) {
            prefetch(data + (unit * R + r) * O::BYTES + ahead);
            a[r] = Form::loaded(load_words(data + r * bytes + unit * O::BYTES, bytes - unit * O::BYTES));
        }
        Form::template add<R, M>(a, x + unit * O::UNIT, stride, sums);
    };
    const auto end = [&](size_t number) __attribute__((always_inline)) {  // of the unit, or the group
        UNROLL for (int r = 0; r < R; r++) {
            vec scale;
            if (S != BY_ROW) scale = unit_scale<Form::BITS, S>(scales + r * places, number, groups, lanes);
            UNROLL for (int i = 0; i < M; i++) {
                vec value = Form::template value<ONE_UNIT>(sums[r][i]);
                total[r][i] = S == BY_ROW ? add(value, total[r][i]) : fma(value, scale, total[r][i]);
            }
        }
    };
    if constexpr (ONE_UNIT) {
        for (size_t unit = 0; unit < whole; unit++) begin(unit), add_unit(unit), end(unit);
        if (whole < units) begin(whole), add_part(whole), end(whole);
    } else {
        size_t first = 0, unit = 0, number = 0;
        const auto groups_of = [&](auto count) __attribute__((always_inline)) {  // few units, of which a loop would take long
            for (; first + count <= whole; first += count, number++) {
                begin(number);
                UNROLL for (size_t u = 0; u < count; u++) add_unit(first + u);
                end(number);
            }
            unit = first;
        };
        if (S == BY_UNIT && walk.group_spans == 1) {
            if (span == 2) groups_of(std::integral_constant<size_t, 2>());
            if (span == 4) groups_of(std::integral_constant<size_t, 4>());
        }
        for (size_t group = number, spans = 0; first < units; first += span, number++) {
            begin(number);
            const size_t last = first + span < units ? first + span : units;
            for (const size_t there = last < whole ? last : whole; unit < there; unit++) add_unit(unit);
            if (unit < last) add_part(unit);
            end(group);
            if (++spans >= walk.group_spans) group++, spans = 0;
        }
    }
    sum_all(total, out);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < M; i++) out[r][i] *= Form::factor(x + i * stride, units);
}

// sums[i * TOGETHER + r] = the products of R rows of weights, from `row` on, and M of x, of which any or none has a second set:
// of a row that has none, its factor makes zeros.
template <class Form, Scaling S, int R, int M>
static inline void few_block(const Packed& w, const Walk<Form, S>& walk, const typename Form::X* x, bool any, size_t row,
                             float* scales, float* sums) {
    float products[R][M];
    const uint8_t* data = w.weight + row * walk.bytes;
    const size_t row_scales = walk.groups * (w.scale_type == 0 ? 4 : 2);  // another stream through memory
    const char* next = (const char*)w.scale + (row + R + walk.ahead_rows) * row_scales;
    for (size_t i = 0; i < R * row_scales; i += 64) prefetch(next + i);
    scales_of<Form::BITS, S>(w, walk.groups, row, R, walk.places, scales);
    const size_t stride = walk.stride, half = stride / 2;
    constexpr int SUMS = R == 1 && M < 3 ? 2 * M : M;
    if (SUMS > M && any) {  // both sets at once: neither is a weight unpacked again, nor does the memory wait
        float both[1][SUMS];
        few_dots<Form, S, 1, SUMS>(walk, data, x, half, walk.ahead, scales, both);
        for (int i = 0; i < M; i++) products[0][i] = both[0][2 * i] + both[0][2 * i + 1];
    } else {
        few_dots<Form, S, R, M>(walk, data, x, stride, walk.ahead, scales, products);
        if (any) {
            float rest[R][M];
            few_dots<Form, S, R, M>(walk, data, x + half, stride, 0, scales, rest);
            for (int r = 0; r < R; r++)
                for (int i = 0; i < M; i++) products[r][i] += rest[r][i];
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < M; i++) sums[i * TOGETHER + r] = products[r][i];
}

// M rows of x, from `first` on, with up to TOGETHER rows of weights.
template <class Form, Scaling S, int M>
static void few_rows(const Packed& w, const Walk<Form, S>& walk, const typename Form::X* x, const Target& to, size_t first,
                     Range rows) {
    constexpr int R = Form::together(M);
    float* scales = scratch<Packed, float>(R * walk.places);
    float sums[M * TOGETHER];
    bool any = false;
    if constexpr (Form::SETS == 2)
        for (int i = 0; i < M; i++) any |= Form::factor(x + i * walk.stride + walk.stride / 2, walk.units) != 0.0f;
    size_t row = rows.first;
    if (!Form::are_single(walk.bytes, M) && !(any && M < 3))  // one row meets both sets in one pass
        for (; row + R <= rows.last; row += R) few_block<Form, S, R, M>(w, walk, x, any, row, scales, sums + row - rows.first);
    for (; row < rows.last; row++) few_block<Form, S, 1, M>(w, walk, x, any, row, scales, sums + row - rows.first);
    to.put(first, M, rows, sums, S == BY_ROW ? w.scale : nullptr, w.scale_type);
}

// Decoding: up to four rows of x at once, the next ones while the weights are in a cache.
template <class Form> struct Few : Form {
    template <Scaling S> static void rows(const Packed& w, const typename Form::X* x, size_t m, const Target& to, Range rows) {
        const Walk<Form, S> walk(w);
        const size_t width = Form::widest(S, w.k, m < 4 ? m : 4);
        for (size_t row = rows.first; row < rows.last; row += TOGETHER)
            for (size_t i = 0; i < m; i += width) {
                const Range part = {row, row + TOGETHER < rows.last ? row + TOGETHER : rows.last};
                const typename Form::X* from = x + i * walk.stride;
                switch (m - i < width ? m - i : width) {
                    case 1: few_rows<Form, S, 1>(w, walk, from, to, i, part); break;
                    case 2: few_rows<Form, S, 2>(w, walk, from, to, i, part); break;
                    case 3: few_rows<Form, S, 3>(w, walk, from, to, i, part); break;
                    default: few_rows<Form, S, 4>(w, walk, from, to, i, part);
                }
            }
    }
};
