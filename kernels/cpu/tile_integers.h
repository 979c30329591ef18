// Products of many rows of 16 bits with packed weights as they are, where FP32 would be multiplied otherwise: pairs of integers of
// 16 bits (integers.h) are multiplied and added by one instruction or two, twice as many at a time as floats. A block's sums have
// 32 bits (32767 * 128 * 512 does); those of a group, or of a block, become floats, times the scale of the weights and the factor of
// x. Of a vector none of whose rows has a second set nothing is written there: whatever its integers are, their factors are zero.
#pragma once
#include "integers.h"
#include "tile_operands.h"

#if defined(GLM_PAIRS) && (defined(__AVX512VNNI__) || !defined(__AVX512F__))
#define GLM_INTEGERS  // AVX-512 alone takes as long for two instructions as for two products of floats
namespace tile {

struct Integers {
    typedef int16_t Element;
    enum { MOST = ROWS_OF_VECTORS, WORDS = 1, COLUMNS = 2 * DEPTH };  // COLUMNS: of a block
    static constexpr size_t rows(size_t vectors) { return rows_of_vectors(vectors); }
    static bool copies(size_t, size_t) { return false; }
    static size_t most_passed(bool) { return 12; }
    struct Scope {};
    // Whether a sum has one scale: groups are whole lines, 2^n of them, or rows.
    static bool suit(const Packed& w) { return w.group == w.k || (w.group >= 2 * LINE && (w.group & (w.group - 1)) == 0); }

    // sums (rows of weights, V vectors of x) (+)= the weights times x; factors: of x's rows.
    template <int V, class Rows>
    static __attribute__((noinline)) void multiply(const Rows& w, const Scales& scales, const float* x, size_t panel,
                                                   const float* factors, size_t words, float* sums, bool is_first) {
        enum { R = rows(V) };
        const float *row = w.data, *scale = scales.data;
        const size_t stride = w.stride;
        for (size_t done = 0, end; done < words; done = end, scale++, is_first = false) {
            end = words - done < scales.words ? words : done + scales.words;
            ::words total[R][V];
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int v = 0; v < V; v++) total[r][v] = no_words();
            while (done < end) {
                w.template fetch<R>(done);
                const size_t line = end - done < LINE ? end : done + LINE;
                for (; done < line; done++, row++, x += W) {
                    ::words values[V];
                    UNROLL for (int v = 0; v < V; v++) values[v] = load_words((const uint8_t*)(x + v * panel));
                    UNROLL for (int r = 0; r < R; r++) {
                        const ::words weight = everywhere(row + r * stride);
                        UNROLL for (int v = 0; v < V; v++) total[r][v] = in_turn(add_pairs(total[r][v], weight, values[v]));
                    }
                }
            }
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int v = 0; v < V; v++) {
                    float* to = sums + (r * V + v) * W;
                    const vec value = mul(floats_of(total[r][v]), fill(scale[r * scales.stride])), by = load(factors + v * W);
                    store(to, is_first ? mul(value, by) : fma(value, by, load(to)));
                }
        }
    }
};

