// The same product in plain float32 arithmetic: for GPUs before sm_80, whose tensor cores take other shapes, and for
// groups that end inside of 16 bytes (any multiple of eight columns).
//
// A warp owns two rows of the weight and SLICE rows of x (blockIdx.x says which); its lanes take turns along k, 16 bytes
// of each row at a time, and add up their sums at the end. Of a gated ending the two rows are those of one result.
#pragma once

#include "linear.h"

template <int BITS, int KIND, int SLICE>
INLINE void simple_linear(const Arguments& a) {
    constexpr int WIDTH = 128 / BITS, EIGHTS = WIDTH / 8, ROWS = 2;
    const u32 lane = threadIdx.x % 32, chunks = a.k / WIDTH;
    const u32 warp = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, first_x = blockIdx.x * SLICE;
    const u32 first = a.is_gated() ? warp : warp * ROWS, last = a.results() - 1;  // past the end the last one is repeated
    u32 row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) row[r] = a.is_gated() ? min(first, last) + r * a.results() : min(first + r, last);
    wait_for_earlier_kernels();
    float sum[ROWS][SLICE] = {};

    for (u32 chunk = lane; chunk < chunks; chunk += 32) {
        Quad weight[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            weight[r] = load_once((const Quad*)a.weight + (row[r] * chunks + chunk));
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            const u32 column = chunk * WIDTH + 8 * e;
            float x[SLICE][8];
#pragma unroll
            for (int s = 0; s < SLICE; s++) {
                const unsigned long long at = (unsigned long long)(first_x + s) * a.k + column;
                to_floats<KIND>(read_if(first_x + s < a.m, (const u16*)a.x + at), x[s]);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float q[8], scale = 1.0f;
                unpack_floats<BITS>(packed_eight<BITS>(weight[r], e), q);
                if (a.groups) {
                    const u32 index = row[r] * a.groups + divide(column, a.group_magic);
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
    let_next_kernel_begin();
#pragma unroll
    for (int s = 0; s < SLICE; s++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r][s] = sum_over_lanes<1, 32>(sum[r][s]);
        if (lane != 0 || first_x + s >= a.m) continue;
        const bool by_row = a.groups == 0;
        if (first <= last) store_result<KIND>(a, by_row, sum[0][s], sum[1][s], first, first_x + s);
        if (!a.is_gated() && first < last) store_result<KIND>(a, by_row, sum[1][s], 0.0f, first + 1, first_x + s);
    }
}
