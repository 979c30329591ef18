// Entry points of decoding's layers, and of what lies between products.
#include "exports.h"
#include "stack.h"

EXPORT const char* glm_path() {
#ifdef GLM_BF16_DOTS
    return GLM_PATH "+bf16";
#else
    return GLM_PATH;
#endif
}

EXPORT int glm_threads(int threads) {  // how many the runtime really gives
    int seen = 1;
    TEAM(threads, if (thread == 0) seen = team;)
    return seen;
}

EXPORT void glm_norm(int type, const void* residual, const void* update, float alpha, const void* weight,
                     const void* bias, float epsilon, void* out, size_t m, size_t h, int threads) {
    threads = team_for(m * h * 8, threads);
    TEAM(threads, BY_TYPE(type, norm_rows((const T*)residual, (const T*)update, alpha, (const T*)weight, (const T*)bias,
                                          epsilon, (T*)nullptr, (T*)out, h, share(m, 1, thread, team))))
}

EXPORT void glm_scaled_add(int type, const void* residual, const void* update, float alpha, void* out, size_t count,
                           int threads) {
    threads = team_for(count * 4, threads);
    TEAM(threads, BY_TYPE(type, add_part((const T*)residual, (const T*)update, alpha, (T*)out, count, thread, team)))
}

EXPORT void glm_activate(int type, size_t activation, const void* x, size_t m, size_t inner, void* out, int threads) {
    threads = team_for(m * inner * 16, threads);
    TEAM(threads, BY_TYPE(type, activate_columns(Activation(activation), (const T*)x, m, inner, (T*)out,
                                                 share(inner, W, thread, team))))
}

EXPORT void glm_log_sums(const float* x, size_t m, size_t n, float* highest, float* sums, int threads) {
    threads = team_for(m * n * 8, threads);
    TEAM(threads, log_sums(x, n, highest, sums, share(m, 1, thread, team));)
}

// keys (m, 2), out (m, n).
EXPORT void glm_uniforms(const int64_t* keys, size_t m, size_t n, float* out, int threads) {
    threads = team_for(m * n * 4, threads);
    TEAM(threads, {
        const Range ids = share(n, 16, thread, team);
        for (size_t row = 0; row < m; row++)
            uniforms(uint32_t(keys[2 * row]), uint32_t(keys[2 * row + 1]), out + row * n, ids);
    })
}

EXPORT void glm_attend(int type, const AttentionShape* shape, const void* qkv, const float* cosine, const float* sine,
                       void* keys, void* values, void* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * 2 * width(type), threads);
    TEAM(threads, BY_TYPE(type, (Attention<T>{(const T*)qkv, cosine, sine, (T*)keys, (T*)values, *shape, (T*)out}
                                     .attend_part(thread, team, wait_for_all))))
}

template <class T>
static int stack(const LayerWeights* layers, const StackShape& shape, const AttentionShape& attention,
                 const void* hidden, const float* cosine, const float* sine, const void* final_weight,
                 const void* final_bias, void* out, BeforeLayer before, const Ranks* ranks, int threads) {
    Stack<T> stack(layers, shape, attention, (const T*)hidden, cosine, sine, (const T*)final_weight, (const T*)final_bias,
                   (T*)out, before, ranks, threads);
    TEAM(threads, stack.run(thread, team);)
    return stack.result();
}

// ranks: those that hold a part of the layers each, or null. Returns 0, or what ended a sum of theirs (ranks.h).
EXPORT int glm_stack(int type, const StackShape* shape, const LayerWeights* layers, const void* final_weight,
                     const void* final_bias, const AttentionShape* attention, const void* hidden, const float* cosine,
                     const float* sine, void* out, BeforeLayer before, const Ranks* ranks, int threads) {
    threads = team_for(shape->hidden * (shape->halves() + shape->inner) * width(type), threads);
    BY_TYPE(type, return stack<T>(layers, *shape, *attention, hidden, cosine, sine, final_weight, final_bias, out, before,
                                  ranks, threads))
    return 0;
}

EXPORT int glm_nameless_memory() { return nameless_memory(); }
EXPORT int glm_handle_of_process(int process) { return handle_of_process(process); }
// values (count) become the sums over the ranks.
EXPORT int glm_add_up(const Ranks* ranks, int type, void* values, size_t count) {
    BY_TYPE(type, return ranks->add_up((T*)values, count))
    return 0;
}
EXPORT int glm_gather(const Ranks* ranks, const void* part, size_t rows, size_t bytes, void* out) {
    return ranks->gather((const uint8_t*)part, rows, bytes, (uint8_t*)out);
}

// Reads `bytes` (a multiple of 512) once with all threads: the ceiling for everything above.
EXPORT float glm_read(const float* data, size_t bytes, int threads) {
    float result = 0;
    TEAM(threads, {
        Range range = share(bytes / sizeof(float), 128, thread, team);
        vec totals[8];
        for (int i = 0; i < 8; i++) totals[i] = fill(0.0f);
        for (size_t j = range.first; j + 8 * W <= range.last; j += 8 * W)
            for (int i = 0; i < 8; i++) {
                prefetch((const char*)(data + j + i * W) + 2048);
                totals[i] = add(totals[i], load(data + j + i * W));
            }
        float part = 0;
        for (int i = 0; i < 8; i++) part += sum(totals[i]);
        if (part != 0) result = part;  // any use of the sum, so that the loop is not removed
    })
    return result;
}
