// Layer norm and RMS norm of a row, and before it the sum with a bias and the residual: what stands between the products.
// A block takes a row and holds it in registers, so that it is read once; statistics are float32.
#pragma once

#include "numbers.h"

struct NormArguments {  // kernels/cuda/norms.py fills it
    const void* x;         // (rows, h)
    const void* residual;  // (rows, h), of which alpha times is added to x; or null
    const void* added;     // (h), what is added to each row beside it; or null
    const void* weight;    // (h)
    const void* bias;      // (h); null: an RMS norm
    void* total;           // (rows, h): the sum; or null
    void* out;             // (rows, h)
    u32 h;                 // a multiple of what 16 bytes hold
    float alpha, epsilon;
};

const u32 NORM_THREADS = 1024;  // at most

template <int KIND, int QUADS>  // 16 bytes that a thread takes, at most
struct Norm {
    static constexpr int PACK = Stored<KIND>::PACK;

    INLINE static float sum_of_block(float value) {
        __shared__ float parts[NORM_THREADS / 32];
        value = sum_over_lanes<1, 32>(value);
        __syncthreads();  // the sum before has been read
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
        __syncthreads();
        const u32 lane = threadIdx.x % 32;
        return sum_over_lanes<1, 32>(lane < blockDim.x / 32 ? parts[lane] : 0.0f);
    }

    INLINE static void run(const NormArguments& a) {
        const u32 quads = a.h / PACK;
        const u64 begin = (u64)blockIdx.x * a.h;
        float x[QUADS][PACK];
        wait_for_earlier_kernels();
        let_next_kernel_begin();
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const u32 quad = threadIdx.x + q * blockDim.x;
            to_floats<KIND>(read_if(quad < quads, element<KIND>(a.x, begin + quad * PACK)), x[q]);
        }
        finish(a, x);
    }

    // What follows once the block holds its row; x past the row's end is zero. Arguments: with NormArguments' fields.
    template <class Arguments>
    INLINE static void finish(const Arguments& a, float (&x)[QUADS][PACK]) {
        const u32 quads = a.h / PACK;
        const u64 begin = (u64)blockIdx.x * a.h;
        if (a.added)
#pragma unroll
            for (int q = 0; q < QUADS; q++) {
                const u32 quad = threadIdx.x + q * blockDim.x;
                if (quad >= quads) continue;
                float added[PACK];
                to_floats<KIND>(load_once(element<KIND>(a.added, quad * PACK)), added);
#pragma unroll
                for (int i = 0; i < PACK; i++) x[q][i] += added[i];
            }
        if (a.residual)
#pragma unroll
            for (int q = 0; q < QUADS; q++) {
                const u32 quad = threadIdx.x + q * blockDim.x;
                float residual[PACK];
                to_floats<KIND>(read_if(quad < quads, element<KIND>(a.residual, begin + quad * PACK)), residual);
#pragma unroll
                for (int i = 0; i < PACK; i++) x[q][i] += a.alpha * residual[i];
            }
        if (a.total)
#pragma unroll
            for (int q = 0; q < QUADS; q++) {
                const u32 quad = threadIdx.x + q * blockDim.x;
                if (quad < quads) store((void*)element<KIND>(a.total, begin + quad * PACK), from_floats<KIND>(x[q]));
            }
        float mean = 0.0f, total = 0.0f;
        if (a.bias) {
#pragma unroll
            for (int q = 0; q < QUADS; q++)
#pragma unroll
                for (int i = 0; i < PACK; i++) total += x[q][i];  // those past the end are zero
            mean = sum_of_block(total) / a.h;
        }
        float squares = 0.0f;
#pragma unroll
        for (int q = 0; q < QUADS; q++)
#pragma unroll
            for (int i = 0; i < PACK; i++)
                if (threadIdx.x + q * blockDim.x < quads) squares += (x[q][i] - mean) * (x[q][i] - mean);
        const float factor = reciprocal_root(sum_of_block(squares) / a.h + a.epsilon);
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const u32 quad = threadIdx.x + q * blockDim.x;
            if (quad >= quads) continue;
            float weight[PACK], bias[PACK] = {};
            to_floats<KIND>(load_once(element<KIND>(a.weight, quad * PACK)), weight);
            if (a.bias) to_floats<KIND>(load_once(element<KIND>(a.bias, quad * PACK)), bias);
#pragma unroll
            for (int i = 0; i < PACK; i++) x[q][i] = (x[q][i] - mean) * factor * weight[i] + bias[i];
            store((void*)element<KIND>(a.out, begin + quad * PACK), from_floats<KIND>(x[q]));
        }
    }
};
