// Attention of one new token a row over a cache of keys and values, in one launch: queries and keys are turned, the new
// key and value written to the cache, and its places divided among blocks, of which the last one to end adds up all.
//
// A block serves HEADS heads of a row that share keys and values, and a part of its places. LANES lanes of a warp hold a
// head, 16 bytes each, and take a place at a time; so a warp has 32 / LANES places at once, and asks for DEPTH of each
// before it needs them. Every group of lanes keeps the largest score so far, the sum of exponentials and the weighted sum
// of values in float32 (Milakov and Gimelshein 2018), and these are added up: over the lanes of a warp, the warps of a
// block, the blocks of a head. Scores are in powers of two: queries are multiplied by log2 e / sqrt(d).
#pragma once

#include "numbers.h"

enum Rotary : u32 { NONE, HALVES, HALVES_2D, PAIRS };  // as kernels.layer.Rotary

struct AttentionArguments {  // kernels/cuda/attention.py fills it
    const void* qkv;             // (b, (heads + 2 * groups) * size)
    const float* cosine;         // (b, turned), or null with NONE
    const float* sine;
    const u64* lengths;          // (b): filled places; the new token's is the next one
    const u64* starts;           // (b): the first place that is seen; null: 0
    const u64* context_rows;     // (b): whose first places a row has in common with others; null: its own
    const u64* context_lengths;  // (b): how many of them
    void* keys;                  // of a layer: row by row, group by group, place by place, `size` at a time
    void* values;
    float* partial;              // (b, heads, splits, 2 + size): largest score, sum of exponentials, weighted values
    u32* arrived;                // for every blockIdx.y: blocks that have ended; begins and ends at zero
    void* out;                   // (b, heads * size)
    u32 heads, groups, size;
    u32 turned;                   // columns of cosine and sine; with PAIRS the coordinates that turn
    u32 rotary;                   // Rotary
    u32 by_heads;                 // qkv is [q | k | v] head by head; else all of q, all of k, all of v
    u32 capacity;                 // places of the cache
    u32 splits;                   // blocks that a row's places are divided among
    u32 row_stride, head_stride;  // of keys and values, in elements
    float scale;                  // of scores, times log2 e
};

const u32 ATTENTION_THREADS = 128, FEWEST_PLACES = 32;  // of a block that others share a row with

template <int KIND, int LANES, int HEADS>
struct Attention {
    static constexpr int PACK = Stored<KIND>::PACK, WIDTH = LANES * PACK, DEPTH = 4;
    static constexpr u32 WARPS = ATTENTION_THREADS / 32, SLOTS = ATTENTION_THREADS / LANES;
    static constexpr float LEAST = -1e30f;  // below all scores; its differences are numbers

    struct Sums {  // of some places
        float top[HEADS], sum[HEADS], value[HEADS][PACK];

        // Bring everything to a new largest score: a power of two for each head.
        INLINE void raise(int head, float to) {
            const float factor = power_of_two(top[head] - to);
            top[head] = to;
            sum[head] *= factor;
#pragma unroll
            for (int i = 0; i < PACK; i++) value[head][i] *= factor;
        }

        INLINE void add(int head, float weight, const float (&values)[PACK]) {
            sum[head] += weight;
#pragma unroll
            for (int i = 0; i < PACK; i++) value[head][i] += weight * values[i];
        }
    };

    const AttentionArguments& a;
    u32 row, group, first_head, heads;  // heads: of this block
    u32 length, begin, end;             // cached places that this block sees
    bool has_new;                       // it sees the new token, too
    u32 context_row, context_length;

    INLINE Attention(const AttentionArguments& arguments) : a(arguments) {
        const u32 shared = a.heads / a.groups, blocks = (shared + HEADS - 1) / HEADS;  // of a group
        row = blockIdx.y / (a.groups * blocks);
        group = blockIdx.y / blocks % a.groups;
        const u32 first = blockIdx.y % blocks * HEADS;
        first_head = group * shared + first;
        heads = min(shared - first, (u32)HEADS);
    }

    INLINE static u32 number(const u64* p, u32 row) { return read_u32(p + row); }  // its lower half

    INLINE void find_places() {
        length = number(a.lengths, row);
        const u32 start = a.starts ? number(a.starts, row) : 0;
        const u32 total = length + 1 - start, each = (total + a.splits - 1) / a.splits;
        const u32 places = a.splits == 1 || each > FEWEST_PLACES ? each : FEWEST_PLACES;
        begin = min(start + blockIdx.x * places, length + 1);
        end = min(begin + places, length + 1);
        has_new = begin <= length && length < end;
        end = min(end, length);
        context_row = a.context_rows ? number(a.context_rows, row) : row;
        context_length = a.context_rows ? number(a.context_lengths, row) : 0;
    }

