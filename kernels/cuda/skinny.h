// out (m, n) = x (m, k) * weight (n, k)^T for up to 8 rows of x, on tensor cores (sm_80 and later): decoding, which is
// bound by reading the weights once.
//
// A warp owns TILES * 16 rows of the weight; the warps of a block share these rows and take turns along k, and add up
// their sums at the end. A block needs nothing of the others: no workspace, no second kernel, no atomics, the same sum
// every time. A tensor core's product takes 16 rows of weights and, as its columns, 8 rows of x. There are as many
// blocks as run at a time: each takes every gridDim.y-th share of the rows, and asks for the next share's first weights
// while it ends with the one before.
//
// Lane 4 * g + t holds rows g and g + 8 of a product and four of its 16 columns. Which columns is ours to choose, since a
// sum has no order: the lane takes 16 neighbouring bytes of its rows (a "chunk": 32 or 16 columns), its four neighbours
// the chunks beside, and what they unpack goes into the products as it comes, with x loaded the same way. "stages" are
// four chunks; a turn takes STAGES of them.
//
// The lane's chunks come by asynchronous copies into a ring in shared memory, DEPTH - 1 turns ahead. Each lane reads what
// it has asked for itself, so that warps wait for nobody, and no register holds what is under way. How much must be?
// Latency times bandwidth: an H200 (4.8 TB/s, 132 processors, 0.8 microseconds under load) has 29 KB a processor on the
// way, an H100 (3.35) 20. Two blocks of eight warps with two turns of 2 KB have 64.
//
// Is there time for the arithmetic? An H100 (132 processors of 4 * 32 instructions a cycle, 1.7 GHz, 3.35 TB/s) that
// reads INT4 at 85% of its bandwidth unpacks 5.7e12 weights a second, 25 a cycle and processor: 5.0 instructions for
// each. The loops compiled for sm_90 take 2.0 (ROW), 2.5 (STAGE) and 3.0 (CHUNK) at one tile in float16, 0.3 more in
// bfloat16; with four tiles, which share the loading of x, 1.5 (ROW). INT8 has time for 10, and takes 2.2 in
// float16, 3.7 in bfloat16. (Read off the machine code; not measured on a device.)
#pragma once

#include "linear.h"

// Where scales come in. ROW: in the end. STAGE: the four chunks of a stage lie in one group, whose sum is scaled in
// float32. CHUNK: groups of whole chunks; the lane scales its weights, rounded as they are in the reference.
enum Scaling { ROW, STAGE, CHUNK };

const u32 MAXIMUM_WARPS = 8, COLUMNS = 8;  // rows of x: the columns of a tensor core's product

template <int BITS, int KIND, int TILES, int STAGES, int DEPTH, int SCALING>
struct Skinny {
    static constexpr int ROWS = 16 * TILES;
    static constexpr int WIDTH = 128 / BITS;    // columns of a chunk
    static constexpr int EIGHTS = WIDTH / 8;    // a chunk is unpacked eight columns at a time
    static constexpr int CHUNKS = STAGES * TILES * 2;  // of a lane in a turn

    struct Cursor {  // a warp's place in its work
        u32 share, turn;  // of the rows; along k
    };
    struct Scales {
        u32 stored[STAGES][TILES][2];
    };

    const Arguments& a;
    u32 chunks, lane_group, lane_place, warp, warps, turns;
    u32 share_results, shares, tile_step, half_step, last_row;  // of a share of the rows; see row
    Quad* ring;
    float sum[TILES][4];

    INLINE Skinny(const Arguments& arguments, Quad* shared) : a(arguments) {
        chunks = a.k / WIDTH;
        lane_group = threadIdx.x % 32 / 4;
        lane_place = threadIdx.x % 4;
        warp = threadIdx.x / 32;
        warps = blockDim.x / 32;
        turns = (chunks + 4 * STAGES - 1) / (4 * STAGES);
        share_results = a.is_gated() ? ROWS / 2 : ROWS;
        shares = (a.n + ROWS - 1) / ROWS;
        tile_step = a.is_gated() ? 8 : 16;
        half_step = a.is_gated() ? a.results() : 8;
        last_row = a.results() - 1;
        ring = shared + warp * (DEPTH * CHUNKS * 32) + threadIdx.x % 32;
        clear();
    }

    INLINE void clear() {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[t][i] = 0.0f;
    }

    INLINE Cursor after(Cursor at) const {
        const u32 turn = at.turn + warps;
        return turn < turns ? Cursor{at.share, turn} : Cursor{at.share + gridDim.y, warp};
    }

    // Of a gated ending, a lane's second row of a tile is the gate of its first: eight results a tile. Rows past the end
    // repeat the last one; their sums are not stored.
    INLINE u32 row(u32 share, int tile, int half) const {
        const u32 at = share * share_results + tile_step * tile + lane_group;
        return a.is_gated() ? min(at, last_row) + half * half_step : min(at + half * half_step, last_row);
    }

    INLINE u32 chunk(u32 turn, int stage) const { return (turn * STAGES + stage) * 4 + lane_place; }

    INLINE Quad* slot(u32 number, int stage, int tile, int half) const {
        return ring + (number * CHUNKS + (stage * TILES + tile) * 2 + half) * 32;
    }

