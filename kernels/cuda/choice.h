// The place of a row's largest logit: the greedy choice, without asking the host. A block takes a row.
#pragma once

#include "numbers.h"

struct ChoiceArguments {  // kernels/cuda/rows.py fills it
    const float* logits;  // (rows, v)
    u64* out;             // (rows): of equal logits the first; one that is no number counts as larger than all
    u32 v;
};

const u32 CHOICE_THREADS = 1024;

struct Candidate {
    u32 rank, place;  // rank: ordered as the logits are

    INLINE bool is_behind(u32 other_rank, u32 other_place) const {
        return other_rank > rank || (other_rank == rank && other_place < place);
    }
};

INLINE u32 rank_of(float logit) {
    if (logit != logit) return 0xffffffff;
    const u32 bits = as_bits(logit + 0.0f);  // both zeros are equal
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

INLINE void take_better_over_lanes(Candidate& best) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const u32 rank = shuffle_xor(best.rank, mask), place = shuffle_xor(best.place, mask);
        if (best.is_behind(rank, place)) best.rank = rank, best.place = place;
    }
}

INLINE void find_largest(const ChoiceArguments& a) {
    constexpr int TURNS = 8;
    __shared__ u32 ranks[CHOICE_THREADS / 32], places[CHOICE_THREADS / 32];
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const float* row = a.logits + (u64)blockIdx.x * a.v;
    Candidate best{0, 0xffffffff};
    for (u32 first = threadIdx.x; first < a.v; first += TURNS * CHOICE_THREADS) {
        u32 logit[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)  // past the end, the last one again
            logit[turn] = read_u32(row + min(first + turn * CHOICE_THREADS, a.v - 1));
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const u32 rank = rank_of(as_float(logit[turn])), place = min(first + turn * CHOICE_THREADS, a.v - 1);
            if (best.is_behind(rank, place)) best.rank = rank, best.place = place;
        }
    }
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    take_better_over_lanes(best);
    if (lane == 0) ranks[warp] = best.rank, places[warp] = best.place;
    __syncthreads();
    if (warp > 0) return;
    best.rank = ranks[lane], best.place = places[lane];
    take_better_over_lanes(best);
    if (lane == 0) {
        store_u32(a.out + blockIdx.x, best.place);
        store_u32((u32*)(a.out + blockIdx.x) + 1, 0);
    }
}
