// Vectors of 32-bit words that hold packed INT8 or INT4 weights, and how they become floats: three spellings, as simd.h.
#pragma once
#include "simd.h"

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
static inline words in_turn(words a) {  // before what follows: gcc would rather multiply all first, and run out of registers
    asm volatile("" : "+v"(a));
    return a;
}
static inline vec choose(const float* p, words lanes) { return _mm512_permutexvar_ps(lanes, _mm512_loadu_ps(p)); }
// W halves of bytes with a sign, the upper one of each byte first: each is brought to the top of its word, and down again.
static inline vec load_halves(const uint8_t* p) {
    int64_t bytes;
    std::memcpy(&bytes, p, 8);
#ifdef __AVX512VBMI__
    const words from = _mm512_setr_epi32(0x00000000, 0x3c3c3c3c, 0x08080808, 0x04040404, 0x10101010, 0x0c0c0c0c, 0x18181818,
                                         0x14141414, 0x20202020, 0x1c1c1c1c, 0x28282828, 0x24242424, 0x30303030, 0x2c2c2c2c,
                                         0x38383838, 0x34343434);
    const words top = _mm512_multishift_epi64_epi8(from, _mm512_set1_epi64(bytes));
#else
    const words lane = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const words each = _mm512_permutexvar_epi32(lane, _mm512_set1_epi64(bytes));
    const words top = _mm512_sllv_epi32(each, _mm512_setr_epi32(24, 28, 16, 20, 8, 12, 0, 4, 24, 28, 16, 20, 8, 12, 0, 4));
#endif
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 28));
}
#define GLM_PAIRS  // vectors of 16-bit integers, whose pairs are multiplied and added; below, and in the same order for AVX2
static inline words no_words() { return _mm512_setzero_si512(); }
static inline void store_words(int16_t* p, words a) { _mm512_storeu_si512(p, a); }
static inline words same_pairs(short x) { return _mm512_set1_epi16(x); }
static inline words flipped(words a, uint32_t bits) { return _mm512_xor_si512(a, _mm512_set1_epi32(bits)); }
static inline vec floats_of(words a) { return _mm512_cvtepi32_ps(a); }
template <int N> static inline words shifted_negative(words a) { return _mm512_sub_epi32(no_words(), _mm512_slli_epi32(a, N)); }
static inline words add_pairs(words sum, words a, words b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
#ifdef __AVX512VNNI__
#define GLM_FOURS  // vectors of bytes, of which fours are multiplied and added: positive ones with any
static inline words add_fours(words sum, words positive, words any) { return _mm512_dpbusd_epi32(sum, positive, any); }
template <int P> static inline words positive_half(words a) {  // P 0: the lower half of every byte, 1: the upper one; plus 8
#ifdef __AVX512VBMI__  // the unit that shifts is the one that multiplies; this one is idle
    const words half = P ? _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3c342c241c140c04), a) : a;
#else
    const words half = P ? _mm512_srli_epi16(a, 4) : a;
