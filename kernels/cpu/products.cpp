// Entry points of products: of few rows, of many, of packed weights, and of the logits that decide a choice.
#include <atomic>
#include "exports.h"
#include "products.h"
#include "refine.h"
#include "stages.h"
#include "tile.h"

static void few_rows(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& to, int threads) {
    const void* operand = product_operand(type, x, m, k, w);
    const size_t each = product_piece(m, k, w, width(type), to.n, threads);
    Stages stages(1, threads);
    TEAM(threads, stages.run(thread, team, [&](size_t) { return (to.n + each - 1) / each; },
                             [&](size_t, size_t number) {
                                 const size_t first = number * each;
                                 product_columns(type, operand, m, k, w, to, {first, first + each < to.n ? first + each : to.n});
                             },
                             [](size_t next) { return next; });)
}
enum { MOST_TOGETHER = 512, LEAST_TOGETHER = 128 };  // rows of x that a piece of the matrix meets
// The work of a team, which takes units from a counter: a piece of the matrix with all of x, or with a part of x where
// that is long, or the threads are many; then pieces are smaller, too, of whole steps of the engine.
struct Units {
    size_t panels, n, together = MOST_TOGETHER / tile::PANEL, each = tile::PIECE;
    Units(size_t panels, size_t n, size_t step, size_t threads) : panels(panels), n(n) {
        while (together * tile::PANEL > LEAST_TOGETHER && count() < 3 * threads) together /= 2;
        while (each > step && count() < 3 * threads) each = each / 2 < step ? step : each / 2 / step * step;
    }
    size_t pieces() const { return (n + each - 1) / each; }
    size_t count() const { return pieces() * ((panels + together - 1) / together); }
    Range panels_of(size_t unit) const {
        const size_t first = unit / pieces() * together;
        return {first, first + together < panels ? first + together : panels};
    }
    Range rows_of(size_t unit) const {
        const size_t first = unit % pieces() * each;
        return {first, first + each < n ? first + each : n};
    }
};
static const size_t MOST_BYTES = 32 << 20;  // of x in panels, of which more rows are taken one part after the other
template <class T>
static void many_rows(const T* x, size_t m, size_t k, const Matrix& w, const Target& to, int threads) {
    const size_t fitting = MOST_BYTES / (4 * k), most = fitting < 512 ? 512 : fitting;
    if (m > most) {
        many_rows(x, most, k, w, to, threads);
        return many_rows(x + most * k, m - most, k, w, to.from_row(most), threads);
    }
    tile::with_operand(x, m, k, w, [&](auto operand, auto rows, auto weights) {
        operand.allocate();
        const Units units(operand.panels, to.n, decltype(operand)::ROWS_AT_ONCE, threads);
        std::atomic<size_t> next{0};
        TEAM(threads, {
            operand.pack(rows, share(operand.vectors, 1, thread, team));
            wait_for_all();
            for (size_t unit; (unit = next++) < units.count();)
                tile::columns(operand, units.panels_of(unit), weights, units.rows_of(unit), to);
        })
    });
}

// out (m, n) = x (m, k) w (n, k)^T + bias, w packed where it has bits; out is of x's type or, where wanted, float.
EXPORT void glm_linear(int type, const void* x, size_t m, size_t k, const Matrix* w, const void* bias, int out_type,
                       void* out, size_t n, int threads) {
    const size_t row_bytes = w->bits ? w->packed(k).row_bytes() : k * width(type);
    threads = team_for(n * row_bytes + m * k, threads);
    const Target to = {out_type, type, bias, out, n};
    BY_TYPE(type, {
        if (is_many(*w, m, k)) many_rows((const T*)x, m, k, *w, to, threads);
        else few_rows(type, x, m, k, *w, to, threads);
    })
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
    if (is_many(w, m, k)) BY_TYPE(type, return tile::operand((const T*)x, m, k, w))
    if (w.bits == 0) BY_TYPE(type, return operand((const T*)x, m * k))
    const Packed packed = w.packed(k);
    const PackedProduct& forms = packed_product(packed.bits);
    uint8_t* room = forms.room(packed, m);
    forms.arrange(type, packed, x, m, room);
    return room;
}

template <class T, class X>
static void plain_columns(const X*, const void* x, size_t m, size_t k, const Matrix& w, const Target& to, Range part) {
    const T *weight = (const T*)w.weight, *bias = (const T*)to.bias;
    if (to.type == type_number(weight)) linear_rows((const X*)x, m, k, weight, bias, (T*)to.out, to.n, part);
    else linear_rows((const X*)x, m, k, weight, bias, (float*)to.out, to.n, part);
}
void product_columns(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& out, Range part) {
    if (is_many(w, m, k)) BY_TYPE(type, return tile::columns_of<T>((float*)x, m, k, w, out, part))
    if (w.bits == 0) BY_TYPE(type, return plain_columns<T>(operand((const T*)nullptr, 0), x, m, k, w, out, part))
    const Packed packed = w.packed(k);
    packed_product(packed.bits).rows(packed, (const uint8_t*)x, m, out, part);
}

size_t product_piece(size_t m, size_t k, const Matrix& w, size_t weight_bytes, size_t columns, int threads) {
    enum { BYTES = 32 << 10 };  // of weights: many pieces, each of them long enough for the memory
    const size_t row_bytes = w.bits ? w.packed(k).row_bytes() : k * weight_bytes, fair = columns / (4 * threads);
    const bool many = is_many(w, m, k);
    const size_t best = many ? size_t(tile::PIECE) : BYTES / row_bytes, step = many ? tile::STEP : 4;
    const size_t each = (best < fair ? best : fair) / step * step;
    return each < step ? step : each;
}
