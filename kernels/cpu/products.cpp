// Entry points of products: of few rows, of many, of packed weights, and of the logits that decide a choice.
#include "exports.h"
#include "products.h"
#include "refine.h"
#include "tile.h"

template <class T, class O>
static void few_rows(const T* x, size_t m, size_t k, const T* w, const T* bias, O* out, size_t n, int threads) {
    TEAM(threads, linear_part(x, m, k, w, bias, out, n, thread, team);)
}
// All threads put x in order, each some rows of it.
template <class T>
static void few_packed_rows(const T* x, size_t m, size_t k, const Packed& w, const Target& to, int threads) {
    const PackedProduct& product = packed_product(w.bits);
    uint8_t* room = product.room(w, m);
    TEAM(threads, {
        product.arrange(type_number(x), w, x, m, share(m, 1, thread, team), room);
        wait_for_all();
        product.rows(w, room, m, to, share(to.n, 4, thread, team));
    })
}
static const size_t MOST_BYTES = 32 << 20;  // of x in panels, of which more rows are taken one part after the other
template <class T>
static void many_rows(const T* x, size_t m, size_t k, const Matrix& w, const Target& to, int threads) {
    const size_t fitting = MOST_BYTES / (4 * k), most = fitting < 512 ? 512 : fitting;
    if (m > most) {
        many_rows(x, most, k, w, to, threads);
        return many_rows(x + most * k, m - most, k, w, to.from_row(most), threads);
    }
    tile::with_engine<T>([&](auto engine) {
        typedef typename decltype(engine)::type Engine;
        tile::with_rows(x, k, w, [&](auto rows, auto weights) {
            tile::Operand<Engine> operand(m, rows.template words<typename Engine::Element>());
            operand.data = scratch<Engine*, float>(operand.size());
            const tile::Units units(operand.panels, operand.height, to.n, threads);
            std::atomic<size_t> next{0};
            TEAM(threads, {
                operand.pack(rows, share(operand.panels, 1, thread, team));
                wait_for_all();
                for (size_t unit; (unit = next++) < units.count();)
                    tile::columns(operand, units.panels_of(unit), weights, units.rows_of(unit), to);
            })
        });
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
        else if (w->bits) few_packed_rows((const T*)x, m, k, w->packed(k), to, threads);
        else if (out_type == type) few_rows((const T*)x, m, k, (const T*)w->weight, (const T*)bias, (T*)out, n, threads);
        else few_rows((const T*)x, m, k, (const T*)w->weight, (const T*)bias, (float*)out, n, threads);
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
    forms.arrange(type, packed, x, m, {0, m}, room);
    return room;
}

template <class T, class X> static void plain_columns(const X*, const void* x, size_t m, size_t k, const Matrix& w, const Target& out, Range part) {
    linear_rows((const X*)x, m, k, (const T*)w.weight, (const T*)out.bias, (T*)out.out, out.n, part);
}
void product_columns(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& out, Range part) {
    if (is_many(w, m, k)) BY_TYPE(type, return tile::columns_of<T>((float*)x, m, k, w, out, part))
    if (w.bits == 0) BY_TYPE(type, return plain_columns<T>(operand((const T*)nullptr, 0), x, m, k, w, out, part))
    const Packed packed = w.packed(k);
    packed_product(packed.bits).rows(packed, (const uint8_t*)x, m, out, part);
}

void product_fetch(size_t k, const Matrix& w, size_t weight_bytes, size_t row) {
    const uint8_t* from = (const uint8_t*)w.weight + row * (w.bits ? w.packed(k).row_bytes() : k * weight_bytes);
    for (size_t i = 0; i < 8192; i += 64) prefetch(from + i);  // products themselves look as far ahead
}

size_t product_piece(size_t m, size_t k, const Matrix& w, size_t weight_bytes) {
    enum { BYTES = 32 << 10 };  // of weights: many pieces, each of them long enough for the memory
    if (is_many(w, m, k)) return tile::PIECE;
    const size_t rows = BYTES / (w.bits ? w.packed(k).row_bytes() : k * weight_bytes) / 4 * 4;
    return rows < 4 ? 4 : rows;
}
