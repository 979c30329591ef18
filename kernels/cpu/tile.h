// Products of many rows, which are bound by arithmetic: a tile of sums that fills the registers, or the processor's matrix
// tiles. x is packed once; weights are read where they lie, or, if they have to be converted or the nearest cache would not
// keep them, from a block of their rows in a cache: nobody puts them in another order.
//
// A word has 32 bits: a float, or a pair from neighbouring columns, of bf16 or integers, where such pairs are multiplied. A vector of x
// holds the same word of W rows; blocks of up to DEPTH words of them stay in the nearest cache, in panels of two vectors,
// while rows of weights pass by, each of whose words meets all rows of x.
//
// Every sum is made by one thread, in an order that k alone decides: results depend neither on the threads nor on m.
#pragma once
#include "prefill_products.h"
#include "tile_integers.h"

namespace tile {

struct Floats {
    typedef float Element;
    static ALWAYS vec multiplied(vec a, vec b, vec sum) { return fma(a, b, sum); }
    static ALWAYS vec multiplied(const float* a, vec b, vec sum) { return fma(fill(*a), b, sum); }
};
#ifdef GLM_BF16_DOTS
struct Pairs {
    typedef bf16 Element;
    static ALWAYS vec multiplied(vec a, vec b, vec sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
    }
    // Compilers know no operand from memory here. A load of its own costs a fourth of the rate: 167 -> 200 GFLOP/s (Zen 4).
    static ALWAYS vec multiplied(const float* a, vec b, vec sum) {
        asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
        return sum;
    }
};
#endif

// Some rows of weights, `stride` words apart, and what is fetched meanwhile for later: weights from memory, x from a farther
// cache, and the panel of x that follows into the nearest one: the first rows of weights that it meets read it in one go.
struct Rows {
    const float* data;
    size_t stride;
    Later next;            // weights
    const float* ahead;    // x
    size_t lines;          // of it for each of the weights
    const float* nearest;  // x (or null)
    template <size_t ROWS> ALWAYS void fetch(size_t word) const {  // for a line of weights, word ... word + LINE - 1
        next.fetch<ROWS>(word);
        for (size_t i = 0; i < lines; i++) prefetch(ahead + word * lines + i * LINE);
        if (nearest)
            for (size_t i = 0; i < PANEL; i++) __builtin_prefetch(nearest + word * PANEL + i * LINE);
    }
};

// sums (rows of weights, rows of x) (+)= the weights times x, of which there are one or two vectors, [vector][word].
template <class Numbers> struct Vectors {
    typedef typename Numbers::Element Element;
    enum { MOST = ROWS_OF_VECTORS, WORDS = 1 };  // rows of weights at a time, words
    static constexpr size_t rows(size_t vectors) { return rows_of_vectors(vectors); }
    // Whether rows of weights, so many bytes apart, are copied for so many panels of x: of lines that lie 4 KB apart the
    // nearest cache keeps as many as it has ways, 8 of Zen 4's and 12 of younger Intels'. Measured on Zen 4 only, k = 2048, bf16:
    // 392 -> 423 GFLOP/s of two cores with 512 rows of x, 386 -> 395 with 128, nothing with 64.
    static bool copies(size_t row_bytes, size_t panels) {
        return row_bytes % 4096 == 0 && panels > 2 && rows(2) > nearest_cache_ways();
    }
    // Up to how many rows of x passes over the weights are faster. Measured on Zen 4, in AVX2 and AVX-512.
    static size_t most_passed(bool are_packed) { return are_packed ? 16 : 12; }
    struct Scope {};
    static void multiply(const Rows& w, const float* x, size_t panel, size_t vectors, size_t words, float* sums, bool is_first) {
        if (vectors == 2) multiply_vectors<2>(w, x, panel, words, sums, is_first);
        else multiply_vectors<1>(w, x, panel, words, sums, is_first);
    }
    template <int V>
    static __attribute__((noinline)) void multiply_vectors(const Rows& w, const float* x, size_t panel, size_t words, float* sums, bool is_first) {
        enum { R = rows(V) };
        vec total[R][V];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) total[r][v] = is_first ? fill(0.0f) : load(sums + (r * V + v) * W);
        const float* row = w.data;
        const size_t stride = w.stride;
        for (size_t done = 0; done < words; done += LINE) {
            w.fetch<R>(done);
            for (const float* end = row + (words - done < LINE ? words - done : size_t(LINE)); row < end; row++, x += W) {
                vec values[V];
                UNROLL for (int v = 0; v < V; v++) values[v] = load(x + v * panel);
                UNROLL for (int r = 0; r < R; r++) {
                    if constexpr (V == 1) { total[r][0] = Numbers::multiplied(row + r * stride, values[0], total[r][0]); continue; }
                    const vec weight = fill(row[r * stride]);
                    UNROLL for (int v = 0; v < V; v++) total[r][v] = Numbers::multiplied(weight, values[v], total[r][v]);
                }
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) store(sums + (r * V + v) * W, total[r][v]);
    }
};

#ifdef GLM_TILES
// Tiles of the processor's matrix unit.
struct Tiles {
    typedef bf16 Element;
    typedef prefill::Tiles::Scope Scope;
    enum { MOST = 32, WORDS = 16 };
    static size_t rows(size_t) { return MOST; }
    static bool copies(size_t, size_t) { return false; }  // a tile takes whole lines
    static size_t most_passed(bool) { return 8; }
    static void multiply(const Rows& w, const float* x, size_t panel, size_t vectors, size_t words, float* sums, bool is_first) {
        const auto fetch = [&](size_t word) { w.fetch<MOST>(word); };
        const bf16 *a = (const bf16*)w.data, *b = (const bf16*)x;
        asm volatile("" ::: "memory");  // compilers do not know that tiles read memory
        if (vectors == 2) prefill::Tiles::halves<true, true>(a, 4 * w.stride, b, 2 * panel, 2 * words, sums, PANEL, is_first, fetch);
        else prefill::Tiles::halves<true, false>(a, 4 * w.stride, b, 0, 2 * words, sums, W, is_first, fetch);
    }
};
#endif

#ifdef GLM_TILES
enum { STEP = Tiles::MOST };
#else
enum { STEP = 24 };  // rows of the matrix: a multiple of what each engine takes at a time
#endif

// out[x][piece] = sums + added for the rows of x in one vector; of a row of the matrix these stand side by side, and
// `stride` further on those of the next one.
template <class T> static void put(const float* sums, size_t stride, Range x, Range piece, const float* added, T* out, size_t n) {
    const size_t count = piece.last - piece.first;
    for (size_t j = 0; j < count; j += W) {
        const float* from[W];
        for (size_t c = 0; c < W; c++) from[c] = sums + (j + c < count ? j + c : j) * stride;
        vec lines[W];
        const vec more = load(added + j);
        transposed(from, 0, lines);
        UNROLL for (int i = 0; i < W; i++) lines[i] = add(lines[i], more);
        T* to = out + x.first * n + piece.first + j;
        for (size_t i = 0; i < x.last - x.first; i++, to += n)
            if (count - j < W) store_part(to, lines[i], count - j);
            else store(to, lines[i]);
    }
}
#if defined(GLM_BF16_DOTS)
// The same for bf16, 32 columns at a time, which fill a line of the cache: two columns are rounded into the halves of words,
// so that half as much is transposed.
static inline void put(const float* sums, size_t stride, Range x, Range piece, const float* added, bf16* out, size_t n) {
    const size_t whole = (piece.last - piece.first) / (2 * W) * (2 * W);
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (size_t j = 0; j < whole; j += 2 * W) {
        alignas(64) float words[W][W];
        const float* from[W];
        UNROLL for (int c = 0; c < W; c++) {
            const float* first = sums + (j + 2 * c) * stride;
            const vec low = add(load(first), fill(added[j + 2 * c])), high = add(load(first + stride), fill(added[j + 2 * c + 1]));
            _mm512_store_si512(words[c], _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(high, low)));
            from[c] = words[c];
        }
        vec lines[W];
        transposed(from, 0, lines);
        bf16* to = out + x.first * n + piece.first + j;
        for (size_t i = 0; i < x.last - x.first; i++, to += n) store((float*)to, lines[i]);
    }
    const Range rest = {piece.first + whole, piece.last};
    if (whole < piece.last - piece.first) put<bf16>(sums + whole * stride, stride, x, rest, added + whole, out, n);
}
#endif
// Where the sums of a piece of the matrix, of at most m rows of x, go.
struct Results {
    const Target& out;
    const Range piece;
    const size_t m;
    float added[PIECE + W] = {0};
    Results(const Target& out, Range piece, size_t m) : out(out), piece(piece), m(m) {
        if (out.bias) for (size_t j = piece.first; j < piece.last; j++) added[j - piece.first] = number(out.bias, out.bias_type, j);
    }
    // Each row lies in a page of its own: a store would wait for its address, and for what memory has there.
    void fetch(size_t first, size_t last) const {
        const size_t width = out.type == 0 ? 4 : 2;
        for (size_t row = first; row < last && row < m; row++) {
            const uint8_t* place = (const uint8_t*)out.out + (row * out.n + piece.first) * width;
            for (size_t i = 0; i < (piece.last - piece.first) * width; i += LINE * sizeof(float)) __builtin_prefetch(place + i, 1);
        }
    }
    void put(const float* sums, size_t vector, size_t vectors) const {  // of one or two vectors of x
        for (size_t v = 0; v < vectors; v++) {
            const size_t first = (vector + v) * W;
            const Range rows = {first, first + W < m ? first + W : m};
            BY_TYPE(out.type, tile::put(sums + v * W, vectors * W, rows, piece, added, (T*)out.out, out.n))
        }
    }
};