    // Chunks past the end become zeros.
    INLINE void copy(Cursor at, u32 number) const {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            const u32 place = chunk(at.turn, stage);
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    copy_async(slot(number, stage, t, half),
                               (const Quad*)a.weight + (row(at.share, t, half) * chunks + place), place < chunks);
        }
    }

    INLINE void load(Scales& scales, Cursor at) const {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            const u32 group = divide(min(chunk(at.turn, stage), chunks - 1) * WIDTH, a.group_magic);
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    scales.stored[stage][t][half] = load_scale(a, row(at.share, t, half) * a.groups + group);
        }
    }

    INLINE void add(u32 turn, u32 number, const Scales& scales) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            const u32 place = chunk(turn, stage);
            Quad x[EIGHTS], weight[TILES][2];
            const char* begin = (const char*)a.x + ((u64)lane_group * a.k + place * WIDTH) * 2;
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) x[e] = read_if(lane_group < a.m && place < chunks, begin + 16 * e);
            u32 pairs[TILES][2] = {};  // of CHUNK: the scale of a row, twice
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    weight[t][half] = read_shared(slot(number, stage, t, half));
                    if (SCALING == CHUNK)
                        pairs[t][half] = from_float<KIND>(scale_value(a, scales.stored[stage][t][half])) * 0x10001;
                }
            if (SCALING == STAGE) {
                float part[TILES][4] = {};
                multiply_stage(part, weight, pairs, x);
                scale_stage(part, scales.stored[stage]);
            } else {
                multiply_stage(sum, weight, pairs, x);
            }
        }
    }

    INLINE void multiply_stage(float (&to)[TILES][4], const Quad (&weight)[TILES][2], const u32 (&scales)[TILES][2],
                               const Quad (&x)[EIGHTS]) const {
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            const Pairs columns = arrange<BITS>(x[e]);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                Pairs rows[2];
#pragma unroll
                for (int half = 0; half < 2; half++) rows[half] = weights(weight[t][half], scales[t][half], e);
#pragma unroll
                for (int i = 0; i < 4; i += 2)
                    multiply_add<KIND>(to[t], rows[0].pair[i], rows[1].pair[i], rows[0].pair[i + 1],
                                       rows[1].pair[i + 1], columns.pair[i], columns.pair[i + 1]);
            }
        }
    }

    INLINE Pairs weights(const Quad& chunk, u32 scales, int eight) const {
        Pairs p = unpack<BITS, KIND>(packed_eight<BITS>(chunk, eight));
        if (SCALING == CHUNK)
#pragma unroll
            for (int i = 0; i < 4; i++) p.pair[i] = multiply<KIND>(p.pair[i], scales);
        return p;
    }

    INLINE void scale_stage(const float (&part)[TILES][4], const u32 (&stored)[TILES][2]) {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float scale = scale_value(a, stored[t][half]);
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) sum[t][i] += scale * part[t][i];
            }
    }

    // Adds up the warps' sums of a share of the rows, and stores the results.
    INLINE void end(u32 share, float* partial) {
        __syncthreads();  // the share before has been added up
        float* mine = partial + warp * ROWS * COLUMNS + lane_group;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) mine[(2 * lane_place + i % 2) * ROWS + 16 * t + 8 * (i / 2)] = sum[t][i];
        clear();
        __syncthreads();
        for (u32 i = threadIdx.x; i < share_results * COLUMNS; i += blockDim.x) {
            const u32 at = i % share_results, x_row = i / share_results;
            if (share * share_results + at > last_row || x_row >= a.m) continue;
            const float* sums = partial + x_row * ROWS + (a.is_gated() ? at / 8 * 16 + at % 8 : at);
            float total = 0.0f, gated = 0.0f;
            for (u32 w = 0; w < warps; w++) {
                total += sums[w * ROWS * COLUMNS];
                if (a.is_gated()) gated += sums[w * ROWS * COLUMNS + 8];
            }
            store_result<KIND>(a, SCALING == ROW, total, gated, share * share_results + at, x_row);
        }
    }

    INLINE void run(Quad* shared) {
        float* partial = (float*)(shared + blockDim.x / 32 * (DEPTH * CHUNKS * 32));
        Cursor now{blockIdx.y, warp}, ahead = now;
        Scales scales = {}, next = {};
#pragma unroll
        for (u32 number = 0; number < DEPTH - 1; number++, ahead = after(ahead)) {
            if (ahead.share < shares) copy(ahead, number);
            close_copies();
        }
        if (SCALING != ROW) load(next, now);
        wait_for_earlier_kernels();
        u32 number = 0, free = DEPTH - 1;  // of slots
        while (now.share < shares) {
            const Cursor following = after(now);
            wait_for_copies<DEPTH - 2>();
            if (ahead.share < shares) copy(ahead, free);
            close_copies();
            ahead = after(ahead);
            if (SCALING != ROW) {
                scales = next;
                if (following.share < shares) load(next, following);
            }
            add(now.turn, number, scales);
            free = number;
            number = number + 1 == DEPTH ? 0 : number + 1;
            if (following.share >= shares) let_next_kernel_begin();
            if (following.share != now.share) end(now.share, partial);
            now = following;
        }
    }
};
