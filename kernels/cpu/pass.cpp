// Entry point of layers of a pass over many tokens.
#include "exports.h"
#include "pass.h"

EXPORT void glm_pass(int type, const StackShape* shape, const LayerWeights* layers, const AttentionShape* attention,
                     int products, size_t length, const void* hidden, const float* cosine, const float* sine,
                     const int64_t* places, size_t wanted, void* out, int threads) {
    BY_TYPE(type, {
        Pass<T> pass(layers, *shape, *attention, products, length, (const T*)hidden, cosine, sine, places, wanted, (T*)out, threads);
        TEAM(threads, pass.run(thread, team);)
    })
}
