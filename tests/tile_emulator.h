// A processor's matrix tiles (AMX) on one with AVX-512 alone: included in front of the kernels' sources, it takes the place
// of the intrinsics that they use, so that their code for tiles runs anywhere. Semantics: Intel's manual, volume 2, TDPBF16PS
// and TILELOADD. Whoever uses tiles without having configured them is told.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

namespace tile_emulator {
enum { TILES = 8, ROWS = 16, BYTES = 64 };
struct State {
    bool is_configured;
    alignas(64) uint8_t tiles[TILES][ROWS][BYTES];
};
static thread_local State state;

static inline uint8_t (*tile(int number))[BYTES] {
    if (!state.is_configured || number < 0 || number >= TILES) {
        fprintf(stderr, "tile %d is used, but no tiles are configured\n", number);
        abort();
    }
    return state.tiles[number];
}
static inline void configure(const void* config) {  // only palette 1, and tiles of the largest shape, as the kernels have them
    const uint8_t* bytes = (const uint8_t*)config;
    bool is_whole = bytes[0] == 1 && bytes[1] == 0;
    for (int i = 0; i < TILES; i++) is_whole &= bytes[16 + 2 * i] == BYTES && bytes[17 + 2 * i] == 0 && bytes[48 + i] == ROWS;
    if (!is_whole) {
        fprintf(stderr, "tiles of another shape than %d rows of %d bytes\n", ROWS, BYTES);
        abort();
    }
    memset(&state, 0, sizeof state);
    state.is_configured = true;
}
static inline void zero(int number) { memset(tile(number), 0, ROWS * BYTES); }
static inline void load(int number, const void* from, size_t stride) {
    for (int row = 0; row < ROWS; row++) memcpy(tile(number)[row], (const uint8_t*)from + row * stride, BYTES);
}
static inline void keep(int number, void* to, size_t stride) {
    for (int row = 0; row < ROWS; row++) memcpy((uint8_t*)to + row * stride, tile(number)[row], BYTES);
}
// sums (16, 16) FP32 += a (16, 32) times b, of which row i holds the pairs 2i and 2i + 1 of each column, both of bf16. The
// even and the odd products are summed apart; what is too small for a normal number is nothing.
static inline void multiply(int sums, int a, int b) {
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
    for (int row = 0; row < ROWS; row++) {
        __m512 even = _mm512_setzero_ps(), odd = even;
        for (int i = 0; i < ROWS; i++) {
            const __m512i pairs = _mm512_load_si512(tile(b)[i]), high = _mm512_set1_epi32(0xffff0000);
            uint32_t pair;
            memcpy(&pair, tile(a)[row] + 4 * i, 4);
            const __m512i value = _mm512_set1_epi32(pair);
            even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(value, 16)),
                                   _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), even);
            odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(value, high)),
                                  _mm512_castsi512_ps(_mm512_and_si512(pairs, high)), odd);
        }
        float* to = (float*)tile(sums)[row];
        _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_add_ps(even, odd)));
    }
    _mm_setcsr(mode);
}
}  // namespace tile_emulator

#define syscall(number, ...) (number == SYS_arch_prctl ? 0 : syscall(number, __VA_ARGS__))  // Linux allows tiles
#define _tile_loadconfig(config) tile_emulator::configure(config)
#define _tile_release() (tile_emulator::state.is_configured = false)
#define _tile_zero(number) tile_emulator::zero(number)
#define _tile_loadd(number, from, stride) tile_emulator::load(number, from, stride)
#define _tile_stored(number, to, stride) tile_emulator::keep(number, to, stride)
#define _tile_dpbf16ps(sums, a, b) tile_emulator::multiply(sums, a, b)