// Columns `piece`, up to PIECE of them, of out for the rows of x in `panels`, whose sums are [panel][PIECE][rows of x].
template <class Engine, class Weights>
static void multiply(const Operand<Engine>& x, Range panels, Weights& w, Range piece, const Target& out) {
    float* sums = scratch<Target, float>((panels.last - panels.first) * PIECE * PANEL);
    float* room = scratch<Engine, float>(PIECE * DEPTH);
    const Results results(out, piece, x.m);
    const typename Engine::Scope scope;
    const size_t all = piece.last - piece.first;
    w.prepare(piece);
    for (size_t word = 0; word < x.words; word += DEPTH) {
        const size_t words = x.words - word < DEPTH ? x.words - word : size_t(DEPTH);
        Block<Engine, Weights> block(w, piece, word, words, panels.last - panels.first, room);
        const bool is_last = word + DEPTH >= x.words;
        for (size_t panel = panels.first; panel < panels.last; panel++) {
            const size_t vectors = x.vectors_of(panel), each = Engine::rows(vectors);
            const size_t steps = (all + each - 1) / each * ((words + LINE - 1) / LINE);
            const size_t lines = (PANEL * words / LINE + steps - 1) / steps;
            const float* following = panel + 1 < panels.last ? x.at(word, 2 * panel + 2) : x.at(is_last ? 0 : word + DEPTH, 2 * panels.first);
            const float* ahead = following;
            float *to = sums + (panel - panels.first) * PIECE * PANEL, *first_sums = to;
            for (size_t first = 0; first < all; first += each, ahead += lines * words, to += each * vectors * W) {
                const bool is_new = panel == panels.first;
                if (is_new) block.fill_room({first, first + each});
                if (is_last) results.fetch(panel * PANEL + first * vectors * W / all, panel * PANEL + (first + each) * vectors * W / all);
                const Rows some = {block.at(first), block.stride(first), is_new ? block.behind(first + each, is_last) : Later(),
                                   ahead, lines, first + each >= all ? following : nullptr};
                x.multiply(some, block.scales_at(first), word, panel, words, to);
            }
            if (is_last) results.put(first_sums, 2 * panel, vectors);
        }
    }
}

