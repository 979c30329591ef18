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

// x (m, k) is first put in order, into a room of the calling thread, some rows by each thread of a team; then each
// thread computes some columns of out (m, n) = x w^T + bias. Element types of x, bias and out: `type`, as BY_TYPE says.
struct PackedProduct {
    uint8_t* (*room)(int type, const Packed& w, size_t m);
    void (*arrange)(int type, const Packed& w, const void* x, size_t m, Range rows, uint8_t* room);
    void (*rows)(int type, const Packed& w, const uint8_t* arranged, size_t m, const void* bias, void* out, size_t n,
                 Range rows);
};
extern const PackedProduct packed_int4, packed_int8;
static inline const PackedProduct& packed_product(int bits) { return bits == 4 ? packed_int4 : packed_int8; }
