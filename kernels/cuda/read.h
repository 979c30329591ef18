// Reads memory and does nothing else: what the device's read bandwidth is, for benchmarks.
#pragma once

#include "linear.h"

// m pieces of 16 bytes at x, by all threads of the grid in turns; out gets a number that depends on all of them.
INLINE void read_everything(const Arguments& a) {
    constexpr int TURNS = 4;
    const u32 stride = gridDim.x * blockDim.x;
    u32 mixed = 0;
    wait_for_earlier_kernels();
    for (u32 first = blockIdx.x * blockDim.x + threadIdx.x; first < a.m; first += TURNS * stride) {
        Quad quad[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const u32 at = first + turn * stride;
            quad[turn] = read_if(at < a.m, (const Quad*)a.x + at);
        }
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
            for (int i = 0; i < 4; i++) mixed ^= quad[turn].word[i];
    }
    if (mixed == 0x5eed5eed) store_u16(a.out, mixed);  // the compiler cannot know that it is not
}
