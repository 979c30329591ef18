// Entry points of attention over a prompt.
#include "exports.h"
#include "prefill.h"
#include "prompt.h"
#include "stages.h"

size_t PromptAttention::rows() const {
    const size_t fitting = threads * BYTES / (length * shape.width() * width(type)), least = (enough() + shape.groups - 1) / shape.groups;
    const size_t several = fitting > least ? fitting : least;
    return several < shape.batch ? several : shape.batch;
}
Range PromptAttention::rows_of(size_t stage) const {
    const size_t first = stage / 2 * rows();
    return {first, first + rows() < shape.batch ? first + rows() : shape.batch};
}
size_t PromptAttention::pieces(size_t stage) const {
    const Range some = rows_of(stage);
    const size_t count = some.last - some.first;
    return stage % 2 == 0 ? (count * length + TOKENS - 1) / TOKENS : count * shape.groups * parts();
}
template <class Products, class T> void PromptAttention::piece_of(size_t stage, size_t number) const {
    const prefill::Prompt<T> prompt = {(const T*)qkv, cosine, sine, (T*)keys, (T*)values, shape, length, asked, count, (T*)out};
    const Range some = rows_of(stage);
    if (stage % 2 == 0) {
        const size_t first = some.first * length + number * TOKENS, last = some.last * length;
        return prompt.turn({first, first + TOKENS < last ? first + TOKENS : last});
    }
    prefill::attend_task<Products>(prompt, parts(), some.first * shape.groups * parts() + number);
}
void PromptAttention::piece(size_t stage, size_t number) const {
#ifdef GLM_TILES
    if (type == 1 && products == 2) return piece_of<prefill::Tiles, bf16>(stage, number);
#endif
#ifdef GLM_BF16_DOTS
    if (type == 1 && products == 1) return piece_of<prefill::Dots, bf16>(stage, number);
#endif
    BY_TYPE(type, return (piece_of<prefill::Floats, T>(stage, number)))
}

EXPORT int glm_prefill_products() { return prefill::best_products(); }

// Many new tokens per sequence; asked, count, products: see prompt.h.
EXPORT void glm_prefill(int type, int products, const AttentionShape* shape, size_t length, const int64_t* asked,
                        size_t count, const void* qkv, const float* cosine, const float* sine, void* keys, void* values,
                        void* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * length, threads);
    const PromptAttention attention = {type, products, *shape, length, asked, count, qkv, cosine, sine, keys, values, out, threads};
    Stages stages(attention.stages(), threads);
    TEAM(threads, stages.run(thread, team, [&](size_t stage) { return attention.pieces(stage); },
                             [&](size_t stage, size_t number) { attention.piece(stage, number); });)
}