#endif
    return _mm512_ternarylogic_epi32(half, _mm512_set1_epi8(15), _mm512_set1_epi8(8), 0x6a);
}
// x = 256 * high + low with both digits in -128 ... 127; of a the even bytes, of b the odd ones.
static inline words high_digits(words a, words b) {
    const words half = _mm512_set1_epi16(128);
    return _mm512_or_si512(_mm512_srli_epi16(_mm512_add_epi16(a, half), 8),
                           _mm512_and_si512(_mm512_add_epi16(b, half), _mm512_set1_epi16(-256)));
}
static inline words low_digits(words a, words b) {
    return _mm512_or_si512(_mm512_and_si512(a, _mm512_set1_epi16(255)), _mm512_slli_epi16(b, 8));
}
static inline words low_words(int x) { return _mm512_set1_epi32(x); }
template <int N> static inline words add_shifted(words sum, words a) { return _mm512_add_epi32(sum, _mm512_slli_epi32(a, N)); }
#endif
// 2 * W packed weights as 16-bit integers, in the order of columns. Of INT4 both halves of a byte lie in the upper byte of an
// integer first; a product brings the lower half to the top.
template <int BITS> static inline words widened(const uint8_t* p) {
    if (BITS == 8) return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
    const words bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
    const words twice = _mm512_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380, 0x04800480, 0x05800580, 0x06800680,
                                          0x07800780, 0x08800880, 0x09800980, 0x0a800a80, 0x0b800b80, 0x0c800c80, 0x0d800d80,
                                          0x0e800e80, 0x0f800f80);
    return _mm512_srai_epi16(_mm512_mullo_epi16(_mm512_shuffle_epi8(bytes, twice), _mm512_set1_epi32(0x00100001)), 12);
}
static inline words everywhere(const float* word) { return _mm512_set1_epi32(int(to_bits(*word))); }
// Bits BITS * P ... of every 16-bit integer.
template <int BITS, int P> static inline words field(words a) {
    words low = P == 0 ? a : _mm512_srli_epi16(a, BITS * P);
    return BITS * (P + 1) == 16 ? low : _mm512_and_si512(low, _mm512_set1_epi16((1 << BITS) - 1));
}
// Two vectors of floats as one of integers, the nearest ones, at most 32767.
static inline words rounded(vec a, vec b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a))),
                              _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(b)), 1);
}
static inline words joined(words a, words b) {  // 32-bit numbers without a sign that fit into 16 bits
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi32(a, b));
}
// The 16-bit integers of even and of odd places of a, then of b.
static inline void split(words a, words b, words& even, words& odd) {
    const words mask = _mm512_set1_epi32(0xffff);
    even = joined(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask));
    odd = joined(_mm512_srli_epi32(a, 16), _mm512_srli_epi32(b, 16));
}
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
static inline words in_turn(words a) {
    asm volatile("" : "+x"(a));
    return a;
}
static inline vec choose(const float* p, words lanes) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), lanes); }
static inline vec load_halves(const uint8_t* p) {
    int bytes;
    std::memcpy(&bytes, p, 4);
    const words top = _mm256_sllv_epi32(_mm256_set1_epi32(bytes), _mm256_setr_epi32(24, 28, 16, 20, 8, 12, 0, 4));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28));
}
#define GLM_PAIRS
static inline words no_words() { return _mm256_setzero_si256(); }
static inline void store_words(int16_t* p, words a) { _mm256_storeu_si256((__m256i*)p, a); }
static inline words same_pairs(short x) { return _mm256_set1_epi16(x); }
static inline words flipped(words a, uint32_t bits) { return _mm256_xor_si256(a, _mm256_set1_epi32(bits)); }
static inline vec floats_of(words a) { return _mm256_cvtepi32_ps(a); }
template <int N> static inline words shifted_negative(words a) { return _mm256_sub_epi32(no_words(), _mm256_slli_epi32(a, N)); }
static inline words add_pairs(words sum, words a, words b) {
#ifdef __AVXVNNI__
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}
template <int BITS> static inline words widened(const uint8_t* p) {
    if (BITS == 8) return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
    int64_t eight;
    std::memcpy(&eight, p, 8);
    const words twice = _mm256_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380, 0x04800480, 0x05800580, 0x06800680,
                                          0x07800780);
    const words upper = _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), twice);
    return _mm256_srai_epi16(_mm256_mullo_epi16(upper, _mm256_set1_epi32(0x00100001)), 12);
}
static inline words everywhere(const float* word) { return _mm256_set1_epi32(int(to_bits(*word))); }
template <int BITS, int P> static inline words field(words a) {
    words low = P == 0 ? a : _mm256_srli_epi16(a, BITS * P);
    return BITS * (P + 1) == 16 ? low : _mm256_and_si256(low, _mm256_set1_epi16((1 << BITS) - 1));
}
static inline words rounded(vec a, vec b) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), 0xd8);
}
static inline words joined(words a, words b) { return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8); }
static inline void split(words a, words b, words& even, words& odd) {
    const words mask = _mm256_set1_epi32(0xffff);
    even = joined(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
    odd = joined(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
}
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
static inline vec load_halves(const uint8_t* p) { EACH(float(int8_t(p[i / 2] << i % 2 * 4) >> 4)); }

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
#endif

static inline words lanes_of(uint32_t multiplier, uint32_t divisor) {  // lane * multiplier / divisor, which is slow
    uint32_t places[W], place = 0, rest = 0;
    for (int i = 0; i < W; i++) {
        places[i] = place;
        for (rest += multiplier; rest >= divisor; rest -= divisor) place++;
    }
    words result;
    std::memcpy(&result, places, sizeof(result));
    return result;
}
