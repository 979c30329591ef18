// Entry points of products: of few rows, of many, of packed weights, and of the logits that decide a choice.
#include "exports.h"
#include "products.h"
#include "refine.h"
#include "stages.h"
#include "tile.h"

static void few_rows(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& to, int threads) {
    const void* operand = product_operand(type, x, m, k, w);
    const size_t each = product_piece(type, m, k, w, to.n, threads);
    Stages stages(1, threads);
    TEAM(threads, stages.run(thread, team, [&](size_t) { return (to.n + each - 1) / each; },
                             [&](size_t, size_t number) {
                                 const size_t first = number * each;
                                 product_columns(type, operand, m, k, w, to, {first, first + each < to.n ? first + each : to.n});
                             });)
}

enum { MOST_TOGETHER = 256, LEAST_TOGETHER = 128 };  // rows of x that a part's columns meet
// A part is some columns with all of x, or with a part of x where that is long, or the threads are many; then it has fewer
// columns, too, in whole steps of the engine.
SharedProduct::SharedProduct(int type, size_t m, size_t k, const Matrix& w, size_t n, int threads)
    : type(type), m(m), k(k), w(w), n(n), together(MOST_TOGETHER / tile::PANEL), each(tile::PIECE) {
    size_t step = 0;
    BY_TYPE(type, tile::with_operand((const T*)nullptr, m, k, w, [&](auto operand, auto, auto) {
        panels = operand.panels, floats = operand.floats(), step = decltype(operand)::ROWS_AT_ONCE;
    }))
    const size_t wanted = 3 * threads;
    while (together * tile::PANEL > LEAST_TOGETHER && parts() < wanted) together /= 2;
    while (each > step && parts() < wanted) each = each / 2 < step ? step : each / 2 / step * step;
}
Range SharedProduct::rows_of(size_t panel) const {
    const size_t first = panel * tile::PANEL;
    return {first, first + tile::PANEL < m ? first + tile::PANEL : m};
}
void SharedProduct::put_in_order(const void* x, size_t panel, float* room) const {
    BY_TYPE(type, tile::with_operand((const T*)x, m, k, w, [&](auto operand, auto rows, auto) {
        operand.data = room;
        operand.pack(rows, {2 * panel, 2 * panel + operand.vectors_of(panel)});
    }))
}
SharedProduct::Part SharedProduct::part(size_t number) const {
    const size_t across = (n + each - 1) / each, first = number / across * together, column = number % across * each;
    const Range some = {first, first + together < panels ? first + together : panels};
    return {some, {rows_of(some.first).first, rows_of(some.last - 1).last}, {column, column + each < n ? column + each : n}};
}
void SharedProduct::make(const float* room, const Part& part, const Target& to) const {
    BY_TYPE(type, tile::with_operand((const T*)nullptr, m, k, w, [&](auto operand, auto, auto weights) {
        operand.data = (float*)room;
        tile::columns(operand, part.panels, weights, part.columns, to);
    }))
}
bool is_shared(int type, const Matrix& w, size_t m, size_t k) { return is_many(type, w, m, k); }

static const size_t MOST_BYTES = 32 << 20;  // of x in order, of which more rows are taken one part after the other
static void many_rows(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& to, int threads) {
    const size_t fitting = MOST_BYTES / (4 * k), most = fitting < 512 ? 512 : fitting;
    if (m > most) {
        many_rows(type, x, most, k, w, to, threads);
        return many_rows(type, (const uint8_t*)x + most * k * width(type), m - most, k, w, to.from_row(most), threads);
    }
    const SharedProduct product(type, m, k, w, to.n, threads);
    float* room = scratch<SharedProduct, float>(product.room());
    Stages stages(2, threads);
    TEAM(threads, stages.run(thread, team, [&](size_t stage) { return stage == 0 ? product.pieces() : product.parts(); },
                             [&](size_t stage, size_t number) {
                                 if (stage == 0) product.put_in_order(x, number, room);
                                 else product.make(room, product.part(number), to);
                             });)
}

// out (m, n) = x (m, k) w (n, k)^T + bias, w packed where it has bits; out is of x's type or, where wanted, float.
EXPORT void glm_linear(int type, const void* x, size_t m, size_t k, const Matrix* w, const void* bias, int out_type,
                       void* out, size_t n, int threads) {
    const size_t row_bytes = w->bits ? w->packed(k).row_bytes() : k * width(type);
    threads = team_for(n * row_bytes + m * k, threads);
    const Target to = {out_type, type, bias, out, n};
    if (is_many(type, *w, m, k)) many_rows(type, x, m, k, *w, to, threads);
    else few_rows(type, x, m, k, *w, to, threads);
}

EXPORT void glm_refine(int type, const void* x, size_t m, size_t k, const void* w, size_t n, float* logits,
                       const float* error, const float* added, float least, size_t count, int threads) {
    const Approximate approximate = {m, k, n, count, error, added, least, logits};
    threads = team_for(m * n * 8, threads);
    std::vector<std::vector<float>> best(threads * m);
    std::vector<float> bars(m);
    TEAM(threads, BY_TYPE(type, refine_part((const T*)x, (const T*)w, approximate, best.data(), bars.data(), thread,
                                            team, wait_for_all)))
}

const void* product_operand(int type, const void* x, size_t m, size_t k, const Matrix& w) {
    if (is_many(type, w, m, k)) BY_TYPE(type, return tile::operand((const T*)x, m, k, w))
    if (w.bits == 0) BY_TYPE(type, return operand((const T*)x, m, k, w.weight))
    const Packed packed = w.packed(k);
    const PackedProduct& forms = packed_product(packed.bits);
    uint8_t* room = forms.room(packed, m);
    forms.arrange(type, packed, x, m, room);
    return room;
}

template <class T>
static void plain_columns(const void* operand, size_t m, size_t k, const Matrix& w, const Target& to, Range part) {
    const auto x = (const typename OperandOf<T>::type*)operand;
    const T *weight = (const T*)w.weight, *bias = (const T*)to.bias;
    if (to.type == type_number(weight)) linear_rows(x, m, k, weight, bias, (T*)to.out, to.n, part);
    else linear_rows(x, m, k, weight, bias, (float*)to.out, to.n, part);
}
void product_columns(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& out, Range part) {
    if (is_many(type, w, m, k)) BY_TYPE(type, return tile::columns_of<T>((float*)x, m, k, w, out, part))
    if (w.bits == 0) BY_TYPE(type, return plain_columns<T>(x, m, k, w, out, part))
    const Packed packed = w.packed(k);
    packed_product(packed.bits).rows(packed, (const uint8_t*)x, m, out, part);
}

size_t product_piece(int type, size_t m, size_t k, const Matrix& w, size_t columns, int threads) {
    enum { BYTES = 32 << 10 };  // of weights: many pieces, each of them long enough for the memory
    const size_t row_bytes = w.bits ? w.packed(k).row_bytes() : k * width(type), fair = columns / (4 * threads);
    const bool many = is_many(type, w, m, k);
    const size_t best = many ? size_t(tile::PIECE) : BYTES / row_bytes, step = many ? tile::STEP : 4;
    const size_t each = (best < fair ? best : fair) / step * step;
    return each < step ? step : each;
}
