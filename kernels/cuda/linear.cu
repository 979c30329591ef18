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

// skinny_<tiles of 16 rows>_<slices of 8 rows of x>_<scaling>
#define SKINNY(TILES, SLICES, STAGES, SCALING) \
    __global__ void __launch_bounds__(32 * MAXIMUM_WARPS, 1) skinny_##TILES##_##SLICES##_##SCALING(const Arguments a) { \
        Skinny<GLM_BITS, GLM_KIND, TILES, SLICES, STAGES, SCALING>(a).run(); \
    }
#define SCALINGS(TILES, SLICES, STAGES) \
    SKINNY(TILES, SLICES, STAGES, ROW) SKINNY(TILES, SLICES, STAGES, STAGE) SKINNY(TILES, SLICES, STAGES, CHUNK)

SCALINGS(1, 1, 2)
SCALINGS(2, 1, 2)
SCALINGS(4, 1, 1)
SCALINGS(4, 2, 1)

#endif

}
