// out (m, n) = x (m, k) * weight (n, k)^T for few rows of x, on tensor cores (sm_80 and later): decoding, which is bound
// by reading the weights once.
//
// A warp owns TILES * 16 rows of the weight; the warps of a block share these rows and take turns along k, and add up
// their sums at the end. A block needs nothing of the others: no workspace, no second kernel, no atomics, the same sum
// every time. With row_groups above one the warps of a block are divided among so many groups of rows, and those at the
// same place of k find x in the L1 cache, where the first of them has brought it. A tensor core's product takes 16 rows
// of weights and, as its columns, 8 rows of x; SLICES * 8 rows of x are taken at a time, blockIdx.x says which,
// blockIdx.y which rows of the weight.
//
// Lane 4 * g + t holds rows g and g + 8 of a product and four of its 16 columns. Which columns is ours to choose, since a
// sum has no order: the lane loads 16 neighbouring bytes of its rows (a "chunk": 32 or 16 columns), its four neighbours
// the chunks beside, and what they unpack goes into the products as it comes, with x loaded the same way. So all loads
// of weights are of 16 bytes, four lanes side by side, and no weight passes through shared memory. "stages" are four
// chunks; a turn takes STAGES of them, while the loads of the next turn are under way.
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

const u32 MAXIMUM_WARPS = 8;

template <int BITS, int KIND, int TILES, int SLICES, int STAGES, int SCALING>
struct Skinny {
    static constexpr int ROWS = 16 * TILES, COLUMNS = 8 * SLICES;
    static constexpr int WIDTH = 128 / BITS;    // columns of a chunk
    static constexpr int EIGHTS = WIDTH / 8;    // a chunk is unpacked eight columns at a time

    struct Turn {  // what a lane has loaded of its rows
        Quad weight[STAGES][TILES][2];
        u32 scale[STAGES][TILES][2];
    };

    const Arguments& a;
    u32 chunks, lane_group, lane_place, block_row, first_row, first_x;
    u32 tile_step, half_step, last_row;  // see row
    float sum[TILES][SLICES][4];

    INLINE Skinny(const Arguments& arguments) : a(arguments) {
        chunks = a.k / WIDTH;
        lane_group = threadIdx.x % 32 / 4;
        lane_place = threadIdx.x % 4;
        block_row = blockIdx.y * a.row_groups * ROWS;
        first_row = block_row + threadIdx.x / 32 % a.row_groups * ROWS;
        first_x = blockIdx.x * COLUMNS;
        tile_step = a.is_gated() ? 8 : 16;
        half_step = a.is_gated() ? a.results() : 8;
        last_row = a.results() - 1;
        if (a.is_gated()) block_row /= 2, first_row /= 2;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int s = 0; s < SLICES; s++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[t][s][i] = 0.0f;
    }

    // Of a gated ending, a lane's second row of a tile is the gate of its first: eight results a tile. Rows past the end
    // repeat the last one; their sums are not stored.
    INLINE u32 row(int tile, int half) const {
        const u32 at = first_row + tile_step * tile + lane_group;
        return a.is_gated() ? min(at, last_row) + half * half_step : min(at + half * half_step, last_row);
    }

    INLINE u32 chunk(u32 turn, int stage) const { return (turn * STAGES + stage) * 4 + lane_place; }

