// out (m, n) = x (m, k) * weight (n, k)^T for more rows of x than skinny.h takes, on tensor cores (sm_80 and later):
// beams, a server's batches, evaluation. The weight is read from memory in its packed form, and unpacked in registers.
//
// A block owns 256 rows of the weight, 32 a warp, and 8 * SLICES rows of x. Both come through shared memory, step by step:
// four chunks of 16 bytes of each row of the weight, and the columns of x that belong to them, by copies that are under
// way while earlier steps are multiplied, DEPTH - 1 steps ahead with 16 KB of weights each. That is 32 KB a processor or
// more, where an H200 (4.8 TB/s, 132 processors, 0.8 microseconds until the memory answers) needs 29. Lanes and columns
// are as in skinny.h: a lane multiplies what lies side by side in 16 bytes, so that it reads 16 bytes of weights and of x
// at a time, and no element moves between lanes. The weight is unpacked once for all rows of x of the block.
//
// The 16-byte pieces of a row of x are put in such an order that the eight lanes whose reads are one access find theirs
// in different banks; those of the weight lie so by themselves.
//
// Where there are fewer blocks than processors, `splits` blocks share the columns: each writes its sums to `partial`, and
// a second kernel, add_parts, adds them in their order and does what stands at the end of a product.
#pragma once

#include "linear.h"

const u32 WIDE_ROWS = 256;  // of the weight, and threads: of a block

template <int BITS, int KIND, int SLICES, bool HAS_GROUPS>
struct Wide {
    static constexpr int TILES = 2;  // of 16 rows of the weight: of a warp
    static constexpr int WIDTH = 128 / BITS, EIGHTS = WIDTH / 8;  // columns of a chunk
    static constexpr u32 CHUNKS = 4, QUADS = CHUNKS * EIGHTS;  // of a row in a step: 16 bytes of weights, and of x
    static constexpr u32 X_ROWS = 8 * SLICES, DEPTH = SLICES == 8 ? 3 : 4;
    static constexpr u32 PITCH = WIDE_ROWS + 4;  // of the sums with a row of x: lanes write to different banks

    const Arguments& a;
    u32 chunks, lane_group, lane_place, block_row, first_x, last_row, split;
    float sum[TILES][SLICES][4];

    INLINE Wide(const Arguments& arguments) : a(arguments) {
        const u32 x_blocks = (a.m + X_ROWS - 1) / X_ROWS;
        chunks = a.k / WIDTH;
        lane_group = threadIdx.x % 32 / 4;
        lane_place = threadIdx.x % 4;
        block_row = blockIdx.y * (a.is_gated() ? WIDE_ROWS / 2 : WIDE_ROWS);
        first_x = blockIdx.x % x_blocks * X_ROWS;
        split = blockIdx.x / x_blocks;
        last_row = a.results() - 1;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int s = 0; s < SLICES; s++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[t][s][i] = 0.0f;
    }

    // The column of the result that a row of the block belongs to; with a gated ending every second eight rows are gates.
    INLINE u32 result(u32 local) const {
        return block_row + (a.is_gated() ? local / 16 * 8 + local % 8 : local);
    }

    INLINE u32 row(u32 local) const { return result(local) + (a.is_gated() ? local / 8 % 2 * a.results() : 0); }

    // Where a piece of a row of x lies, in pieces from the row's beginning.
    INLINE static u32 place(u32 piece, u32 x_row) {
        return BITS == 4 ? piece ^ (piece / 8 % 2) ^ x_row % 2 * 2 : piece ^ x_row % 2;
    }

    // What lies past the end becomes zeros.
    INLINE void copy_weights(u32 step, Quad* to) const {
        constexpr u32 APART = WIDE_ROWS / CHUNKS;  // rows that a thread takes
        const u32 own = threadIdx.x / CHUNKS, chunk = step * CHUNKS + threadIdx.x % CHUNKS;
        const u32 results = a.is_gated() ? APART / 2 : APART;  // between those rows
        u32 from = row(own) * chunks + chunk, at = result(own);
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++, from += results * chunks, at += results)
            copy_async(to + threadIdx.x + i * WIDE_ROWS, (const Quad*)a.weight + from, chunk < chunks && at <= last_row);
    }

    INLINE void copy_x(u32 step, Quad* to) const {
        constexpr u32 APART = WIDE_ROWS / QUADS;
        const u32 own = threadIdx.x / QUADS, eights = a.k / 8, eight = step * QUADS + threadIdx.x % QUADS;
        u32 from = (first_x + own) * eights + eight;
        to += own * QUADS + place(threadIdx.x % QUADS, own);
#pragma unroll
        for (u32 first = 0; first < X_ROWS; first += APART, from += APART * eights)
            if (X_ROWS >= APART || own < X_ROWS)
                copy_async(to + first * QUADS, (const Quad*)a.x + from, first_x + first + own < a.m && eight < eights);
    }

    INLINE void load_scales(u32 (&scales)[TILES][2], u32 step) const {
        const u32 group = divide(min(step * CHUNKS + lane_place, chunks - 1) * WIDTH, a.group_magic);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 local = local_row(t, half);  // past the end a scale that is there
                scales[t][half] = load_scale(a, (result(local) > last_row ? 0 : row(local)) * a.groups + group);
            }
    }

    INLINE u32 local_row(int tile, int half) const {
        return threadIdx.x / 32 * 32 + 16 * tile + 8 * half + lane_group;
    }

    INLINE void multiply_step(const Quad* weights, const Quad* x, const u32 (&stored)[TILES][2]) {
        Quad packed[TILES][2];
        u32 scales[TILES][2];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                packed[t][half] = read_shared(weights + local_row(t, half) * CHUNKS + lane_place);
                if (HAS_GROUPS) scales[t][half] = from_float<KIND>(scale_value(a, stored[t][half])) * 0x10001;
            }
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            Pairs rows[TILES][2];
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    rows[t][half] = unpack<BITS, KIND>(packed_eight<BITS>(packed[t][half], e));
                    if (HAS_GROUPS)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            rows[t][half].pair[i] = multiply<KIND>(rows[t][half].pair[i], scales[t][half]);
                }
