// One vector type of floats with three spellings (AVX-512, AVX2, plain C++), and the three storage types.
// The compiler's -march decides; the code above this file is written once.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// Loops over small constant counts must vanish, so that the vectors indexed by them stay in registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

static inline float from_bits(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
static inline uint32_t to_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return from_bits(uint32_t(x.bits) << 16); }
static inline float to_float(fp16 x) {
#ifdef __F16C__
    return _cvtsh_ss(x.bits);
#else
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity, NaN
    // 2^112 moves the exponent; the multiplication also makes subnormals right
    return from_bits(sign | to_bits(from_bits(rest << 13) * from_bits(0x77800000)));
#endif
}
static inline void store_float(float* p, float x) { *p = x; }
static inline void store_float(bf16* p, float x) {
    uint32_t u = to_bits(x);
    p->bits = x != x ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // round to nearest even
}
static inline void store_float(fp16* p, float x) {
    uint32_t u = to_bits(x), sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000) { p->bits = 0x7e00; return; }
    if (rest >= 0x477ff000) { p->bits = sign | 0x7c00; return; }  // 65520 and more
    if (rest < 0x38800000) {  // subnormal: adding 0.5 aligns the fraction and rounds it
        p->bits = sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000);
        return;
    }
    p->bits = sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13);
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define GLM_PATH "avx512"
typedef __m512 vec;
enum { W = 16 };
static inline vec fill(float x) { return _mm512_set1_ps(x); }
static inline vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline vec load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline vec load(const fp16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline vec load(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
static inline vec load_part(const float* p, size_t count) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }
static inline vec load_part(const bf16* p, size_t count) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((1u << count) - 1, p)), 16));
}
static inline vec load_part(const fp16* p, size_t count) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << count) - 1, p)); }
static inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec divide(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline float sum(vec a) { return _mm512_reduce_add_ps(a); }
static inline float largest(vec a) { return _mm512_reduce_max_ps(a); }
// to[i] = sum(a[i]), added in the same order: half to half, each step for two vectors at once.
static inline void sum_four(const vec* a, float* to) {
    vec halves[2], quarters;
    UNROLL for (int i = 0; i < 2; i++)
        halves[i] = add(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xee));
    quarters = add(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
    vec pairs = add(quarters, _mm512_permute_ps(quarters, 0xee));
    vec sums = add(pairs, _mm512_permute_ps(pairs, 0x55));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), sums)));
}
// out[r][i] = sum(total[r][i]), the same for sixteen.
static inline void sum_all(const vec (&total)[4][4], float (&out)[4][4]) {
    vec halves[8], quarters[4], pairs[2];
    UNROLL for (int i = 0; i < 8; i++) {
        vec a = total[i / 2][i % 2 * 2], b = total[i / 2][i % 2 * 2 + 1];
        halves[i] = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    UNROLL for (int i = 0; i < 4; i++) {
        vec a = halves[2 * i], b = halves[2 * i + 1];
        quarters[i] = add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        vec a = quarters[2 * i], b = quarters[2 * i + 1];
        pairs[i] = add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
    float sums[W];  // [i][r]
    _mm512_storeu_ps(sums, add(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd)));
    UNROLL for (int r = 0; r < 4; r++)
        UNROLL for (int i = 0; i < 4; i++) out[r][i] = sums[4 * i + r];
}
// to[i] = float `at` + i of each of W rows: the loads put fours of rows 4 apart together, shuffles turn them.
static inline void transposed(const float* const (&rows)[16], size_t at, vec (&to)[16]) {
    UNROLL for (int c = 0; c < 16; c += 4) {
        vec a[4];
        UNROLL for (int r = 0; r < 4; r++) {
            a[r] = _mm512_castps128_ps512(_mm_loadu_ps(rows[r] + at + c));
            a[r] = _mm512_mask_broadcast_f32x4(a[r], 0x00f0, _mm_loadu_ps(rows[r + 4] + at + c));
            a[r] = _mm512_mask_broadcast_f32x4(a[r], 0x0f00, _mm_loadu_ps(rows[r + 8] + at + c));
            a[r] = _mm512_mask_broadcast_f32x4(a[r], 0xf000, _mm_loadu_ps(rows[r + 12] + at + c));
        }
        vec low = _mm512_unpacklo_ps(a[0], a[1]), high = _mm512_unpackhi_ps(a[0], a[1]);
        vec low2 = _mm512_unpacklo_ps(a[2], a[3]), high2 = _mm512_unpackhi_ps(a[2], a[3]);
        to[c] = _mm512_shuffle_ps(low, low2, 0x44), to[c + 1] = _mm512_shuffle_ps(low, low2, 0xee);
        to[c + 2] = _mm512_shuffle_ps(high, high2, 0x44), to[c + 3] = _mm512_shuffle_ps(high, high2, 0xee);
    }
}
static inline vec if_negative(vec test, vec yes, vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(test, _mm512_setzero_ps(), _CMP_LT_OQ), no, yes);
}
static inline vec hidden(vec x, const uint8_t* flags) {  // -infinity where a flag is set
    __m128i set = _mm_loadu_si128((const __m128i*)flags);
    return _mm512_mask_blend_ps(_mm_test_epi8_mask(set, set), x, _mm512_set1_ps(-INFINITY));
}
static inline vec shifted_23(vec a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23)); }  // its bits
static inline vec round_even(vec a) { return _mm512_roundscale_ps(a, 0); }
static inline vec power_of_two(vec a) {  // 2^a for whole a in [-126, 127]
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127)), 23));
}
static inline void store(float* p, vec a) { _mm512_storeu_ps(p, a); }
static inline void store(fp16* p, vec a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, 0)); }
static inline void store(bf16* p, vec a) {
#ifdef __AVX512BF16__
    __m256bh half = _mm512_cvtneps_pbh(a);
    std::memcpy(p, &half, 32);
#else
    const __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i half = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    half = _mm512_mask_mov_epi32(half, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(half));
#endif
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define GLM_PATH "avx2"
typedef __m256 vec;
enum { W = 8 };
static inline vec fill(float x) { return _mm256_set1_ps(x); }
static inline vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline vec load(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline vec load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline vec load(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
static inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec divide(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline float sum(vec a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
static inline float largest(vec a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
static inline void sum_four(const vec* a, float* to) {  // to[i] = sum(a[i]), added in the same order
    vec first = add(_mm256_permute2f128_ps(a[0], a[1], 0x20), _mm256_permute2f128_ps(a[0], a[1], 0x31));
    vec second = add(_mm256_permute2f128_ps(a[2], a[3], 0x20), _mm256_permute2f128_ps(a[2], a[3], 0x31));
    vec pairs = add(_mm256_shuffle_ps(first, second, 0x44), _mm256_shuffle_ps(first, second, 0xee));
    vec sums = add(_mm256_shuffle_ps(pairs, pairs, 0x88), _mm256_shuffle_ps(pairs, pairs, 0xdd));  // [0 2 . .][1 3 . .]
    _mm_storeu_ps(to, _mm_unpacklo_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}
static inline void transposed(const float* const (&rows)[8], size_t at, vec (&to)[8]) {  // to[i] = float `at` + i of each row
    UNROLL for (int c = 0; c < 8; c += 4) {
        vec a[4];
        UNROLL for (int r = 0; r < 4; r++)
            a[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[r] + at + c)), _mm_loadu_ps(rows[r + 4] + at + c), 1);
        vec low = _mm256_unpacklo_ps(a[0], a[1]), high = _mm256_unpackhi_ps(a[0], a[1]);
        vec low2 = _mm256_unpacklo_ps(a[2], a[3]), high2 = _mm256_unpackhi_ps(a[2], a[3]);
        to[c] = _mm256_shuffle_ps(low, low2, 0x44), to[c + 1] = _mm256_shuffle_ps(low, low2, 0xee);
        to[c + 2] = _mm256_shuffle_ps(high, high2, 0x44), to[c + 3] = _mm256_shuffle_ps(high, high2, 0xee);
    }
}
static inline vec if_negative(vec test, vec yes, vec no) {  // compared, for a NaN's sign may be set
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(test, _mm256_setzero_ps(), _CMP_LT_OQ));
}
static inline vec hidden(vec x, const uint8_t* flags) {
    __m256i set = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)flags));
    set = _mm256_cmpgt_epi32(set, _mm256_setzero_si256());
    return _mm256_blendv_ps(x, _mm256_set1_ps(-INFINITY), _mm256_castsi256_ps(set));
}
static inline vec shifted_23(vec a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23)); }
static inline vec round_even(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vec power_of_two(vec a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127)), 23));
}
static inline void store(float* p, vec a) { _mm256_storeu_ps(p, a); }
static inline void store(fp16* p, vec a) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, 0)); }
static inline void store(bf16* p, vec a) {
    const __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i half = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    half = _mm256_blendv_epi8(half, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
#else
#define GLM_PATH "generic"
enum { W = 8 };
struct vec { float v[W]; };
#define EACH(expression) vec r; for (int i = 0; i < W; i++) r.v[i] = (expression); return r
static inline vec fill(float x) { EACH(x); }
template <class T> static inline vec load(const T* p) { EACH(to_float(p[i])); }
static inline vec add(vec a, vec b) { EACH(a.v[i] + b.v[i]); }
static inline vec sub(vec a, vec b) { EACH(a.v[i] - b.v[i]); }
static inline vec mul(vec a, vec b) { EACH(a.v[i] * b.v[i]); }
static inline vec divide(vec a, vec b) { EACH(a.v[i] / b.v[i]); }
static inline vec fma(vec a, vec b, vec c) { EACH(a.v[i] * b.v[i] + c.v[i]); }
static inline vec smaller(vec a, vec b) { EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline vec larger(vec a, vec b) { EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline vec if_negative(vec test, vec yes, vec no) { EACH(test.v[i] < 0 ? yes.v[i] : no.v[i]); }
static inline vec hidden(vec x, const uint8_t* flags) { EACH(flags[i] ? -INFINITY : x.v[i]); }
static inline vec shifted_23(vec a) { EACH(from_bits(to_bits(a.v[i]) << 23)); }
static inline vec round_even(vec a) { EACH(std::nearbyint(a.v[i])); }
static inline vec power_of_two(vec a) { EACH(from_bits(uint32_t(int(a.v[i]) + 127) << 23)); }
static inline float sum(vec a) { float s = 0; for (int i = 0; i < W; i++) s += a.v[i]; return s; }
static inline float largest(vec a) { float s = a.v[0]; for (int i = 1; i < W; i++) s = a.v[i] > s ? a.v[i] : s; return s; }
static inline void sum_four(const vec* a, float* to) { for (int i = 0; i < 4; i++) to[i] = sum(a[i]); }
template <class T> static inline void store(T* p, vec a) { for (int i = 0; i < W; i++) store_float(p + i, a.v[i]); }
static inline void transposed(const float* const (&rows)[W], size_t at, vec (&to)[W]) {
    for (int i = 0; i < W; i++)
        for (int r = 0; r < W; r++) to[i].v[r] = rows[r][at + i];
}
#endif

template <class T> static inline void store_two(T* p, vec a, vec b) { store(p, a), store(p + W, b); }
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
static inline void store_two(bf16* p, vec a, vec b) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b, a)); }
#endif

#define ALWAYS inline __attribute__((always_inline))  // what holds vectors in arrays must end up in registers

static ALWAYS void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// The first `count` < W places of p, zeros behind them; and the reverse.
template <class T> static inline vec load_part(const T* p, size_t count) {
    float places[W] = {0};
    for (size_t i = 0; i < count; i++) places[i] = to_float(p[i]);
    return load(places);
}
template <class T> static inline void store_part(T* p, vec a, size_t count) {
    float places[W];
    store(places, a);
    for (size_t i = 0; i < count; i++) store_float(p + i, places[i]);
}

// e^x to 2e-7 relative; 0 below -87, e^88 above 88. A NaN stays a NaN on the vector paths by the order of operands.
static inline vec exponential(vec x) {
    vec y = smaller(fill(88.0f), larger(fill(-87.33f), x));
    vec n = round_even(mul(y, fill(1.44269504f)));
    vec r = fma(n, fill(-0.693359375f), y);  // ln 2 in two parts
    r = fma(n, fill(2.12194440e-4f), r);
    vec p = fill(1.38294206e-3f);
    p = fma(p, r, fill(8.37477152e-3f));
    p = fma(p, r, fill(4.16683580e-2f));
    p = fma(p, r, fill(1.66664208e-1f));
    p = fma(p, r, fill(4.99999915e-1f));
    p = fma(p, r, fill(1.00000004f));
    p = fma(p, r, fill(1.0f));
    return if_negative(add(x, fill(87.33f)), fill(0.0f), mul(p, power_of_two(n)));
}

// Phi(x), the share of N(0, 1) below x. Phi(-y) = exp(-y^2 / 2) * g(y) with g smooth: a polynomial in 1 / (1 + 0.26 y),
// fitted here to 6e-9 relative over 0 <= y <= 14, so that small values keep their relative precision too.
static inline vec normal_share(vec x) {
    vec y = smaller(larger(x, sub(fill(0.0f), x)), fill(14.0f));
    vec t = divide(fill(1.0f), fma(y, fill(0.26f), fill(1.0f)));
    static const float c[9] = {-0.171749389f, 0.293838635f, -0.204569465f, 0.203200485f, 0.0295754855f,
                               0.110038244f, 0.101597649f, 0.103920626f, -7.88087449e-6f};
    vec g = fill(0.0341556122f);
    for (int i = 0; i < 9; i++) g = fma(g, t, fill(c[i]));
    vec tail = mul(g, exponential(mul(fill(-0.5f), mul(y, y))));
    return if_negative(x, tail, sub(fill(1.0f), tail));
}
static inline vec gelu(vec x) { return mul(x, normal_share(x)); }  // the exact one
