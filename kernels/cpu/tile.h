// Products of many rows, which are bound by arithmetic: a tile of sums that fills the registers meets both sides packed
// in the order of its loads. Weights of any storage are converted while they are packed, piece by piece, in a cache.
//
// A word has 32 bits: a float, or a pair of bf16 from neighbouring columns where such pairs are multiplied. The words of
// both sides come in blocks of up to DEPTH. A block of x consists of panels of up to ROWS rows, in the order that the
// engine wants; a block of weights of panels of W rows of the matrix, [word][row of the matrix].
//
// Every sum is made by one thread, in an order that k alone decides: results depend neither on the threads nor on m.
#pragma once
#include <atomic>
#include <utility>
#include "packed_product.h"
#include "prefill_products.h"

static const size_t MOST_ROWS = 8;  // of x that one pass over plain weights serves; beyond, tiles are faster

namespace tile {

enum { DEPTH = 256, COLUMNS = 2 * W, PIECE = 64 };  // PIECE: rows of the matrix that are packed at a time

struct Floats {
    typedef float Element;
    static ALWAYS vec multiplied(vec a, vec b, vec sum) { return fma(a, b, sum); }
};
#ifdef GLM_BF16_DOTS
struct Pairs {
    typedef bf16 Element;
    static ALWAYS vec multiplied(vec a, vec b, vec sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
    }
};
#endif

// The tile in vectors: R rows of x, [word][row], and two vectors of weights.
template <class Numbers> struct Vectors {
    typedef typename Numbers::Element Element;
    enum { ROWS = W == 16 ? 14 : 6 };  // with two vectors of weights and one word of x, all registers
    static size_t height(size_t rows) { return rows; }
    struct Scope {};
    typedef void (*Multiply)(const float* x, const float* w, size_t words, float* sums, bool is_first);

    static void pack(const float* const* rows, size_t height, size_t words, float* to) {
        for (size_t i = 0; i < words; i += W, to += W * height) {
            vec columns[W];
            const float* from[W];
            for (size_t r = 0; r < W; r++) from[r] = rows[r < height ? r : 0];
            transposed(from, i, columns);
            UNROLL for (int j = 0; j < W; j++) store(to + j * height, columns[j]);  // what is too much is overwritten
        }
    }
    template <int R>
    static __attribute__((noinline)) void multiply_rows(const float* x, const float* w, size_t words, float* sums, bool is_first) {
        vec total[R][2];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int c = 0; c < 2; c++) total[r][c] = is_first ? fill(0.0f) : load(sums + r * PIECE + c * W);
        const float* other = w + words * W;
        for (const float* end = other; w < end; x += R, w += W, other += W) {
            const vec first = load(w), second = load(other);
            UNROLL for (int r = 0; r < R; r++) {
                const vec value = fill(x[r]);
                total[r][0] = Numbers::multiplied(value, first, total[r][0]);
                total[r][1] = Numbers::multiplied(value, second, total[r][1]);
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int c = 0; c < 2; c++) store(sums + r * PIECE + c * W, total[r][c]);
    }
    template <int... R> static Multiply of_rows(size_t rows, std::integer_sequence<int, R...>) {
        static const Multiply all[] = {multiply_rows<R + 1>...};
        return all[rows - 1];
    }
    static void multiply(const float* x, size_t height, const float* w, size_t words, float* sums, bool is_first) {
        of_rows(height, std::make_integer_sequence<int, ROWS>())(x, w, words, sums, is_first);
    }
};

#ifdef GLM_TILES
// Tiles of the processor's matrix unit; rows of x are 16 or 32, one behind the other.
struct Tiles {
    typedef bf16 Element;
    typedef prefill::Tiles::Scope Scope;
    enum { ROWS = 32 };
    static size_t height(size_t rows) { return (rows + 15) / 16 * 16; }
    static void pack(const float* const* rows, size_t height, size_t words, float* to) {
        for (size_t r = 0; r < height; r++) std::memcpy(to + r * words, rows[r], words * sizeof(float));
    }
    static void multiply(const float* x, size_t height, const float* w, size_t words, float* sums, bool is_first) {
        prefill::Tiles::multiply((const bf16*)x, 2 * words, height, (const bf16*)w, 2 * words * W, 2 * words, sums, PIECE, is_first);
    }
};
#endif

// Words first ... first + count of a row of `columns` numbers, zeros behind its end, as the engine's elements.
template <class T>
static inline const float* words_of(const T* row, size_t columns, size_t first, size_t count, float* room, float) {
    const size_t there = columns - first < count ? columns - first : count, whole = there / W * W;
    if (std::is_same<T, float>::value && there == count) return (const float*)row + first;
    for (size_t j = 0; j < whole; j += W) store(room + j, load(row + first + j));
    for (size_t j = whole; j < count; j++) room[j] = j < there ? to_float(row[first + j]) : 0.0f;
    return room;
}
static inline const float* words_of(const bf16* row, size_t columns, size_t first, size_t count, float* room, bf16) {
    if (columns >= 2 * (first + count)) return (const float*)(row + 2 * first);
    std::memset(room, 0, count * sizeof(float));
    std::memcpy(room, row + 2 * first, (columns - 2 * first) * sizeof(bf16));
    return room;
}

// A matrix of plain numbers.
template <class T> struct PlainRows {
    const T* data;
    size_t columns;
    void prepare(Range) {}
    template <class E> size_t words() const { return (columns * sizeof(E) + 3) / 4; }
    template <class E> const float* row(size_t row, size_t first, size_t count, float* room) const {
        return words_of(data + row * columns, columns, first, count, room, E());
    }
};
// A packed matrix, and x in the order in which its columns are unpacked.
struct PackedRows {
    const Packed& w;
    const PackedProduct& product;
    float* scales = nullptr;
    size_t first = 0, places = 0;
    void prepare(Range rows) {
        first = rows.first, places = product.scale_places(w);
        scales = scratch<PackedRows, float>(places * PIECE);
        for (size_t row = rows.first; row < rows.last; row++) product.scales(w, row, scales + (row - first) * places);
    }
    template <class E> const float* row(size_t row, size_t first_word, size_t count, float* room) const {
        const size_t per_word = 4 / sizeof(E);
        product.unpack(w, row, first_word * per_word, count * per_word, scales + (row - first) * places, type_number((E*)0), room);
        return room;
    }
};
struct ArrangedRows {
    const void* data;
    int type;
    size_t columns;
    const PackedProduct& product;
    template <class E> size_t words() const { return product.padded(columns) * sizeof(E) / 4; }
    template <class E> const float* row(size_t row, size_t first, size_t count, float* room) const {
        const size_t per_word = 4 / sizeof(E), column = first * per_word, width = type == 0 ? 4 : 2;
        const size_t there = columns - column < count * per_word ? columns - column : count * per_word;
        product.arrange_plain(type, (const uint8_t*)data + (row * columns + column) * width, there, type_number((E*)0), room);
        return room;
    }
};

// x (m, k), packed: blocks of words, in each all panels, of as equal heights as possible.
template <class Engine> struct Operand {
    typedef typename Engine::Element E;
    size_t m, words, panels, height;
    float* data;
    Operand(size_t m, size_t words) : m(m), words((words + W - 1) / W * W) {
        panels = (m + Engine::ROWS - 1) / Engine::ROWS;
        height = Engine::height((m + panels - 1) / panels);
    }
    static size_t spare() { return W; }  // behind a panel, where packing may write
    size_t size() const { return panels * (words * height + (words + DEPTH - 1) / DEPTH * spare()); }
    float* allocate() { return data = scratch<Engine*, float>(size()); }  // of the calling thread
    float* at(size_t word, size_t panel) const {
        const size_t depth = words - word < DEPTH ? words - word : size_t(DEPTH);
        return data + panels * (word * height + word / DEPTH * spare()) + panel * (depth * height + spare());
    }
    template <class Rows> void pack(const Rows& x, Range chosen) {
        float* room = scratch<Operand, float>((Engine::ROWS + 1) * DEPTH);
        float* nothing = room + Engine::ROWS * DEPTH;
        std::memset(nothing, 0, DEPTH * sizeof(float));
        for (size_t panel = chosen.first; panel < chosen.last; panel++)
            for (size_t word = 0; word < words; word += DEPTH) {
                const size_t depth = words - word < DEPTH ? words - word : size_t(DEPTH), first = panel * height;
                const float* rows[Engine::ROWS];
                for (size_t r = 0; r < height; r++)
                    rows[r] = first + r < m ? x.template row<E>(first + r, word, depth, room + r * DEPTH) : nothing;
                Engine::pack(rows, height, depth, at(word, panel));
            }
    }
};

// A block of weights: panels of W rows, an even number of them, zeros behind the last row.
template <class E, class Weights>
static void pack_weights(const Weights& w, Range rows, size_t word, size_t depth, float* to) {
    float* room = scratch<Weights*, float>((W + 1) * DEPTH);
    float* nothing = room + W * DEPTH;
    std::memset(nothing, 0, DEPTH * sizeof(float));
    const size_t count = (rows.last - rows.first + COLUMNS - 1) / COLUMNS * COLUMNS;
    for (size_t r = 0; r < count; r += W) {
        const float* from[W];
        for (size_t i = 0; i < W; i++)
            from[i] = rows.first + r + i < rows.last ? w.template row<E>(rows.first + r + i, word, depth, room + i * DEPTH) : nothing;
        float* panel = to + r * depth;
        for (size_t i = 0; i < depth; i += W) {
            vec columns[W];
            transposed(from, i, columns);
            UNROLL for (int j = 0; j < W; j++) store(panel + (i + j) * W, columns[j]);
        }
    }
}

// sums (rows of the chosen panels, PIECE) = x times up to PIECE rows of the matrix.
template <class Engine, class Weights>
static void multiply(const Operand<Engine>& x, Range panels, Weights& w, Range rows, float* sums) {
    float* packed = scratch<Engine, float>(PIECE * DEPTH);
    const typename Engine::Scope scope;
    w.prepare(rows);
    for (size_t word = 0; word < x.words; word += DEPTH) {
        const size_t depth = x.words - word < DEPTH ? x.words - word : size_t(DEPTH);
        pack_weights<typename Engine::Element>(w, rows, word, depth, packed);
        for (size_t c = 0; c < rows.last - rows.first; c += COLUMNS)
            for (size_t panel = panels.first; panel < panels.last; panel++)
                Engine::multiply(x.at(word, panel), x.height, packed + c * depth, depth,
                                 sums + (panel - panels.first) * x.height * PIECE + c, word == 0);
    }
}

// out's columns `rows` for the rows of x in `panels`, a piece of the matrix after the other.
template <class Engine, class Weights>
static void columns(const Operand<Engine>& x, Range panels, Weights w, Range rows, const Target& out) {
    float* sums = scratch<Target, float>((panels.last - panels.first) * x.height * PIECE);
    const size_t first = panels.first * x.height, last = panels.last * x.height < x.m ? panels.last * x.height : x.m;
    for (size_t row = rows.first; row < rows.last; row += PIECE) {
        const Range piece = {row, row + PIECE < rows.last ? row + PIECE : rows.last};
        multiply(x, panels, w, piece, sums);
        out.put_rows<PIECE>({first, last}, piece, sums);
    }
}

// Calls use(Chosen<engine>()) with the engine for x of type T.
template <class Engine> struct Chosen { typedef Engine type; };
template <class T, class Use> static void with_engine(Use use) {
#ifdef GLM_BF16_DOTS
    if constexpr (std::is_same<T, bf16>::value) {
#ifdef GLM_TILES
        static const bool has_tiles = prefill::best_products() == 2;
        if (has_tiles) return use(Chosen<Tiles>());
#endif
        return use(Chosen<Vectors<Pairs>>());
    }
#endif
    use(Chosen<Vectors<Floats>>());
}

// Calls use(rows of x, rows of the matrix) with what reads them.
template <class T, class Use> static void with_rows(const T* x, size_t k, const Matrix& w, Use use) {
    if (w.bits == 0) return use(PlainRows<T>{x, k}, PlainRows<T>{(const T*)w.weight, k});
    const Packed packed = w.packed(k);
    const PackedProduct& product = packed_product(packed.bits);
    use(ArrangedRows{x, type_number(x), k, product}, PackedRows{packed, product});
}

// Calls use(operand, rows of x, rows of the matrix) with the operand of x (m, k), which has no memory yet.
template <class T, class Use> static void with_operand(const T* x, size_t m, size_t k, const Matrix& w, Use use) {
    with_engine<T>([&](auto engine) {
        typedef typename decltype(engine)::type Engine;
        with_rows(x, k, w, [&](auto rows, auto weights) {
            use(Operand<Engine>(m, rows.template words<typename Engine::Element>()), rows, weights);
        });
    });
}

// x (m, k) as `columns_of` wants it, packed by this thread alone in memory of its own.
template <class T> static const float* operand(const T* x, size_t m, size_t k, const Matrix& w) {
    const float* packed = nullptr;
    with_operand(x, m, k, w, [&](auto operand, auto rows, auto) {
        packed = operand.allocate();
        operand.pack(rows, {0, operand.panels});
    });
    return packed;
}
// Columns `part` of out, of x of type T.
template <class T>
static void columns_of(float* packed, size_t m, size_t k, const Matrix& w, const Target& out, Range part) {
    with_operand((const T*)nullptr, m, k, w, [&](auto operand, auto, auto weights) {
        operand.data = packed;
        columns(operand, {0, operand.panels}, weights, part, out);
    });
}

}  // namespace tile

// From how many rows on tiles are faster than one pass over the weights.
static inline bool is_many(const Matrix& w, size_t m, size_t k) {
    return w.bits ? !packed_product(w.bits).is_few(w.packed(k), m) : m > MOST_ROWS;
}
