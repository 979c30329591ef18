// Entry points of attention over a prompt.
#include "exports.h"
#include "prefill.h"

EXPORT int glm_prefill_products() { return prefill::best_products(); }

// Many new tokens per sequence; asked (count): those whose results are wanted, in their order, or null. products: at most
// glm_prefill_products(); types other than bf16 have but FP32's.
EXPORT void glm_prefill(int type, int products, const AttentionShape* shape, size_t length, const int64_t* asked,
                        size_t count, const void* qkv, const float* cosine, const float* sine, void* keys, void* values,
                        void* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * length, threads);
#define PREFILL(Products, T) prefill::attend_part<prefill::Products>( \
    prefill::Prompt<T>{(const T*)qkv, cosine, sine, (T*)keys, (T*)values, *shape, length, asked, count, (T*)out}, thread, team, wait_for_all)
#ifdef GLM_TILES
    if (type == 1 && products == 2) { TEAM(threads, PREFILL(Tiles, bf16);) return; }
#endif
#ifdef GLM_BF16_DOTS
    if (type == 1 && products == 1) { TEAM(threads, PREFILL(Dots, bf16);) return; }
#endif
    TEAM(threads, BY_TYPE(type, PREFILL(Floats, T)))
#undef PREFILL
}
