// Gradients of the light operations between the products, in FP32. What is cheap is computed again: nothing is read but
// what the operation was given, and the gradient of its result.
#pragma once
#include "pointwise.h"

namespace gradients {

struct Two { vec first, second; };

static ALWAYS vec normal_density(vec x) {  // of N(0, 1)
    vec y = smaller(larger(x, fill(-14.0f)), fill(14.0f));
    return mul(fill(0.398942280f), exponential(mul(fill(-0.5f), mul(y, y))));
}
static ALWAYS vec gelu_slope(vec x) { return fma(x, normal_density(x), normal_share(x)); }
static ALWAYS vec gelu_tanh_slope(vec x) {
    const vec square = mul(x, x), inner = fma(square, fill(0.044715f), fill(1.0f));
    const vec share = sigmoid(mul(mul(x, fill(1.59576912f)), inner));
    const vec slope = mul(fill(1.59576912f), fma(square, fill(3 * 0.044715f), fill(1.0f)));
    return fma(mul(x, slope), mul(share, sub(fill(1.0f), share)), share);
}

// Of the halves of x (m, 2i), from that of the result (m, i); function(first, second, gradient) -> Two.
template <class Function>
static void gated(const float* x, const float* gradient, size_t inner, float* out, Range rows, Function function) {
    for (size_t row = rows.first; row < rows.last; row++) {
        const float *first = x + row * 2 * inner, *second = first + inner, *g = gradient + row * inner;
        float *to_first = out + row * 2 * inner, *to_second = to_first + inner;
        size_t j = 0;
        for (; j + W <= inner; j += W) {
            const Two found = function(load(first + j), load(second + j), load(g + j));
            store(to_first + j, found.first), store(to_second + j, found.second);
        }
        if (const size_t count = inner - j) {
            const Two found = function(load_part(first + j, count), load_part(second + j, count), load_part(g + j, count));
            store_part(to_first + j, found.first, count), store_part(to_second + j, found.second, count);
        }
    }
}
template <class Function>
static void single(const float* x, const float* gradient, size_t inner, float* out, Range rows, Function slope) {
    size_t j = rows.first * inner;
    const size_t last = rows.last * inner;
    for (; j + W <= last; j += W) store(out + j, mul(load(gradient + j), slope(load(x + j))));
    if (j < last) store_part(out + j, mul(load_part(gradient + j, last - j), slope(load_part(x + j, last - j))), last - j);
}

// The gradient of x, (m, 2i) where the activation is gated, else (m, i); of some rows.
static void activate_rows(Activation activation, const float* x, const float* gradient, size_t inner, float* out,
                          Range rows) {
    switch (activation) {
        case GEGLU:
            return gated(x, gradient, inner, out, rows, [](vec value, vec gate, vec g) {
                const vec share = normal_share(gate);
                return Two{mul(g, mul(gate, share)), mul(mul(g, value), fma(gate, normal_density(gate), share))};
            });
        case SWIGLU:
            return gated(x, gradient, inner, out, rows, [](vec gate, vec value, vec g) {
                const vec share = sigmoid(gate), kept = mul(gate, share);
                return Two{mul(mul(g, value), fma(kept, sub(fill(1.0f), share), share)), mul(g, kept)};
            });
        case GELU: return single(x, gradient, inner, out, rows, [](vec x) { return gelu_slope(x); });
        case GELU_TANH: return single(x, gradient, inner, out, rows, [](vec x) { return gelu_tanh_slope(x); });
    }
}

// A norm's rows: x and its result's gradient (m, h); `out`, x's gradient, and `scaled`, alpha times it (or null). sums:
// (2, h), the gradients of weight and bias, to which these rows' are added; null: they do not learn. Without `has_bias` it
// is the RMS norm.
static void norm_rows(const float* x, const float* weight, bool has_bias, float epsilon, const float* gradient, size_t h,
                      float alpha, float* out, float* scaled, float* sums, Range rows) {
    const size_t whole = h / W * W;
    float* centred = scratch<Two, float>(h + W);
    for (size_t i = rows.first; i < rows.last; i++) {
        const float *from = x + i * h, *g = gradient + i * h;
        float mean = 0.0f;
        if (has_bias) {
            vec total = fill(0.0f);
            for (size_t j = 0; j < whole; j += W) total = add(total, load(from + j));
            mean = sum(total);
            for (size_t j = whole; j < h; j++) mean += from[j];
            mean /= h;
        }
        vec squares = fill(0.0f);
        const vec centre = fill(mean);
        for (size_t j = 0; j < whole; j += W) {
            const vec a = sub(load(from + j), centre);
            store(centred + j, a);
            squares = fma(a, a, squares);
        }
        float variance = sum(squares);
        for (size_t j = whole; j < h; j++) centred[j] = from[j] - mean, variance += centred[j] * centred[j];
        const float scale = 1.0f / std::sqrt(variance / h + epsilon);

        vec along = fill(0.0f), all = fill(0.0f);  // of weight * gradient: with the normed row, and its sum
        for (size_t j = 0; j < whole; j += W) {
            const vec normed = mul(load(centred + j), fill(scale)), own = load(g + j), weighed = mul(own, load(weight + j));
            store(centred + j, normed);
            along = fma(weighed, normed, along), all = add(all, weighed);
            if (sums) {
                store(sums + j, fma(own, normed, load(sums + j)));
                store(sums + h + j, add(load(sums + h + j), own));
            }
        }
        float along_sum = sum(along), all_sum = sum(all);
        for (size_t j = whole; j < h; j++) {
            centred[j] *= scale;
            along_sum += g[j] * weight[j] * centred[j], all_sum += g[j] * weight[j];
            if (sums) sums[j] += g[j] * centred[j], sums[h + j] += g[j];
        }
        const float along_mean = along_sum / h, all_mean = has_bias ? all_sum / h : 0.0f;
        float *to = out + i * h, *other = scaled ? scaled + i * h : nullptr;
        for (size_t j = 0; j < whole; j += W) {
            const vec rest = fma(load(centred + j), fill(-along_mean), fma(load(g + j), load(weight + j), fill(-all_mean)));
            const vec found = mul(rest, fill(scale));
            store(to + j, found);
            if (other) store(other + j, mul(found, fill(alpha)));
        }
        for (size_t j = whole; j < h; j++) {
            to[j] = scale * (g[j] * weight[j] - all_mean - centred[j] * along_mean);
            if (other) other[j] = alpha * to[j];
        }
    }
}

// What each row of logits (n, v) says, whose place is taken by its softmax where `keeps`.
struct Rows {
    float *log_sums, *means;  // of exponentials; of the logits
    int64_t* best;            // the largest, of equals the first
};
static void softmax_rows(float* logits, size_t v, bool keeps, const Rows& found, Range rows) {
    const size_t whole = v / W * W;
    for (size_t i = rows.first; i < rows.last; i++) {
        float* row = logits + i * v;
        vec most = fill(-INFINITY);
        vec total = fill(0.0f);
        for (size_t j = 0; j < whole; j += W) most = larger(most, load(row + j)), total = add(total, load(row + j));
        float top = largest(most), mean = sum(total);
        for (size_t j = whole; j < v; j++) top = row[j] > top ? row[j] : top, mean += row[j];
        size_t best = 0;
        while (best < v && !(row[best] == top)) best++;
        vec powers = fill(0.0f);
        float rest = 0.0f;
        for (size_t j = 0; j < whole; j += W) {
            const vec e = exponential(sub(load(row + j), fill(top)));
            powers = add(powers, e);
            if (keeps) store(row + j, e);
        }
        for (size_t j = whole; j < v; j++) {
            const float e = std::exp(row[j] - top);
            rest += e;
            if (keeps) row[j] = e;
        }
        const float whole_sum = sum(powers) + rest, scale = 1.0f / whole_sum;
        if (keeps) {
            for (size_t j = 0; j < whole; j += W) store(row + j, mul(load(row + j), fill(scale)));
            for (size_t j = whole; j < v; j++) row[j] *= scale;
        }
        found.log_sums[i] = top + std::log(whole_sum), found.means[i] = mean / v, found.best[i] = best;
    }
}

}  // namespace gradients
