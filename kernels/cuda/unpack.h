// Eight neighbouring packed weights to 16-bit floats in registers.
//
// An n-bit integer becomes a float without a conversion by being put into the mantissa of a number whose last place is
// worth 1: float16 1024 = 0x6400 (10 bits of mantissa), bfloat16 128 = 0x4300 (7 bits). Two's complement q with its sign
// bit flipped is q + 8 (or q + 128) without a sign; subtracting 1024 + 8 is exact.
//
// INT4: byte i of a word holds column 2i in its high half and 2i + 1 in its low half. Masking nibbles 16 bits apart gives
// columns 0 and 4, 1 and 5, 2 and 6, 3 and 7 of eight: "pairs". INT8: pairs are columns 0 and 1, 2 and 3, ...
// Products may take columns in any order, if only the activations come in the same one: see arrange.
#pragma once

#include "numbers.h"

struct Pairs {  // eight values, two a word, the first in the low half
    u32 pair[4];
};

template <int BITS>
struct Packed {  // eight packed weights
    u32 word[BITS / 4];
};

INLINE Pairs half_from_int4(u32 w) {  // multiplying by 1/16 saves shifting: 1024 + 16 u is as exact
    const u32 low = 0x000f000f, high = 0x00f000f0, minus_1032 = 0xe408e408, sixteenth = 0x2c002c00,
              minus_72 = 0xd480d480;
    const u32 shifted = w >> 8;
    Pairs p;
    p.pair[0] = fma_half2(and_xor(w, high, 0x64806480), sixteenth, minus_72);
    p.pair[1] = add_half2(and_xor(w, low, 0x64086408), minus_1032);
    p.pair[2] = fma_half2(and_xor(shifted, high, 0x64806480), sixteenth, minus_72);
    p.pair[3] = add_half2(and_xor(shifted, low, 0x64086408), minus_1032);
    return p;
}

INLINE Pairs half_from_int8(u32 w0, u32 w1) {
    const u32 exponent = 0x64646464, minus_1152 = 0xe480e480;
    w0 ^= 0x80808080;
    w1 ^= 0x80808080;
    Pairs p;
    p.pair[0] = add_half2(bytes(w0, exponent, 0x4140), minus_1152);
    p.pair[1] = add_half2(bytes(w0, exponent, 0x4342), minus_1152);
    p.pair[2] = add_half2(bytes(w1, exponent, 0x4140), minus_1152);
    p.pair[3] = add_half2(bytes(w1, exponent, 0x4342), minus_1152);
    return p;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

INLINE Pairs bfloat_from_int4(u32 w) {
    const u32 low = 0x000f000f, magic = 0x43084308, one = 0x3f803f80, minus_136 = 0xc308c308;
    Pairs p;
    p.pair[0] = fma_bfloat2(and_xor(w >> 4, low, magic), one, minus_136);
    p.pair[1] = fma_bfloat2(and_xor(w, low, magic), one, minus_136);
    p.pair[2] = fma_bfloat2(and_xor(w >> 12, low, magic), one, minus_136);
    p.pair[3] = fma_bfloat2(and_xor(w >> 8, low, magic), one, minus_136);
    return p;
}

// A byte does not fit into bfloat16's mantissa, but into float32's: 2^23 = 0x4b000000. The difference has at most eight
// significant bits, so that its upper half is the bfloat16.
INLINE u32 bfloat_pair(u32 w, u32 first, u32 second) {
    const u32 exponent = 0x4b000000;
    const float offset = 8388608.0f + 128.0f;
    return bytes(as_bits(as_float(bytes(w, exponent, first)) - offset),
                 as_bits(as_float(bytes(w, exponent, second)) - offset), 0x7632);
}

INLINE Pairs bfloat_from_int8(u32 w0, u32 w1) {
    w0 ^= 0x80808080;
    w1 ^= 0x80808080;
    Pairs p;
    p.pair[0] = bfloat_pair(w0, 0x7650, 0x7651);
    p.pair[1] = bfloat_pair(w0, 0x7652, 0x7653);
    p.pair[2] = bfloat_pair(w1, 0x7650, 0x7651);
    p.pair[3] = bfloat_pair(w1, 0x7652, 0x7653);
    return p;
}

// q of eight packed weights, exact, as pairs of the 16-bit type.
template <int BITS, int KIND>
INLINE Pairs unpack(const Packed<BITS>& packed) {
    const u32 first = packed.word[0], last = packed.word[BITS / 4 - 1];
    if (BITS == 4) return KIND == FLOAT16 ? half_from_int4(first) : bfloat_from_int4(first);
    return KIND == FLOAT16 ? half_from_int8(first, last) : bfloat_from_int8(first, last);
}

// q * scale, rounded to the 16-bit type.
template <int KIND>
INLINE u32 multiply(u32 pair, u32 scales) {
    const u32 minus_zero = 0x80008000;  // x + -0 is x for every x
    return KIND == FLOAT16 ? fma_half2(pair, scales, minus_zero) : fma_bfloat2(pair, scales, minus_zero);
}

#endif

// Eight neighbouring columns of a 16-byte piece of a weight's row.
template <int BITS>
INLINE Packed<BITS> packed_eight(const Quad& chunk, int eight) {
    Packed<BITS> packed;
#pragma unroll
    for (int i = 0; i < BITS / 4; i++) packed.word[i] = chunk.word[eight * (BITS / 4) + i];
    return packed;
}

// Eight neighbouring activations in the order of unpack's pairs.
template <int BITS>
INLINE Pairs arrange(const Quad& x) {
    Pairs p;
    if (BITS == 4) {
        p.pair[0] = bytes(x.word[0], x.word[2], 0x5410);
        p.pair[1] = bytes(x.word[0], x.word[2], 0x7632);
        p.pair[2] = bytes(x.word[1], x.word[3], 0x5410);
        p.pair[3] = bytes(x.word[1], x.word[3], 0x7632);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) p.pair[i] = x.word[i];
    }
    return p;
}

// q of eight packed weights as float32, columns in order.
template <int BITS>
INLINE void unpack_floats(const Packed<BITS>& packed, float (&q)[8]) {
    Pairs p = BITS == 4 ? half_from_int4(packed.word[0]) : half_from_int8(packed.word[0], packed.word[BITS / 4 - 1]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        q[BITS == 4 ? i : 2 * i] = from_half(p.pair[i] & 0xffff);
        q[BITS == 4 ? i + 4 : 2 * i + 1] = from_half(p.pair[i] >> 16);
    }
}
