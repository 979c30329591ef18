// Entry points of gradients, all of float32.
#include "gradients.h"
#include "attention_gradients.h"
#include "exports.h"

EXPORT void glm_activate_gradient(size_t activation, const float* x, const float* gradient, size_t m, size_t inner,
                                  float* out, int threads) {
    threads = team_for(m * inner * 16, threads);
    TEAM(threads, gradients::activate_rows(Activation(activation), x, gradient, inner, out, share(m, 1, thread, team));)
}

// parts: (threads, 2, h), of which the first becomes the gradients of weight and bias; null: they do not learn.
EXPORT void glm_norm_gradient(const float* x, const float* weight, int has_bias, float epsilon, const float* gradient,
                              size_t m, size_t h, float alpha, float* out, float* scaled, float* parts, int threads) {
    threads = team_for(m * h * 8, threads);
    TEAM(threads, {
        float* mine = parts ? parts + thread * 2 * h : nullptr;
        if (parts) std::memset(mine, 0, 2 * h * sizeof(float));
        gradients::norm_rows(x, weight, has_bias, epsilon, gradient, h, alpha, out, scaled, mine, share(m, 1, thread, team));
        wait_for_all();
        const Range columns = share(2 * h, W, thread, team);
        for (int i = 1; parts && i < team; i++)
            for (size_t j = columns.first; j < columns.last; j++) parts[j] += parts[i * 2 * h + j];
    })
}

EXPORT void glm_softmax(float* logits, size_t n, size_t v, int keeps, float* log_sums, float* means, int64_t* best,
                        int threads) {
    threads = team_for(n * v * 8, threads);
    TEAM(threads, gradients::softmax_rows(logits, v, keeps, {log_sums, means, best}, share(n, 1, thread, team));)
}

EXPORT void glm_attend_dropped(const AttentionShape* shape, const float* qkv, const float* cosine, const float* sine,
                               const uint8_t* kept, float scale, float* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * 8, threads);
    TEAM(threads, gradients::attend_dropped(qkv, cosine, sine, *shape, {kept, scale}, out,
                                            share(shape->batch * shape->heads, 1, thread, team));)
}

// kept: null where nothing is dropped.
EXPORT void glm_attend_gradient(const AttentionShape* shape, const float* qkv, const float* cosine, const float* sine,
                                const float* gradient, const uint8_t* kept, float scale, float* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * 8, threads);
    TEAM(threads, gradients::attend_heads(qkv, cosine, sine, *shape, gradient, {kept, scale}, out,
                                          share(shape->batch * shape->heads, 1, thread, team));)
}
