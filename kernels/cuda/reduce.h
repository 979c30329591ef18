// The sum of a tensor over the GPUs of a host, in one launch on each: every rank puts its part where the others can read
// it, says so, and adds up all parts in the order of the ranks, so that all get the same bits. For the few kilobytes of a
// decoding step, of which a library's all-reduce is mostly waiting.
//
// Block b of a rank needs nothing but what block b of the others has put down. An area has two slots: who writes to one
// for the sum after the next knows that all others have read it, as they have put something into the other since.
#pragma once

#include "numbers.h"

const u32 REDUCE_BLOCKS = 32, REDUCE_THREADS = 256, MOST_RANKS = 8;

struct ReduceArguments {  // kernels/cuda/reduce.py fills it
    const void* x;            // (count) of this rank
    u32* sums;                // (REDUCE_BLOCKS): how many sums each block has taken part in
    u32* failure;             // of the host: 1 + the rank that was waited for in vain
    void* areas[MOST_RANKS];  // by rank: two slots, then flags (ranks, REDUCE_BLOCKS) of u32: the sum that is put down
    void* out;                // (count)
    u32 pieces;               // of 16 bytes
    u32 rank, ranks;
    u32 slot_bytes;
    u32 patience;             // milliseconds
};

template <int KIND>
INLINE void add_ranks(const ReduceArguments& a) {
    constexpr int PACK = Stored<KIND>::PACK;
    const u32 begin = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
    wait_for_earlier_kernels();
    const u32 now = read_u32(a.sums + blockIdx.x) + 1;
    const u64 slot = now % 2 * a.slot_bytes, flags = 2 * (u64)a.slot_bytes;
    for (u32 piece = begin; piece < a.pieces; piece += stride)
        store((char*)a.areas[a.rank] + slot + 16 * (u64)piece, read_if(true, (const Quad*)a.x + piece));
    __syncthreads();
    if (threadIdx.x < a.ranks) {
        char* theirs = (char*)a.areas[threadIdx.x] + flags + 4 * (a.rank * REDUCE_BLOCKS + blockIdx.x);
        tell_rank((u32*)theirs, now);
        const char* ours = (const char*)a.areas[a.rank] + flags + 4 * (threadIdx.x * REDUCE_BLOCKS + blockIdx.x);
        if (!wait_for_rank((const u32*)ours, now, a.patience)) give_up(a.failure, 1 + threadIdx.x);
    }
    __syncthreads();
    let_next_kernel_begin();
    for (u32 piece = begin; piece < a.pieces; piece += stride) {
        float total[PACK] = {};
        for (u32 rank = 0; rank < a.ranks; rank++) {
            float part[PACK];
            to_floats<KIND>(read_of_rank((const char*)a.areas[rank] + slot + 16 * (u64)piece), part);
#pragma unroll
            for (int i = 0; i < PACK; i++) total[i] += part[i];
        }
        store((Quad*)a.out + piece, from_floats<KIND>(total));
    }
    if (threadIdx.x == 0) store_u32(a.sums + blockIdx.x, now);
}