    // Chunks past the end repeat the last one; their x is zero.
    INLINE void load(Turn& loaded, u32 turn) const {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            const u32 place = min(chunk(turn, stage), chunks - 1);
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    loaded.weight[stage][t][half] = load_once((const Quad*)a.weight + (row(t, half) * chunks + place));
            if (SCALING == ROW) continue;
            const u32 group = divide(place * WIDTH, a.group_magic);
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    loaded.scale[stage][t][half] = load_scale(a, row(t, half) * a.groups + group);
        }
    }

    INLINE void add(const Turn& loaded, u32 turn) {
#pragma unroll
        for (int stage = 0; stage < STAGES; stage++) {
            const u32 place = chunk(turn, stage);
            Quad x[SLICES][EIGHTS];
#pragma unroll
            for (int s = 0; s < SLICES; s++) {
                const u32 x_row = first_x + 8 * s + lane_group;
                const char* begin = (const char*)a.x + ((unsigned long long)x_row * a.k + place * WIDTH) * 2;
#pragma unroll
                for (int e = 0; e < EIGHTS; e++) x[s][e] = read_if(x_row < a.m && place < chunks, begin + 16 * e);
            }
            u32 pairs[TILES][2] = {};  // of CHUNK: the scale of a row, twice
            if (SCALING == CHUNK)
#pragma unroll
                for (int t = 0; t < TILES; t++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        pairs[t][half] = from_float<KIND>(scale_value(a, loaded.scale[stage][t][half])) * 0x10001;
            if (SCALING == STAGE) {
                float part[TILES][SLICES][4] = {};
                multiply_stage(part, loaded, stage, pairs, x);
                scale_stage(part, loaded, stage);
            } else {
                multiply_stage(sum, loaded, stage, pairs, x);
            }
        }
    }

    INLINE void multiply_stage(float (&to)[TILES][SLICES][4], const Turn& loaded, int stage,
                               const u32 (&scales)[TILES][2], const Quad (&x)[SLICES][EIGHTS]) const {
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            Pairs columns[SLICES];
#pragma unroll
            for (int s = 0; s < SLICES; s++) columns[s] = arrange<BITS>(x[s][e]);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                Pairs rows[2];
#pragma unroll
                for (int half = 0; half < 2; half++) rows[half] = weights(loaded.weight[stage][t][half], scales[t][half], e);
#pragma unroll
                for (int s = 0; s < SLICES; s++)
#pragma unroll
                    for (int i = 0; i < 4; i += 2)
                        multiply_add<KIND>(to[t][s], rows[0].pair[i], rows[1].pair[i], rows[0].pair[i + 1],
                                           rows[1].pair[i + 1], columns[s].pair[i], columns[s].pair[i + 1]);
            }
        }
    }

    INLINE Pairs weights(const Quad& chunk, u32 scales, int eight) const {
        Packed<BITS> packed;
#pragma unroll
        for (int i = 0; i < BITS / 4; i++) packed.word[i] = chunk.word[eight * (BITS / 4) + i];
        Pairs p = unpack<BITS, KIND>(packed);
        if (SCALING == CHUNK)
#pragma unroll
            for (int i = 0; i < 4; i++) p.pair[i] = multiply<KIND>(p.pair[i], scales);
        return p;
    }

    INLINE void scale_stage(const float (&part)[TILES][SLICES][4], const Turn& loaded, int stage) {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float scale = scale_value(a, loaded.scale[stage][t][half]);
#pragma unroll
                for (int s = 0; s < SLICES; s++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) sum[t][s][i] += scale * part[t][s][i];
            }
    }

    INLINE void run() {
        __shared__ float partial[MAXIMUM_WARPS * ROWS * COLUMNS];
        const u32 warps = blockDim.x / 32 / a.row_groups, turns = (chunks + 4 * STAGES - 1) / (4 * STAGES);
        const u32 warp = threadIdx.x / 32 / a.row_groups, rows = a.row_groups * ROWS;  // warps: of a group
        Turn even, odd;
        u32 turn = warp;
        if (turn < turns) load(even, turn);
        wait_for_earlier_kernels();
        while (turn < turns) {
            if (turn + warps < turns) load(odd, turn + warps);
            add(even, turn);
            turn += warps;
            if (turn >= turns) break;
            if (turn + warps < turns) load(even, turn + warps);
            add(odd, turn);
            turn += warps;
        }
        let_next_kernel_begin();
        float* mine = partial + warp * rows * COLUMNS + (threadIdx.x / 32 % a.row_groups * ROWS + lane_group);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int s = 0; s < SLICES; s++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    mine[(8 * s + 2 * lane_place + i % 2) * rows + 16 * t + 8 * (i / 2)] = sum[t][s][i];
        __syncthreads();
        const u32 results = a.is_gated() ? rows / 2 : rows;
        for (u32 i = threadIdx.x; i < results * COLUMNS; i += blockDim.x) {
            const u32 at = i % results, x_row = first_x + i / results;
            if (block_row + at > last_row || x_row >= a.m) continue;
            const float* sums = partial + i / results * rows + (a.is_gated() ? at / 8 * 16 + at % 8 : at);
            float total = 0.0f, gated = 0.0f;
            for (u32 w = 0; w < warps; w++) {
                total += sums[w * rows * COLUMNS];
                if (a.is_gated()) gated += sums[w * rows * COLUMNS + 8];
            }
            store_result<KIND>(a, SCALING == ROW, total, gated, block_row + at, x_row);
        }
    }
};
