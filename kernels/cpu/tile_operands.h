// Both sides of a product of many rows (tile.h): x, packed, and a block of the rows of weights.
#pragma once
#include "packed_product.h"

namespace tile {

enum { DEPTH = 256, LINE = 16, BYTES_OF_LINE = 64 };  // words of a block, of a line of the cache
// PIECE rows of the matrix meet a block of x, and PANEL rows of x: with more of the former, fewer pieces of each of out's
// rows, which lie in pages of their own, are written.
enum { PIECE = 192, PANEL = 2 * W };
// Rows of weights at a time whose sums, with so many vectors of x, fill the registers, of AVX2 half of them with two vectors; more
// than 12 find no room in a nearest cache of 12 ways where they lie 4 KB apart.
enum { ROWS_OF_VECTORS = 12 };
static constexpr size_t rows_of_vectors(size_t vectors) { return W == 16 ? size_t(ROWS_OF_VECTORS) : ROWS_OF_VECTORS / vectors; }

// Words first ... first + count of a row of `columns` numbers, zeros behind its end, as the engine's elements.
template <class T>
static inline const float* words_of(const T* row, size_t columns, size_t first, size_t count, float* room, float) {
    const size_t there = columns - first < count ? columns - first : count, whole = there / W * W;
    if (std::is_same<T, float>::value && there == count) return (const float*)row + first;
    for (size_t j = 0; j < whole; j += W) {
        prefetch(row + first + j + ROWS_AHEAD * columns);
        store(room + j, load(row + first + j));
    }
    for (size_t j = whole; j < count; j++) room[j] = j < there ? to_float(row[first + j]) : 0.0f;
    return room;
}
static inline const float* words_of(const bf16* row, size_t columns, size_t first, size_t count, float* room, bf16) {
    if (columns >= 2 * (first + count)) return (const float*)(row + 2 * first);
    std::memset(room, 0, count * sizeof(float));
    std::memcpy(room, row + 2 * first, (columns - 2 * first) * sizeof(bf16));
    return room;
}

// Of weights that are multiplied without their scales: one scale for `words` words of each row, of rows `stride` apart.
struct Scales {
    const float* data;
    size_t stride, words;
};

// A matrix of plain numbers.
template <class T> struct PlainRows {
    const T* data;
    size_t columns;
    void prepare(Range) {}
    template <class E> size_t words() const { return (columns * sizeof(E) + 3) / 4; }
    const uint8_t* bytes() const { return (const uint8_t*)data; }
    size_t row_bytes() const { return columns * sizeof(T); }
    template <class E> static size_t words_of_line() { return LINE * sizeof(E) / sizeof(T); }
    // Whether rows are there as the engine reads them, up to this word.
    template <class E> bool lies_in_order(size_t word) const {
        return std::is_same<T, E>::value && row_bytes() % 4 == 0 && word <= row_bytes() / 4;
    }
    Scales scales_at(size_t, size_t) const { return Scales(); }
    template <class E> const float* row(size_t row, size_t first, size_t count, float* room) const {
        return words_of(data + row * columns, columns, first, count, room, E());
    }
};
// A packed matrix.
struct PackedRows {
    const Packed& w;
    const PackedProduct& product;
    float* scales = nullptr;
    size_t first = 0, places = 0;
    template <class E> static bool lies_in_order(size_t) { return false; }
    const uint8_t* bytes() const { return w.weight; }
    size_t row_bytes() const { return w.row_bytes(); }
    template <class E> size_t words_of_line() const { return LINE * sizeof(E) * 8 / w.bits; }
    void prepare(Range rows) {
        first = rows.first, places = product.scale_places(w);
        scales = scratch<PackedRows, float>(places * PIECE);
        for (size_t row = rows.first; row < rows.last; row++) product.scales(w, row, scales + (row - first) * places);
    }
    Scales scales_at(size_t row, size_t word) const {  // of words that are pairs
        return {scales + (row - first) * places + 2 * word / w.group, places, w.group == w.k ? size_t(DEPTH) : w.group / 2};
    }
    template <class E> const float* row(size_t row, size_t first_word, size_t count, float* room) const {
        const size_t per_word = 4 / sizeof(E);
        product.unpack(w, row, first_word * per_word, count * per_word, scales + (row - first) * places, type_number((E*)0), room);
        return room;
    }
};
// Rows of weights that are fetched into the second cache for later, `stride` bytes apart, while others are multiplied.
// 2^`shift` lines of words are made of a line of theirs, so that a row has its turn at one of so many only.
struct Later {
    const uint8_t* data;  // or null
    size_t stride;
    int shift;
    template <size_t ROWS> ALWAYS void fetch(size_t word) const {
        if (!data) return;
        switch (shift) {
            case 0: return of_turn<ROWS, 0>(word / LINE);
            case 1: return of_turn<ROWS, 1>(word / LINE);
            case 2: return of_turn<ROWS, 2>(word / LINE);
            default: return of_turn<ROWS, 3>(word / LINE);
        }
    }
    template <size_t ROWS, int SHIFT> ALWAYS void of_turn(size_t line) const {
        constexpr size_t TURNS = 1 << SHIFT;
        const uint8_t* place = data + (line >> SHIFT) * BYTES_OF_LINE + (line & (TURNS - 1)) * stride;
        UNROLL for (size_t r = 0; r < ROWS; r += TURNS) prefetch(place + r * stride);
    }
};

// x (m, k), packed: blocks of words, in each all vectors, zeros behind the last row and word.
template <class Engine> struct Layout {
    typedef typename Engine::Element E;
    enum { ROWS_AT_ONCE = Engine::MOST };  // of the matrix
    size_t m, words, padded, vectors, panels;  // words: those that are multiplied
    float* data;
    Layout(size_t m, size_t words) : m(m), words((words + Engine::WORDS - 1) / Engine::WORDS * Engine::WORDS) {
        padded = (words + 15) / 16 * 16, vectors = (m + W - 1) / W, panels = (vectors + 1) / 2;
    }
    size_t depth(size_t word) const { return padded - word < DEPTH ? padded - word : size_t(DEPTH); }
    float* at(size_t word, size_t vector) const { return data + vectors * W * word + vector * W * depth(word); }
    size_t vectors_of(size_t panel) const { return 2 * panel + 2 <= vectors ? 2 : 1; }
    void transpose(const float* const (&rows)[W], size_t word, float* to) const {
        for (size_t i = 0; i < depth(word); i += W, to += W * W) {
            vec lanes[W];
            transposed(rows, i, lanes);
            UNROLL for (int j = 0; j < W; j++) store(to + j * W, lanes[j]);
        }
    }
};
template <class Engine> struct Operand : Layout<Engine> {
    typedef Layout<Engine> L;
    using L::L, L::m, L::padded, L::vectors, L::data, L::depth, L::at;
    typedef typename L::E E;
    size_t floats() const { return vectors * W * padded; }
    float* allocate() { return data = scratch<Engine*, float>(floats()); }  // of the calling thread
    template <class Rows> void multiply(const Rows& w, const Scales&, size_t word, size_t panel, size_t words, float* sums) const {
        Engine::multiply(w, at(word, 2 * panel), W * depth(word), L::vectors_of(panel), words, sums, word == 0);
    }
    template <class Source> void pack(const Source& x, Range chosen) {
        float* room = scratch<Operand, float>((W + 1) * DEPTH);
        float* nothing = room + W * DEPTH;
        std::memset(nothing, 0, DEPTH * sizeof(float));
        for (size_t vector = chosen.first; vector < chosen.last; vector++)
            for (size_t word = 0; word < padded; word += DEPTH) {
                const float* rows[W];
                for (size_t r = 0; r < W; r++) {
                    const size_t row = vector * W + r;
                    rows[r] = row < m ? x.template row<E>(row, word, depth(word), room + r * DEPTH) : nothing;
                }
                L::transpose(rows, word, at(word, vector));
            }
    }
};

// Some words of up to PIECE rows of the matrix: where they lie, as far as whole steps of them do, the others, or all that the
// engine wants to be copied, in `room`.
template <class Engine, class Weights> class Block {
    typedef typename Engine::Element E;
    Weights& w;
    const Range rows;
    const size_t word, words;
    size_t direct;
    float* room;
    const uint8_t* at(size_t row, size_t word) const {
        return w.bytes() + row * w.row_bytes() + word * BYTES_OF_LINE / w.template words_of_line<E>();
    }

public:
    Block(Weights& w, Range rows, size_t word, size_t words, size_t panels, float* room)
        : w(w), rows(rows), word(word), words(words), room(room) {
        const bool lie = w.template lies_in_order<E>(word + words) && !Engine::copies(w.row_bytes(), panels);
        direct = lie ? (rows.last - rows.first) / Engine::MOST * Engine::MOST : 0;
    }
    void fill_room(Range some) {
        for (size_t r = some.first > direct ? some.first : direct; r < some.last; r++) {
            float* to = room + r * DEPTH;
            if (rows.first + r >= rows.last) { std::memset(to, 0, words * sizeof(float)); continue; }
            const float* from = w.template row<E>(rows.first + r, word, words, to);
            if (from != to) std::memcpy(to, from, words * sizeof(float));
        }
    }
    const float* at(size_t row) const { return row < direct ? (const float*)at(rows.first + row, word) : room + row * DEPTH; }
    size_t stride(size_t row) const { return row < direct ? w.row_bytes() / sizeof(float) : size_t(DEPTH); }
    Scales scales_at(size_t row) const { return w.scales_at(rows.first + row, word); }
    // Behind rows `last` - 1 come the next ones, or the same ones' next words, or those of the next piece.
    Later behind(size_t last, bool is_last) const {
        const uint8_t* from = last < rows.last - rows.first ? at(rows.first + last, word)
                              : is_last                     ? at(rows.last, 0)
                                                            : at(rows.first, word + DEPTH);
        return {from, w.row_bytes(), __builtin_ctzll(w.template words_of_line<E>() / LINE)};
    }
};

}  // namespace tile
