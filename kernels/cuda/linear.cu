// Weight-only linear layers on CUDA devices. Compiled by kernels/cuda/build.py, once for each GLM_BITS (8 or 4) and
// GLM_KIND (0 float16, 1 bfloat16: of x and the result) that is used; kernels/cuda/linear.py picks the kernel.

#include "dequantize.h"
#include "read.h"
#include "simple.h"
#include "skinny.h"

extern "C" {

__global__ void dequantize_eights(const Arguments a) { dequantize_eights<GLM_BITS, GLM_KIND>(a); }
__global__ void dequantize_any(const Arguments a) { dequantize_any<GLM_BITS, GLM_KIND>(a); }

__global__ void __launch_bounds__(256) read_all(const Arguments a) { read_everything(a); }

#define SIMPLE(SLICE) \
    __global__ void __launch_bounds__(128) simple_##SLICE(const Arguments a) { \
        simple_linear<GLM_BITS, GLM_KIND, SLICE>(a); \
    }

SIMPLE(1)
SIMPLE(2)
SIMPLE(4)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// skinny_<tiles of 16 rows>_<slices of 8 rows of x>_<scaling>. BLOCKS: that a processor shall hold, so that one's
// beginning and end are covered by another's work; two leave 128 registers a thread.
#define SKINNY(TILES, SLICES, STAGES, SCALING, BLOCKS) \
    __global__ void __launch_bounds__(32 * MAXIMUM_WARPS, BLOCKS) \
    skinny_##TILES##_##SLICES##_##SCALING(const Arguments a) { \
        Skinny<GLM_BITS, GLM_KIND, TILES, SLICES, STAGES, SCALING>(a).run(); \
    }

SKINNY(1, 1, 2, ROW, 2)
SKINNY(1, 1, 2, STAGE, 2)
SKINNY(1, 1, 2, CHUNK, 2)
SKINNY(2, 1, 2, ROW, 2)
SKINNY(2, 1, 2, STAGE, 1)
SKINNY(2, 1, 2, CHUNK, 1)
SKINNY(4, 1, 1, ROW, 2)
SKINNY(4, 1, 1, STAGE, 1)
SKINNY(4, 1, 1, CHUNK, 1)
SKINNY(4, 2, 1, ROW, 1)
SKINNY(4, 2, 1, STAGE, 1)
SKINNY(4, 2, 1, CHUNK, 1)

#endif

}
