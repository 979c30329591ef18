// What the products with packed weights offer; INT4's and INT8's are compiled on their own, since they take long.
#pragma once
#include "linear.h"

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

// Where results go: out (m, n) and the bias that is added, both of one type; no templates, so that there is one copy of
// the code above for all types.
struct Target {
    int type;
    const void* bias;
    void* out;
    size_t n;
    // out[first + i][row] = sums[i] * scale + bias[row]
    void put(size_t first, size_t count, size_t row, const float* sums, float scale, size_t stride = 1) const {
        const float added = bias ? number(bias, type, row) : 0.0f;
        BY_TYPE(type, {
            T* to = (T*)out + first * n + row;
            for (size_t i = 0; i < count; i++) store_float(to + i * n, sums[i * stride] * scale + added);
        })
    }
};

// x (m, k) is first put in order, into a room of the calling thread, some rows by each thread of a team; then each
// thread computes some columns of out (m, n) = x w^T + bias. `type` is that of x, as BY_TYPE says.
struct PackedProduct {
    uint8_t* (*room)(int type, const Packed& w, size_t m);
    void (*arrange)(int type, const Packed& w, const void* x, size_t m, Range rows, uint8_t* room);
    void (*rows)(const Packed& w, const uint8_t* arranged, size_t m, const Target& to, Range rows);
    // For products that are somebody else's: x and rows of w, scaled, as elements of type 0 or 1 in one order of columns,
    // of which there are `padded`.
    size_t (*padded)(size_t k);
    void (*arrange_plain)(int type, const void* x, size_t k, Range rows, int to_type, void* to);
    void (*unpack)(const Packed& w, Range rows, int to_type, void* to);
};
extern const PackedProduct packed_int4, packed_int8;
static inline const PackedProduct& packed_product(int bits) { return bits == 4 ? packed_int4 : packed_int8; }
