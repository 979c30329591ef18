// Elements of tensors as float32, whatever they are stored as: one, or the 16 bytes of one access.
#pragma once

#include "device.h"

typedef unsigned long long u64;

template <int KIND>
struct Stored {
    static constexpr u32 SIZE = KIND == FLOAT32 ? 4 : 2;  // bytes
    static constexpr int PACK = 16 / SIZE;                // elements of 16 bytes
};

template <int KIND>
INLINE float to_float(u32 bits) {  // of 16-bit types, the low half
    return KIND == FLOAT16 ? from_half(bits) : as_float(KIND == FLOAT32 ? bits : bits << 16);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800

INLINE u32 to_bfloat(float value) {
    const u32 bits = as_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;  // not a number
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

#endif

// Rounded to the nearest, ties to even; of 16-bit types into the low half.
template <int KIND>
INLINE u32 from_float(float value) {
    return KIND == FLOAT16 ? to_half(value) : KIND == FLOAT32 ? as_bits(value) : to_bfloat(value);
}

template <int KIND>
INLINE const void* element(const void* p, u64 index) { return (const char*)p + index * Stored<KIND>::SIZE; }

template <int KIND>
INLINE float read_element(const void* p, u64 index) {
    const void* at = element<KIND>(p, index);
    return to_float<KIND>(KIND == FLOAT32 ? read_u32(at) : read_u16(at));
}

template <int KIND>
INLINE float load_element(const void* p, u64 index) {
    const void* at = element<KIND>(p, index);
    return to_float<KIND>(KIND == FLOAT32 ? load_u32(at) : load_u16(at));
}

template <int KIND>
INLINE void store_element(void* p, u64 index, float value) {
    void* at = (void*)element<KIND>(p, index);
    if (KIND == FLOAT32) store_u32(at, as_bits(value));
    else store_u16(at, from_float<KIND>(value));
}

template <int KIND>
INLINE void to_floats(const Quad& quad, float (&x)[Stored<KIND>::PACK]) {
#pragma unroll
    for (int i = 0; i < Stored<KIND>::PACK; i++)
        x[i] = KIND == FLOAT32 ? as_float(quad.word[i % 4])
                               : to_float<KIND>((quad.word[i / 2 % 4] >> 16 * (i % 2)) & 0xffff);
}

template <int KIND>
INLINE Quad from_floats(const float (&x)[Stored<KIND>::PACK]) {
    Quad quad;
#pragma unroll
    for (int i = 0; i < 4; i++)
        quad.word[i] = KIND == FLOAT32 ? as_bits(x[i])
                                       : from_float<KIND>(x[2 * i % Stored<KIND>::PACK])
                                             | from_float<KIND>(x[(2 * i + 1) % Stored<KIND>::PACK]) << 16;
    return quad;
}

// Sums and largest values over the lanes of a warp whose numbers differ in the bits of FROM ... UP_TO / 2.
template <u32 FROM, u32 UP_TO>
INLINE float sum_over_lanes(float value) {
#pragma unroll
    for (u32 mask = FROM; mask < UP_TO; mask *= 2) value += shuffle_xor(value, mask);
    return value;
}
