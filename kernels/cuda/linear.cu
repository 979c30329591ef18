// Weight-only linear layers on CUDA devices. Compiled by kernels/cuda/build.py, once for each GLM_BITS (8 or 4) and
// GLM_KIND (0 float16, 1 bfloat16: of x and the result) that is used; kernels/cuda/linear.py picks the kernel.

#include "dequantize.h"
#include "read.h"
#include "simple.h"
#include "skinny.h"
#include "wide.h"

extern "C" {

__global__ void __launch_bounds__(1024) dequantize_eights(const Arguments a) {
    dequantize_eights<GLM_BITS, GLM_KIND>(a);
}
__global__ void __launch_bounds__(1024) dequantize_any(const Arguments a) { dequantize_any<GLM_BITS, GLM_KIND>(a); }

__global__ void __launch_bounds__(256) add_parts(const Arguments a) { add_all_parts<GLM_KIND>(a); }
__global__ void __launch_bounds__(256) read_all(const Arguments a) { read_everything(a); }

#define SIMPLE(SLICE) \
    __global__ void __launch_bounds__(128) simple_##SLICE(const Arguments a) { \
        simple_linear<GLM_BITS, GLM_KIND, SLICE>(a); \
    }

SIMPLE(1)
SIMPLE(2)
SIMPLE(4)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// skinny_<tiles of 16 rows>_<scaling>. Two blocks a processor, so that one's end is covered by another's work, leave 128
// registers a thread.
#define SKINNY(TILES, STAGES, DEPTH, SCALING) \
    __global__ void __launch_bounds__(32 * MAXIMUM_WARPS, 2) skinny_##TILES##_##SCALING(const Arguments a) { \
        DYNAMIC_SHARED(shared); \
        Skinny<GLM_BITS, GLM_KIND, TILES, STAGES, DEPTH, SCALING>(a, shared).run(shared); \
    }

SKINNY(1, 2, 3, ROW)
SKINNY(1, 2, 3, STAGE)
SKINNY(1, 2, 3, CHUNK)
SKINNY(2, 1, 3, ROW)
SKINNY(2, 1, 3, STAGE)
SKINNY(2, 1, 3, CHUNK)
SKINNY(4, 1, 2, ROW)
SKINNY(4, 1, 2, STAGE)
SKINNY(4, 1, 2, CHUNK)

// wide_<slices of 8 rows of x>_<ROW: a scale for each row of the weight; GROUPS>
#define WIDE(SLICES, SCALING, HAS_GROUPS, BLOCKS) \
    __global__ void __launch_bounds__(WIDE_ROWS, BLOCKS) wide_##SLICES##_##SCALING(const Arguments a) { \
        DYNAMIC_SHARED(shared); \
        Wide<GLM_BITS, GLM_KIND, SLICES, HAS_GROUPS>(a).run(shared); \
    }

WIDE(2, ROW, false, 2)
WIDE(2, GROUPS, true, 2)
WIDE(4, ROW, false, 2)
WIDE(4, GROUPS, true, 2)
WIDE(8, ROW, false, 1)
WIDE(8, GROUPS, true, 1)

#endif

}