// out's columns `rows` for the rows of x in `panels`, a piece of the matrix after the other.
template <class Engine, class Weights>
static void columns(const Operand<Engine>& x, Range panels, Weights w, Range rows, const Target& out) {
    for (size_t row = rows.first; row < rows.last; row += PIECE)
        multiply(x, panels, w, {row, row + PIECE < rows.last ? row + PIECE : rows.last}, out);
}

// Calls use(Chosen<engine>()) with the engine for x of type T and weights w.
template <class Engine> struct Chosen { typedef Engine type; };
template <class T, class Use> static void with_engine(size_t k, const Matrix& w, Use use) {
#ifdef GLM_BF16_DOTS
    if constexpr (std::is_same<T, bf16>::value) {
        static const int best = prefill::best_products();
#ifdef GLM_TILES
        if (best == 2) return use(Chosen<Tiles>());
#endif
        if (best == 1) return use(Chosen<Vectors<Pairs>>());
    }
#endif
#ifdef GLM_INTEGERS
    if constexpr (!std::is_same<T, float>::value)  // of FP32 they would lose more than its own rounding
        if (w.bits && Integers::suit(w.packed(k))) return use(Chosen<Integers>());
#endif
    use(Chosen<Vectors<Floats>>());
}

// Calls use(rows of x, rows of the matrix) with what reads them; Element: of the engine.
template <class Element, class T, class Use> static void with_rows(const T* x, size_t k, const Matrix& w, Use use) {
    if constexpr (!std::is_same<Element, int16_t>::value)
        if (w.bits == 0) return use(PlainRows<T>{x, k}, PlainRows<T>{(const T*)w.weight, k});
    const Packed packed = w.packed(k);
    const PackedProduct& product = packed_product(packed.bits);
    use(PlainRows<T>{x, k}, PackedRows{packed, product});
}

// Calls use(operand, rows of x, rows of the matrix) with the operand of x (m, k), which has no memory yet.
template <class T, class Use> static void with_operand(const T* x, size_t m, size_t k, const Matrix& w, Use use) {
    with_engine<T>(k, w, [&](auto engine) {
        typedef typename decltype(engine)::type Engine;
        typedef typename Engine::Element Element;
        with_rows<Element>(x, k, w, [&](auto rows, auto weights) {
            use(Operand<Engine>(m, rows.template words<Element>()), rows, weights);
        });
    });
}

// x (m, k) as `columns_of` wants it, packed by this thread alone in memory of its own.
template <class T> static const float* operand(const T* x, size_t m, size_t k, const Matrix& w) {
    const float* packed = nullptr;
    with_operand(x, m, k, w, [&](auto operand, auto rows, auto) {
        packed = operand.allocate();
        operand.pack(rows, {0, operand.vectors});
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

// Whether tiles are faster for so many rows of x than passes over the weights (linear.h, packed.h).
static inline bool is_many(int type, const Matrix& w, size_t m, size_t k) {
    if (w.bits && !packed_product(w.bits).has_few(w.packed(k))) return true;
    size_t most = 0;
    BY_TYPE(type, tile::with_engine<T>(k, w, [&](auto engine) { most = decltype(engine)::type::most_passed(w.bits != 0); }))
    return m > most;
}
