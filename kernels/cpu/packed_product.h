// What the products with packed weights offer; INT4's and INT8's are compiled on their own, since they take long.
#pragma once
#include "linear.h"

enum { ROWS_AHEAD = 4 };  // where some columns of one row after the other are converted, of the row that is fetched meanwhile

struct Packed {  // a matrix (n, k) as kernels/packing.py says
    const uint8_t* weight;
    const void* scale;  // (n, k / group)
    size_t k, group;    // group: columns that share a scale; k: the whole row
    int bits, scale_type;
    size_t row_bytes() const { return k * bits / 8; }
    size_t groups() const { return k / group; }
};

static inline float number(const void* numbers, int type, size_t i) {
    BY_TYPE(type, return to_float(((const T*)numbers)[i]))
}

// The scales of one row as floats, each `times` times, side by side; returns their end, behind which W places may be written.
template <class T> static float* repeated_scales(const T* scale, size_t groups, size_t times, float* to) {
    size_t g = 0;
    for (; g + W <= groups; g += W) store(to + g, load(scale + g));
    if (g < groups) store(to + g, load_part(scale + g, groups - g));
    for (size_t i = groups; times > 1 && i-- > 0;) {  // from the end, in place
        const float value = to[i];
        float* place = to + i * times;
        size_t j = 0;
        for (; j + W <= times; j += W) store(place + j, fill(value));
        for (; j < times; j++) place[j] = value;
    }
    return to + groups * times;
}

enum { TOGETHER = 16 };  // rows of weights whose results are written together
// Where results go: out (m, n), and the bias that is added; no templates, so that there is one copy of the code above for
// all types.
struct Target {
    int type, bias_type;
    const void* bias;
    void* out;
    size_t n;
    Target from_row(size_t row) const { return {type, bias_type, bias, (uint8_t*)out + row * n * (type == 0 ? 4 : 2), n}; }
    // out[first + i][row] = sums[i * TOGETHER + row - rows.first] * scale[row] + bias[row] for `count` rows of x; no scale: 1.
    void put(size_t first, size_t count, Range rows, const float* sums, const void* scale, int scale_type) const {
        const size_t some = rows.last - rows.first;
        float factors[TOGETHER + W], added[TOGETHER + W];
        numbers(scale, scale_type, rows, 1.0f, factors), numbers(bias, bias_type, rows, 0.0f, added);
        BY_TYPE(type, {
            T* to = (T*)out + first * n + rows.first;
            for (size_t i = 0; i < count; i++, to += n, sums += TOGETHER)
                for (size_t j = 0; j < some; j += W) {
                    const vec result = fma(load(sums + j), load(factors + j), load(added + j));
                    if (j + W <= some) store(to + j, result);
                    else store_part(to + j, result, some - j);
                }
        })
    }

private:
    static void numbers(const void* from, int type, Range some, float otherwise, float* to) {
        if (from) BY_TYPE(type, (void)repeated_scales((const T*)from + some.first, some.last - some.first, 1, to))
        else for (size_t j = 0; j < TOGETHER; j += W) store(to + j, fill(otherwise));
    }
};

enum { OF_INTEGERS = 3 };  // of 16 bits
static inline int type_number(const int16_t*) { return OF_INTEGERS; }

// Few rows: x (m, k) is first put in order by one thread, into a room of its own; then each thread of a team computes some
// columns of out (m, n) = x w^T + bias. `type` is that of x, as BY_TYPE says.
struct PackedProduct {
    bool (*has_few)(const Packed& w);  // whether it is made for these weights; otherwise tile.h is for any number of rows
    uint8_t* (*room)(const Packed& w, size_t m);
    void (*arrange)(int type, const Packed& w, const void* x, size_t m, uint8_t* room);
    void (*rows)(const Packed& w, const uint8_t* arranged, size_t m, const Target& to, Range rows);
    // Many rows: some columns of a row of w, scaled, as elements of type 0 or 1, or as they are, of type OF_INTEGERS; zeros
    // behind the last column. They are taken from a multiple of 256 columns on, and `to` has room for another multiple.
    size_t (*scale_places)(const Packed& w);  // of the scales of one row, as floats
    void (*scales)(const Packed& w, size_t row, float* to);
    void (*unpack)(const Packed& w, size_t row, size_t first, size_t columns, const float* scales, int to_type, void* to);
};
extern const PackedProduct packed_int4, packed_int8;
static inline const PackedProduct& packed_product(int bits) { return bits == 4 ? packed_int4 : packed_int8; }

struct Matrix {  // plain weights of x's type where bits is 0, otherwise as Packed
    const void *weight, *scale;
    size_t group, bits, scale_type;
    Packed packed(size_t k) const { return {(const uint8_t*)weight, scale, k, group, int(bits), int(scale_type)}; }
};
