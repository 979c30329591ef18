// The sum of a tensor over the GPUs of a host, in one launch on each: every rank puts its part where the others can read
// it, says so, and adds up all parts in the order of the ranks, so that all get the same bits. For the few kilobytes of a
// decoding step, of which a library's all-reduce is mostly waiting. Where a norm follows, it is part of the launch.
//
// Block b of a rank needs nothing but what block b of the others has put down, and puts it always at the same places. An
// area has two slots: who writes to one for the sum after the next knows that all others have read it, as they have put
// something into the other since.
#pragma once

#include "norm.h"

const u32 REDUCE_BLOCKS = 32, REDUCE_THREADS = 256, MOST_RANKS = 8;
const u32 ROW_BYTES = 32 << 10;  // of a slot, for each row that is normed: a block's places

struct ReduceArguments {  // kernels/cuda/reduce.py fills it
    const void* x;            // (count) of this rank
    u32* sums;                // (REDUCE_BLOCKS): how many sums each block has taken part in
    u32* failure;             // of the host: 1 + the rank that was waited for in vain
    void* areas[MOST_RANKS];  // by rank: two slots, then flags (ranks, REDUCE_BLOCKS) of u32: the sum that is put down
    void* out;                // (count)
    u32 pieces;               // of 16 bytes
    u32 rank, ranks;
    u32 slot_bytes;
    u32 offset;               // of the area that is used: sums with a norm have one of their own
    u32 patience;             // milliseconds
};

struct ReduceNormArguments {  // likewise; as in ReduceArguments and NormArguments
    const void* x;  // (rows, h) of this rank
    const void* residual;
    const void* added;
    const void* weight;
    const void* bias;
    u32* sums;
    u32* failure;
    void* areas[MOST_RANKS];
    void* total;
    void* out;
    u32 h, rank, ranks, slot_bytes, offset, patience;
    float alpha, epsilon;
};

// Says that this block's part of sum number `now` is there, and waits for the other ranks' parts.
template <class Arguments>
INLINE void meet_ranks(const Arguments& a, u32 now) {
    const u64 flags = a.offset + 2 * (u64)a.slot_bytes;
    __syncthreads();
    if (threadIdx.x < a.ranks) {
        char* theirs = (char*)a.areas[threadIdx.x] + flags + 4 * (a.rank * REDUCE_BLOCKS + blockIdx.x);
        tell_rank((u32*)theirs, now);
        const char* ours = (const char*)a.areas[a.rank] + flags + 4 * (threadIdx.x * REDUCE_BLOCKS + blockIdx.x);
        if (!wait_for_rank((const u32*)ours, now, a.patience)) give_up(a.failure, 1 + threadIdx.x);
    }
    __syncthreads();
}

// Of the 16 bytes at this place of all areas. All are asked for before the first is waited for.
template <int KIND, class Arguments>
INLINE void sum_of_parts(const Arguments& a, u64 place, float (&total)[Stored<KIND>::PACK]) {
    Quad parts[MOST_RANKS];
#pragma unroll
    for (u32 rank = 0; rank < MOST_RANKS; rank++)
        if (rank < a.ranks) parts[rank] = read_of_rank((const char*)a.areas[rank] + place);
#pragma unroll
    for (u32 rank = 0; rank < MOST_RANKS; rank++)
        if (rank < a.ranks) {
            float part[Stored<KIND>::PACK];
            to_floats<KIND>(parts[rank], part);
#pragma unroll
            for (int i = 0; i < Stored<KIND>::PACK; i++) total[i] += part[i];
        }
}

template <int KIND>
INLINE void add_ranks(const ReduceArguments& a) {
    const u32 begin = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
    wait_for_earlier_kernels();
    const u32 now = read_u32(a.sums + blockIdx.x) + 1;
    const u64 slot = a.offset + now % 2 * (u64)a.slot_bytes;
    for (u32 piece = begin; piece < a.pieces; piece += stride)
        store((char*)a.areas[a.rank] + slot + 16 * (u64)piece, read_if(true, (const Quad*)a.x + piece));
    meet_ranks(a, now);
    let_next_kernel_begin();
    for (u32 piece = begin; piece < a.pieces; piece += stride) {
        float total[Stored<KIND>::PACK] = {};
        sum_of_parts<KIND>(a, slot + 16 * (u64)piece, total);
        store((Quad*)a.out + piece, from_floats<KIND>(total));
    }
    if (threadIdx.x == 0) store_u32(a.sums + blockIdx.x, now);
}

template <int KIND, int QUADS>
INLINE void add_ranks_and_norm(const ReduceNormArguments& a) {
    constexpr int PACK = Stored<KIND>::PACK;
    const u32 quads = a.h / PACK;
    wait_for_earlier_kernels();
    const u32 now = read_u32(a.sums + blockIdx.x) + 1;
    const u64 row = a.offset + now % 2 * (u64)a.slot_bytes + (u64)blockIdx.x * ROW_BYTES;
    for (u32 quad = threadIdx.x; quad < quads; quad += blockDim.x)
        store((char*)a.areas[a.rank] + row + 16 * quad, read_if(true, (const Quad*)a.x + (u64)blockIdx.x * quads + quad));
    meet_ranks(a, now);
    let_next_kernel_begin();
    float x[QUADS][PACK] = {};
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const u32 quad = threadIdx.x + q * blockDim.x;
        if (quad < quads) sum_of_parts<KIND>(a, row + 16 * quad, x[q]);
    }
    Norm<KIND, QUADS>::finish(a, x);
    if (threadIdx.x == 0) store_u32(a.sums + blockIdx.x, now);
}
