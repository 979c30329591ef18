// The same product in plain float32 arithmetic: for GPUs before sm_80, whose tensor cores take other shapes, and for
// groups that end inside of 16 bytes (any multiple of eight columns).
//
// A warp owns two rows of the weight and SLICE rows of x (blockIdx.x says which); its lanes take turns along k, 16 bytes
// of each row at a time, and add up their sums at the end.
#pragma once

#include "unpack.h"

template <int BITS, int KIND, int SLICE>
INLINE void simple_linear(const Arguments& a) {
    constexpr int WIDTH = 128 / BITS, EIGHTS = WIDTH / 8, WORDS = BITS / 4, ROWS = 2;
    const u32 lane = threadIdx.x % 32, chunks = a.k / WIDTH;
    const u32 first_row = (blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32) * ROWS, first_x = blockIdx.x * SLICE;
    float sum[ROWS][SLICE] = {};

    for (u32 chunk = lane; chunk < chunks; chunk += 32) {
        Quad weight[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            weight[r] = load_once((const Quad*)a.weight + (min(first_row + r, a.n - 1) * chunks + chunk));
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            const u32 column = chunk * WIDTH + 8 * e;
            float x[SLICE][8];
#pragma unroll
            for (int s = 0; s < SLICE; s++) {
                const unsigned long long at = (unsigned long long)(first_x + s) * a.k + column;
                const Quad eight = load_if(first_x + s < a.m, (const u16*)a.x + at);
#pragma unroll
                for (int i = 0; i < 8; i++) x[s][i] = to_float<KIND>((eight.word[i / 2] >> 16 * (i % 2)) & 0xffff);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                Packed<BITS> packed;
#pragma unroll
                for (int i = 0; i < WORDS; i++) packed.word[i] = weight[r].word[e * WORDS + i];
                float q[8], scale = 1.0f;
                unpack_floats<BITS>(packed, q);
                if (a.groups) {
                    const u32 index = min(first_row + r, a.n - 1) * a.groups + divide(column, a.group_magic);
                    scale = scale_value(a, load_scale(a, index));
                }
#pragma unroll
                for (int s = 0; s < SLICE; s++) {
                    float part = 0.0f;
#pragma unroll
                    for (int i = 0; i < 8; i++) part += q[i] * x[s][i];
                    sum[r][s] += scale * part;
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int s = 0; s < SLICE; s++) {
#pragma unroll
            for (u32 mask = 16; mask > 0; mask /= 2) sum[r][s] += shuffle_xor(sum[r][s], mask);
            if (lane == 0 && first_row + r < a.n && first_x + s < a.m)
                store_result<KIND>(a, a.groups == 0, sum[r][s], first_row + r, first_x + s);
        }
}
