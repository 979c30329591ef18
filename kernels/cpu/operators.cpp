// The C entry points, called through ctypes with plain pointers. Element types: 0 float, 1 bf16, 2 fp16.
// Every function does its own share in each thread of one parallel region; sizes were checked by the caller.
#include "prefill.h"
#include "refine.h"
#include "stack.h"
#include "team.h"

// Below this many bytes of work waking the other threads costs more than it saves.
static const size_t WORTH_A_TEAM = 96 << 10;
static inline int team_for(size_t bytes, int threads) { return bytes < WORTH_A_TEAM ? 1 : threads; }
static inline size_t width(int type) { return type == 0 ? 4 : 2; }

template <class T, class O>
static void few_rows(const T* x, size_t m, size_t k, const T* w, const T* bias, O* out, size_t n, int threads) {
    TEAM(threads, linear_part(x, m, k, w, bias, out, n, thread, team);)
}
// All threads put x in order, each some rows of it.
template <class T>
static void few_packed_rows(const T* x, size_t m, size_t k, const Packed& w, const Target& to, int threads) {
    const PackedProduct& product = packed_product(w.bits);
    uint8_t* room = product.room(w, m);
    TEAM(threads, {
        product.arrange(type_number(x), w, x, m, share(m, 1, thread, team), room);
        wait_for_all();
        product.rows(w, room, m, to, share(to.n, 4, thread, team));
    })
}
static const size_t MOST_BYTES = 32 << 20;  // of x in panels, of which more rows are taken one part after the other
template <class T>
static void many_rows(const T* x, size_t m, size_t k, const Matrix& w, const Target& to, int threads) {
    const size_t fitting = MOST_BYTES / (4 * k), most = fitting < 512 ? 512 : fitting;
    if (m > most) {
        many_rows(x, most, k, w, to, threads);
        return many_rows(x + most * k, m - most, k, w, to.from_row(most), threads);
    }
    tile::with_engine<T>([&](auto engine) {
        typedef typename decltype(engine)::type Engine;
        tile::with_rows(x, k, w, [&](auto rows, auto weights) {
            tile::Operand<Engine> operand(m, rows.template words<typename Engine::Element>());
            operand.data = scratch<Engine*, float>(operand.size());
            const tile::Units units(operand.panels, operand.height, to.n, threads);
            std::atomic<size_t> next{0};
            TEAM(threads, {
                operand.pack(rows, share(operand.panels, 1, thread, team));
                wait_for_all();
                for (size_t unit; (unit = next++) < units.count();)
                    tile::columns(operand, units.panels_of(unit), weights, units.rows_of(unit), to);
            })
        });
    });
}

#define EXPORT extern "C" __attribute__((visibility("default")))

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

// out (m, n) = x (m, k) w (n, k)^T + bias, w packed where it has bits; out is of x's type or, where wanted, float.
EXPORT void glm_linear(int type, const void* x, size_t m, size_t k, const Matrix* w, const void* bias, int out_type,
                       void* out, size_t n, int threads) {
    const size_t row_bytes = w->bits ? w->packed(k).row_bytes() : k * width(type);
    threads = team_for(n * row_bytes + m * k, threads);
    const Target to = {out_type, type, bias, out, n};
    BY_TYPE(type, {
        if (is_many(*w, m, k)) many_rows((const T*)x, m, k, *w, to, threads);
        else if (w->bits) few_packed_rows((const T*)x, m, k, w->packed(k), to, threads);
        else if (out_type == type) few_rows((const T*)x, m, k, (const T*)w->weight, (const T*)bias, (T*)out, n, threads);
        else few_rows((const T*)x, m, k, (const T*)w->weight, (const T*)bias, (float*)out, n, threads);
    })
}

EXPORT void glm_refine(int type, const void* x, size_t m, size_t k, const void* w, size_t n, float* logits,
                       const float* error, const float* added, float least, size_t count, int threads) {
    const Approximate approximate = {m, k, n, count, error, added, least, logits};
    threads = team_for(m * n * 8, threads);
    std::vector<std::vector<float>> best(threads * m);
    std::vector<float> bars(m);
    TEAM(threads, BY_TYPE(type, refine_part((const T*)x, (const T*)w, approximate, best.data(), bars.data(), thread,
                                            team, wait_for_all)))
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

EXPORT void glm_attend(int type, const AttentionShape* shape, const void* qkv, const float* cosine, const float* sine,
                       void* keys, void* values, void* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * 2 * width(type), threads);
    TEAM(threads, BY_TYPE(type, attend_part((const T*)qkv, cosine, sine, (T*)keys, (T*)values, *shape, (T*)out, thread,
                                            team, wait_for_all)))
}

EXPORT int glm_prefill_products() { return prefill::best_products(); }

// Many new tokens per sequence. products: at most glm_prefill_products(); types other than bf16 have but FP32's.
EXPORT void glm_prefill(int type, int products, const AttentionShape* shape, size_t length, const void* qkv,
                        const float* cosine, const float* sine, void* keys, void* values, void* out, int threads) {
    threads = team_for(shape->batch * shape->heads * shape->size * shape->total * length, threads);
#define PREFILL(Products, T) prefill::attend_part<prefill::Products>((const T*)qkv, cosine, sine, (T*)keys, (T*)values, \
                                                                     *shape, length, (T*)out, thread, team, wait_for_all)
#ifdef GLM_TILES
    if (type == 1 && products == 2) { TEAM(threads, PREFILL(Tiles, bf16);) return; }
#endif
#ifdef GLM_BF16_DOTS
    if (type == 1 && products == 1) { TEAM(threads, PREFILL(Dots, bf16);) return; }
#endif
    TEAM(threads, BY_TYPE(type, PREFILL(Floats, T)))
#undef PREFILL
}

template <class T>
static void stack(const LayerWeights* layers, const StackShape& shape, const AttentionShape& attention,
                  const void* hidden, const float* cosine, const float* sine, const void* final_weight,
                  const void* final_bias, void* out, BeforeLayer before, int threads) {
    StackScratch<T> shared(shape, attention);
    TEAM(threads, stack_part(layers, shape, attention, (const T*)hidden, cosine, sine, (const T*)final_weight,
                             (const T*)final_bias, (T*)out, shared, before, thread, team, wait_for_all);)
}

EXPORT void glm_stack(int type, const StackShape* shape, const LayerWeights* layers, const void* final_weight,
                      const void* final_bias, const AttentionShape* attention, const void* hidden, const float* cosine,
                      const float* sine, void* out, BeforeLayer before, int threads) {
    threads = team_for(shape->hidden * (shape->halves() + shape->inner) * width(type), threads);
    BY_TYPE(type, stack<T>(layers, *shape, *attention, hidden, cosine, sine, final_weight, final_bias, out, before,
                           threads))
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