    // Where q (part 0), k (1) or v (2) of a head begins in qkv; head: of keys and values the group.
    INLINE u64 part(u32 part, u32 head) const {
        const u32 before = a.by_heads ? 3 * head + part : head + (part > 0) * a.heads + (part > 1) * a.groups;
        return (u64)row * (a.heads + 2 * a.groups) * a.size + before * a.size;
    }

    INLINE float turned(u64 from, u32 j) const {  // coordinate j of a head of q or k
        const float x = read_element<KIND>(a.qkv, from + j);
        if (a.rotary == NONE || (a.rotary == PAIRS && j >= a.turned)) return x;
        u32 other, angle = j;
        bool is_first;
        if (a.rotary == PAIRS) {
            other = j ^ 1, angle = j / 2, is_first = j % 2 == 0;
        } else {
            const u32 half = a.size / (a.rotary == HALVES ? 2 : 4);
            is_first = j / half % 2 == 0;
            other = is_first ? j + half : j - half;
        }
        const u32 at = row * a.turned + angle;
        const float y = read_element<KIND>(a.qkv, from + other) * as_float(read_u32(a.sine + at));
        return x * as_float(read_u32(a.cosine + at)) + (is_first ? -y : y);
    }

    INLINE u64 cached(u32 place) const {  // of the group's keys and values
        const u32 from = place < context_length ? context_row : row;
        return (u64)from * a.row_stride + (u64)group * a.head_stride + (u64)place * a.size;
    }

