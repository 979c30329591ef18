// Vectors of 32-bit words that hold packed INT8 or INT4 weights, and how they become floats: three spellings, as simd.h.
#pragma once
#include "simd.h"

#define ALWAYS inline __attribute__((always_inline))  // what holds vectors in arrays must end up in registers

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
typedef __m512i words;
static inline words load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline words load_words(const uint8_t* p, size_t bytes) {  // fewer than a vector's, zeros behind them
    return _mm512_maskz_loadu_epi8((__mmask64(1) << bytes) - 1, p);
}
static inline words kept(words a) {  // in a register: gcc would rather load it again for every use
    asm("" : "+v"(a));
    return a;
}
template <int N> static inline words shift_right(words a) { return _mm512_srli_epi32(a, N); }
static inline vec masked_xor(words a, uint32_t mask, uint32_t other) {  // (a & mask) ^ other, read as floats
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(a, _mm512_set1_epi32(mask), _mm512_set1_epi32(other), 0x6a));
}
static inline vec choose(const float* p, words lanes) { return _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(p)); }
static inline vec gather(const float* p, words lanes) { return _mm512_i32gather_ps(lanes, p, 4); }
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
typedef __m256i words;
static inline words load_words(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline words load_words(const uint8_t* p, size_t bytes) {
    uint8_t places[4 * W] = {0};
    std::memcpy(places, p, bytes);
    return load_words(places);
}
static inline words kept(words a) {
    asm("" : "+x"(a));
    return a;
}
template <int N> static inline words shift_right(words a) { return _mm256_srli_epi32(a, N); }
static inline vec masked_xor(words a, uint32_t mask, uint32_t other) {
    return _mm256_castsi256_ps(_mm256_xor_si256(_mm256_and_si256(a, _mm256_set1_epi32(mask)), _mm256_set1_epi32(other)));
}
static inline vec choose(const float* p, words lanes) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), lanes); }
static inline vec gather(const float* p, words lanes) { return _mm256_i32gather_ps(p, lanes, 4); }
#else
struct words { uint32_t v[W]; };
#define EACH_WORD(expression) words r; for (int i = 0; i < W; i++) r.v[i] = (expression); return r
static inline uint32_t word_at(const uint8_t* p) { return p[0] | p[1] << 8 | p[2] << 16 | uint32_t(p[3]) << 24; }
static inline words load_words(const uint8_t* p) { EACH_WORD(word_at(p + 4 * i)); }
static inline words load_words(const uint8_t* p, size_t bytes) {
    uint8_t places[4 * W] = {0};
    std::memcpy(places, p, bytes);
    return load_words(places);
}
static inline words kept(words a) { return a; }
template <int N> static inline words shift_right(words a) { EACH_WORD(a.v[i] >> N); }
static inline vec masked_xor(words a, uint32_t mask, uint32_t other) { EACH(from_bits((a.v[i] & mask) ^ other)); }
static inline vec choose(const float* p, words lanes) { EACH(p[lanes.v[i]]); }
static inline vec gather(const float* p, words lanes) { EACH(p[lanes.v[i]]); }
#endif

static inline words lanes_of(size_t multiplier, size_t divisor) {  // lane * multiplier / divisor
    uint32_t places[W];
    for (int i = 0; i < W; i++) places[i] = i * multiplier / divisor;
    words result;
    std::memcpy(&result, places, sizeof(result));
    return result;
}

// Weight number P of those that lie in one word, in every lane, exactly: the bits become the end of a float's fraction
// whose exponent gives them their value, with the sign bit flipped, which adds 2^(BITS - 1); both are subtracted again.
// A fraction has 23 bits, so that the upper half of the word is shifted down first.
template <int BITS, int P> static inline vec weight_at(words a) {
    constexpr int width = 23 / BITS, place = P % width * BITS;  // of 4 bits five fit into the fraction, of 8 bits two
    constexpr uint32_t exponent = uint32_t(127 + 23 - place) << 23, sign = 1u << (place + BITS - 1);
    constexpr uint32_t mask = ((1u << BITS) - 1) << place;
    vec biased = masked_xor(shift_right<P / width * width * BITS>(a), mask, exponent | sign);
    return sub(biased, fill(from_bits(exponent | sign)));
}
