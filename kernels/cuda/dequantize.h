// Packed weight (n, k) -> q * scale in the 16-bit type, rounded once as kernels/packing.py does: many rows of x are left
// to the library's products, which need the weight like that. Bound by writing, so that every store is of 16 bytes, lanes
// side by side.
#pragma once

#include "linear.h"

const u32 TEAM = 256;  // threads that take a row together; teams of all blocks take turns with the rows

INLINE u32 first_row() { return blockIdx.x * (blockDim.x / TEAM) + threadIdx.x / TEAM; }
INLINE u32 all_teams() { return gridDim.x * (blockDim.x / TEAM); }

// k and the columns of a group are multiples of eight.
template <int BITS, int KIND>
INLINE void dequantize_eights(const Arguments& a) {
    constexpr int WORDS = BITS / 4, TURNS = 4;
    const u32 eights = a.k / 8, thread = threadIdx.x % TEAM;
    wait_for_earlier_kernels();  // which may read what is written over
    let_next_kernel_begin();
    for (u32 row = first_row(); row < a.n; row += all_teams()) {
        const unsigned long long begin = (unsigned long long)row * eights;
        for (u32 first = thread; first < eights; first += TURNS * TEAM) {
            Packed<BITS> packed[TURNS];
            u32 scale[TURNS];
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {  // all loads first
                const u32 eight = min(first + turn * TEAM, eights - 1);
#pragma unroll
                for (int i = 0; i < WORDS; i++)
                    packed[turn].word[i] = load_u32((const u32*)a.weight + (begin + eight) * WORDS + i);
                scale[turn] = load_scale(a, a.groups ? row * a.groups + divide(eight * 8, a.group_magic) : row);
            }
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const u32 eight = first + turn * TEAM;
                if (eight >= eights) break;
                const float factor = scale_value(a, scale[turn]);
                float q[8];
                unpack_floats<BITS>(packed[turn], q);
#pragma unroll
                for (int i = 0; i < 8; i++) q[i] *= factor;
                store((Quad*)a.out + begin + eight, from_floats<KIND>(q));
            }
        }
    }
}

// Any k and any groups, element by element.
template <int BITS, int KIND>
INLINE void dequantize_any(const Arguments& a) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    for (u32 row = first_row(); row < a.n; row += all_teams())
        for (u32 column = threadIdx.x % TEAM; column < a.k; column += TEAM) {
            const unsigned long long at = (unsigned long long)row * a.k + column;
            int q;
            if (BITS == 4) {
                const u32 byte = load_u8((const char*)a.weight + at / 2);  // k is even: rows begin at whole bytes
                q = (int)(((column % 2 ? byte : byte >> 4) & 15) ^ 8) - 8;
            } else {
                q = (int)(load_u8((const char*)a.weight + at) ^ 128) - 128;
            }
            const u32 group = a.groups ? row * a.groups + column / a.group_size : row;
            store_u16((u16*)a.out + at, from_float<KIND>((float)q * scale_value(a, load_scale(a, group))));
        }
}