#pragma unroll
            for (int s = 0; s < SLICES; s++) {
                const u32 local = 8 * s + lane_group, piece = lane_place * EIGHTS + e;
                const Pairs columns = arrange<BITS>(read_shared(x + local * QUADS + place(piece, local)));
#pragma unroll
                for (int t = 0; t < TILES; t++)
#pragma unroll
                    for (int i = 0; i < 4; i += 2)
                        multiply_add<KIND>(sum[t][s], rows[t][0].pair[i], rows[t][1].pair[i], rows[t][0].pair[i + 1],
                                           rows[t][1].pair[i + 1], columns.pair[i], columns.pair[i + 1]);
            }
        }
    }

    INLINE void run(Quad* shared) {
        constexpr u32 weights = WIDE_ROWS * CHUNKS, size = weights + X_ROWS * QUADS;  // 16-byte pieces of a step
        const u32 steps = (chunks + CHUNKS - 1) / CHUNKS, each = (steps + a.splits - 1) / a.splits;
        const u32 begin = split * each, end = min(begin + each, steps);
        u32 now[TILES][2], next[TILES][2] = {};
#pragma unroll
        for (u32 ahead = 0; ahead < DEPTH - 1; ahead++)
            if (begin + ahead < end) copy_weights(begin + ahead, shared + ahead * size);
        if (HAS_GROUPS) load_scales(next, begin);
        wait_for_earlier_kernels();
#pragma unroll
        for (u32 ahead = 0; ahead < DEPTH - 1; ahead++) {
            if (begin + ahead < end) copy_x(begin + ahead, shared + ahead * size + weights);
            close_copies();
        }
        u32 at = 0, free = DEPTH - 1;  // buffers
        for (u32 step = begin; step < end; step++) {
            wait_for_copies<DEPTH - 2>();
            __syncthreads();  // of all threads; and all have done with the buffer that is free
            if (step + DEPTH - 1 < end) {
                copy_weights(step + DEPTH - 1, shared + free * size);
                copy_x(step + DEPTH - 1, shared + free * size + weights);
            }
            close_copies();
            if (HAS_GROUPS) {
#pragma unroll
                for (int t = 0; t < TILES; t++) now[t][0] = next[t][0], now[t][1] = next[t][1];
                if (step + 1 < end) load_scales(next, step + 1);
            }
            multiply_step(shared + at * size, shared + at * size + weights, now);
            free = at;
            at = at + 1 == DEPTH ? 0 : at + 1;
        }
        let_next_kernel_begin();
        wait_for_copies<0>();  // of zeros, if any
        __syncthreads();
        float* sums = (float*)shared;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int s = 0; s < SLICES; s++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[(8 * s + 2 * lane_place + i % 2) * PITCH + local_row(t, i / 2)] = sum[t][s][i];
        __syncthreads();
        if (a.splits > 1) store_part(sums);
        else store_results(sums);
    }

    INLINE void store_part(const float* sums) const {
        if (result(threadIdx.x) > last_row) return;
        const u64 first = (u64)split * a.m + first_x, rows = min(a.m - first_x, X_ROWS);
        for (u32 i = 0; i < rows; i++)
            store_u32(a.partial + (first + i) * a.n + row(threadIdx.x), as_bits(sums[i * PITCH + threadIdx.x]));
    }

    INLINE void store_results(const float* sums) const {
        const u32 results = a.is_gated() ? WIDE_ROWS / 2 : WIDE_ROWS, rows = min(a.m - first_x, X_ROWS);
        for (u32 i = threadIdx.x; i < results * rows; i += WIDE_ROWS) {
            const u32 at = i % results, x_row = i / results;
            if (block_row + at > last_row) continue;
            const float* both = sums + x_row * PITCH + (a.is_gated() ? at / 8 * 16 + at % 8 : at);
            store_result<KIND>(a, !HAS_GROUPS, both[0], a.is_gated() ? both[8] : 0.0f, block_row + at, first_x + x_row);
        }
    }
};

// The result's columns blockIdx.x * blockDim.x ... of row blockIdx.y.
template <int KIND>
INLINE void add_all_parts(const Arguments& a) {
    wait_for_earlier_kernels();
    let_next_kernel_begin();
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= a.results()) return;
    float total = 0.0f, gated = 0.0f;
    for (u32 split = 0; split < a.splits; split++) {
        const float* sums = a.partial + ((u64)split * a.m + blockIdx.y) * a.n + at;
        total += as_float(read_u32(sums));
        if (a.is_gated()) gated += as_float(read_u32(sums + a.results()));
    }
    store_result<KIND>(a, a.groups == 0, total, gated, at, blockIdx.y);
}
