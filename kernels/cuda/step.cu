// What a decoding step computes between its products. Compiled by kernels/cuda/build.py, once for each GLM_KIND
// (0 float16, 1 bfloat16, 2 float32) that is used; kernels/cuda/attention.py, norms.py and reduce.py pick the kernel.

#include "attention.h"
#include "norm.h"
#include "reduce.h"

extern "C" {

// attention_<lanes that hold a head>_<heads that share keys and values>
#define ATTENTION(LANES, HEADS) \
    __global__ void __launch_bounds__(ATTENTION_THREADS) attention_##LANES##_##HEADS(const AttentionArguments a) { \
        Attention<GLM_KIND, LANES, HEADS>(a).run(); \
    }

ATTENTION(8, 1)
ATTENTION(8, 4)
ATTENTION(16, 1)
ATTENTION(16, 4)
#if GLM_KIND == 2
ATTENTION(32, 1)
ATTENTION(32, 4)
#else
ATTENTION(4, 1)
ATTENTION(4, 4)
#endif

// norm_<16-byte pieces of a row for each thread, at most>
#define NORM(QUADS) \
    __global__ void __launch_bounds__(NORM_THREADS) norm_##QUADS(const NormArguments a) { \
        Norm<GLM_KIND, QUADS>::run(a); \
    }

NORM(1)
NORM(2)
NORM(4)

__global__ void __launch_bounds__(REDUCE_THREADS) sum_of_ranks(const ReduceArguments a) { add_ranks<GLM_KIND>(a); }

// norm_of_ranks_<16-byte pieces of a row for each thread, at most>
#define NORM_OF_RANKS(QUADS) \
    __global__ void __launch_bounds__(NORM_THREADS) norm_of_ranks_##QUADS(const ReduceNormArguments a) { \
        add_ranks_and_norm<GLM_KIND, QUADS>(a); \
    }

NORM_OF_RANKS(1)
NORM_OF_RANKS(2)

}