// x (m, k) as two sets of integers, and the factors of both: [set][block][row].
template <> struct Operand<Integers> : Layout<Integers> {
    using Layout<Integers>::Layout;
    size_t set_floats() const { return vectors * W * padded; }
    size_t blocks() const { return (padded + DEPTH - 1) / DEPTH; }
    size_t floats() const { return 2 * (set_floats() + blocks() * vectors * W); }
    float* allocate() { return data = scratch<Integers*, float>(floats()); }
    float* factors(int set, size_t word, size_t vector) const {
        return data + 2 * set_floats() + ((set * blocks() + word / DEPTH) * vectors + vector) * W;
    }

    template <class T> void pack(const PlainRows<T>& x, Range chosen) {
        int16_t* room = scratch<Operand, int16_t>(2 * W * Integers::COLUMNS);
        for (size_t vector = chosen.first; vector < chosen.last; vector++)
            for (size_t word = 0; word < padded; word += DEPTH) {
                const float* rows[2][W];
                for (size_t r = 0; r < W; r++) {
                    const size_t row = vector * W + r, column = 2 * word;
                    const size_t count = row < m && column < x.columns ? x.columns - column : 0;
                    int16_t* sets[] = {room + r * Integers::COLUMNS, room + (W + r) * Integers::COLUMNS};
                    float* to[] = {factors(0, word, vector) + r, factors(1, word, vector) + r};
                    to_integers(x.data + row * x.columns + column, count < Integers::COLUMNS ? count : size_t(Integers::COLUMNS), sets, to);
                    rows[0][r] = (const float*)sets[0], rows[1][r] = (const float*)sets[1];
                }
                for (int set = 0; set < 2; set++)
                    if (set == 0 || has_rest(word, vector)) transpose(rows[set], word, at(word, vector) + set * set_floats());
            }
    }
    bool has_rest(size_t word, size_t vector) const {
        const float* some = factors(1, word, vector);
        bool any = false;
        for (size_t r = 0; r < W; r++) any |= some[r] != 0.0f;
        return any;
    }

    template <class Rows>
    void multiply(const Rows& w, const Scales& scales, size_t word, size_t panel, size_t words, float* sums) const {
        const size_t first = 2 * panel, vectors = vectors_of(panel);
        multiply(w, scales, at(word, first), 0, word, panel, words, sums);
        if (!has_rest(word, first) && (vectors == 1 || !has_rest(word, first + 1))) return;
        multiply(Rows{w.data, w.stride, Later(), nullptr, 0, nullptr}, scales, at(word, first) + set_floats(), 1, word, panel, words, sums);
    }

private:
    template <class Rows>
    void multiply(const Rows& w, const Scales& scales, const float* x, int set, size_t word, size_t panel, size_t words, float* sums) const {
        const size_t stride = W * depth(word);
        const float* some = factors(set, word, 2 * panel);
        const bool is_first = word == 0 && set == 0;
        if (vectors_of(panel) == 2) Integers::multiply<2>(w, scales, x, stride, some, words, sums, is_first);
        else Integers::multiply<1>(w, scales, x, stride, some, words, sums, is_first);
    }
    // `count` numbers as both sets of a block, zeros behind them. Numbers of 16 bits have at most 11 that count, so that the
    // largest is at most 32752.
    template <class T> static void to_integers(const T* x, size_t count, int16_t* const (&sets)[2], float* const (&factors)[2]) {
        static_assert(sizeof(T) == 2, "of FP32 one may become -32768");
        const Magnitudes found = Magnitudes::of(x, count);
        float sum = 0;
        for (int set = 0; set < 2; set++) {
            if (set == 1 && !found.is_outlier(x, count, sum)) {
                *factors[1] = 0.0f;
                std::memset(sets[1], 0, Integers::COLUMNS * sizeof(int16_t));
                return;
            }
            *factors[set] = set == 0 ? found.factor() : found.rest_factor();
            vec magnitudes = fill(0.0f);
            for (size_t j = 0; j < Integers::COLUMNS; j += 2 * W) {
                vec values[2];
                UNROLL for (int i = 0; i < 2; i++) {
                    const size_t at = j + i * W, there = at < count ? count - at : 0;
                    const vec number = there >= W ? load(x + at) : there ? load_part(x + at, there) : fill(0.0f);
                    const vec value = found.is_finite ? mul(number, fill(found.inverse)) : fill(0.0f);
                    magnitudes = add(magnitudes, magnitude(value));
                    values[i] = set == 0 ? value : rest_of(value);
                }
                store_words(sets[set] + j, rounded(values[0], values[1]));
            }
            sum = ::sum(magnitudes);
        }
    }
};

}  // namespace tile
#endif