    INLINE void run() {
        __shared__ float query[HEADS][WIDTH], new_key[WIDTH], new_value[WIDTH];
        __shared__ float tops[WARPS][HEADS], totals[WARPS][HEADS], weighted[WARPS][HEADS][WIDTH];
        __shared__ u32 comes_last;
        wait_for_earlier_kernels();
        let_next_kernel_begin();
        find_places();
        for (u32 i = threadIdx.x; i < HEADS * WIDTH; i += ATTENTION_THREADS) {
            const u32 head = i / WIDTH, j = i % WIDTH;
            const bool is_there = head < heads && j < a.size;
            query[head][j] = is_there ? a.scale * turned(part(0, first_head + head), j) : 0.0f;
        }
        if (has_new)
            for (u32 j = threadIdx.x; j < WIDTH; j += ATTENTION_THREADS) {
                const bool is_there = j < a.size;
                const u32 key = from_float<KIND>(is_there ? turned(part(1, group), j) : 0.0f);  // as the cache has it
                const float value = is_there ? read_element<KIND>(a.qkv, part(2, group) + j) : 0.0f;
                new_key[j] = to_float<KIND>(key);
                new_value[j] = value;
                // heads with the same keys and values are those of several blocks: the first one writes
                if (!is_there || length >= a.capacity || first_head % (a.heads / a.groups)) continue;
                const u64 to = (u64)row * a.row_stride + (u64)group * a.head_stride + (u64)length * a.size + j;
                store_element<KIND>(a.keys, to, new_key[j]);
                store_element<KIND>(a.values, to, value);
            }
        __syncthreads();

        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, slot = threadIdx.x / LANES;
        const u32 column = threadIdx.x % LANES * PACK;
        float q[HEADS][PACK];
        Sums sums;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            sums.top[h] = LEAST, sums.sum[h] = 0.0f;
#pragma unroll
            for (int i = 0; i < PACK; i++) q[h][i] = query[h][column + i], sums.value[h][i] = 0.0f;
        }
        if (has_new) take_new(sums, q, new_key + column, new_value + column, slot == 0);
        for (u32 first = begin; first < end; first += SLOTS * DEPTH) take(sums, q, first + slot, column);
#pragma unroll
        for (u32 mask = LANES; mask < 32; mask *= 2) merge_lanes(sums, mask);
        if (lane < LANES)
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                if (lane == 0) tops[warp][h] = sums.top[h], totals[warp][h] = sums.sum[h];
#pragma unroll
                for (int i = 0; i < PACK; i++) weighted[warp][h][column + i] = sums.value[h][i];
            }
        __syncthreads();

        for (u32 i = threadIdx.x; i < heads * a.size; i += ATTENTION_THREADS) {
            const u32 h = i / a.size, j = i % a.size;
            float top = LEAST, sum = 0.0f, value = 0.0f;
            for (u32 w = 0; w < WARPS; w++) top = larger(top, tops[w][h]);
            for (u32 w = 0; w < WARPS; w++) {
                const float factor = power_of_two(tops[w][h] - top);
                sum += factor * totals[w][h];
                value += factor * weighted[w][h][j];
            }
            if (a.splits == 1) {
                store_element<KIND>(a.out, out_place(h, j), value / sum);
                continue;
            }
            float* mine = partial(h, blockIdx.x);
            if (j == 0) store_u32(mine, as_bits(top)), store_u32(mine + 1, as_bits(sum));
            store_u32(mine + 2 + j, as_bits(value));
        }
        if (a.splits == 1) return;
        __syncthreads();
        if (threadIdx.x == 0) comes_last = is_last(a.arrived + blockIdx.y, a.splits);
        __syncthreads();
        if (comes_last) merge_blocks();
    }

    INLINE static float larger(float x, float y) { return x > y ? x : y; }

    INLINE u64 out_place(u32 head, u32 j) const { return ((u64)row * a.heads + first_head + head) * a.size + j; }

    INLINE float* partial(u32 head, u32 split) const {
        return a.partial + (((u64)row * a.heads + first_head + head) * a.splits + split) * (2 + a.size);
    }

    // Of a head: each of its lanes brings 16 bytes' part and gets the whole.
    INLINE static float score_of(const float (&q)[PACK], const float* key) {
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < PACK; i++) score += q[i] * key[i];
        return sum_over_lanes<1, LANES>(score);
    }

    // All lanes compute, those of one slot keep it.
    INLINE void take_new(Sums& sums, const float (&q)[HEADS][PACK], const float* key, const float* value,
                         bool is_mine) {
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float score = score_of(q[h], key);
            if (!is_mine) continue;
            sums.top[h] = score, sums.sum[h] = 1.0f;
#pragma unroll
            for (int i = 0; i < PACK; i++) sums.value[h][i] = value[i];
        }
    }

    INLINE void read_places(Quad (&quad)[DEPTH], const void* from, u32 place, u32 column) const {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const bool wanted = place + d * SLOTS < end && column < a.size;
            quad[d] = read_once_if(wanted, element<KIND>(from, cached(place + d * SLOTS) + column));
        }
    }

    INLINE void take(Sums& sums, const float (&q)[HEADS][PACK], u32 place, u32 column) {
        Quad key[DEPTH], value[DEPTH];
        read_places(key, a.keys, place, column);
        read_places(value, a.values, place, column);
        float score[HEADS][DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            float k[PACK];
            to_floats<KIND>(key[d], k);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                const float whole = score_of(q[h], k);
                score[h][d] = place + d * SLOTS < end ? whole : 2.0f * LEAST;
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float top = sums.top[h];
#pragma unroll
            for (int d = 0; d < DEPTH; d++) top = larger(top, score[h][d]);
            sums.raise(h, top);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            float v[PACK];
            to_floats<KIND>(value[d], v);
#pragma unroll
            for (int h = 0; h < HEADS; h++) sums.add(h, power_of_two(score[h][d] - sums.top[h]), v);
        }
    }

    INLINE void merge_lanes(Sums& sums, u32 mask) const {
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            sums.raise(h, larger(sums.top[h], shuffle_xor(sums.top[h], mask)));
            sums.sum[h] += shuffle_xor(sums.sum[h], mask);
#pragma unroll
            for (int i = 0; i < PACK; i++) sums.value[h][i] += shuffle_xor(sums.value[h][i], mask);
        }
    }

    INLINE void merge_blocks() const {
        for (u32 i = threadIdx.x; i < heads * a.size; i += ATTENTION_THREADS) {
            const u32 h = i / a.size, j = i % a.size;
            float top = LEAST, sum = 0.0f, value = 0.0f;
            for (u32 s = 0; s < a.splits; s++) top = larger(top, as_float(read_latest(partial(h, s))));
            for (u32 s = 0; s < a.splits; s++) {
                const float* part = partial(h, s);
                const float factor = power_of_two(as_float(read_latest(part)) - top);
                sum += factor * as_float(read_latest(part + 1));
                value += factor * as_float(read_latest(part + 2 + j));
            }
            store_element<KIND>(a.out, out_place(h, j), value / sum);
        }
    }
};
