// The best of approximate logits become exact: kernels/vocabulary.py says which rows are computed again, and why.
#pragma once
#include <algorithm>
#include <cmath>
#include "linear.h"

// Logits (m, n) of x (m, k). A logit lies within error * |x| of the exact one; a row's are ranked with what is `added`
// (m, n; or none), and its `count` best become exact. Those that are not above `least` stay as they are.
struct Approximate {
    size_t m, k, n, count;
    const float *error, *added;
    float least, *logits;
};

// What one row's logits are ranked by, at the lower (side -1) or upper (1) end of where the exact ones lie.
struct RankedRow {
    const float *logits, *added, *error;
    float length;  // of x
    vec ends(size_t j, float side) const {
        vec value = load(logits + j);
        if (added) value = add(value, load(added + j));
        return fma(load(error + j), fill(side * length), value);
    }
    float end(size_t j, float side) const { return logits[j] + (added ? added[j] : 0.0f) + error[j] * (side * length); }
};
template <class T> static RankedRow ranked_row(const Approximate& a, const T* x, size_t i) {
    double squares = 0.0;
    for (size_t j = 0; j < a.k; j++) squares += double(to_float(x[i * a.k + j])) * to_float(x[i * a.k + j]);
    return {a.logits + i * a.n, a.added ? a.added + i * a.n : nullptr, a.error, float(std::sqrt(squares))};
}

static inline void keep_largest(std::vector<float>& values, size_t count) {
    if (values.size() <= count) return;
    std::nth_element(values.begin(), values.begin() + (count - 1), values.end(), std::greater<float>());
    values.resize(count);
}

// The `count` largest lower ends of some columns, in any order; fewer where fewer are numbers above minus infinity.
static std::vector<float> largest_lower_ends(const RankedRow& row, Range columns, size_t count) {
    std::vector<float> best;
    best.reserve(2 * count);
    float floor = -INFINITY;
    auto take = [&](float value) {
        if (!(value > floor)) return;
        best.push_back(value);
        if (best.size() < 2 * count) return;
        keep_largest(best, count);
        floor = *std::min_element(best.begin(), best.end());
    };
    size_t j = columns.first;
    for (; j + W <= columns.last; j += W) {
        const vec lower = row.ends(j, -1.0f);
        if (!(largest(lower) > floor)) continue;  // a NaN may hide its neighbours: the bar is lower then, and still right
        float each[W];
        store(each, lower);
        for (int i = 0; i < W; i++) take(each[i]);
    }
    for (; j < columns.last; j++) take(row.end(j, -1.0f));
    keep_largest(best, count);
    return best;
}

// Calls found(j) for the columns whose upper end is not below the bar; what is no number is not below it.
template <class Found> static void for_reaching(const RankedRow& row, Range columns, float bar, Found found) {
    enum { BLOCK = 4 * W };
    size_t j = columns.first;
    for (; j + BLOCK <= columns.last; j += BLOCK) {
        vec top = fill(-INFINITY), check = fill(0.0f);
        UNROLL for (int i = 0; i < 4; i++) {
            const vec upper = row.ends(j + i * W, 1.0f);
            top = larger(top, upper);
            check = fma(upper, fill(0.0f), check);  // NaN from what is no number, or infinite
        }
        if (largest(top) < bar && sum(check) == 0.0f) continue;
        for (size_t i = j; i < j + BLOCK; i++)
            if (!(row.end(i, 1.0f) < bar)) found(i);
    }
    for (; j < columns.last; j++)
        if (!(row.end(j, 1.0f) < bar)) found(j);
}

// A thread's part. best: room for team * m lists; bars: for m numbers.
template <class T, class Wait>
static void refine_part(const T* x, const T* w, const Approximate& a, std::vector<float>* best, float* bars, int thread,
                        int team, Wait wait_for_all) {
    const Range columns = share(a.n, 4, thread, team);
    std::vector<RankedRow> rows;
    for (size_t i = 0; i < a.m; i++) {
        rows.push_back(ranked_row(a, x, i));
        best[thread * a.m + i] = largest_lower_ends(rows[i], columns, a.count);
    }
    wait_for_all();
    for (size_t i = thread; i < a.m; i += team) {
        std::vector<float> all;
        for (int t = 0; t < team; t++) all.insert(all.end(), best[t * a.m + i].begin(), best[t * a.m + i].end());
        keep_largest(all, a.count);
        const float bar = all.size() < a.count ? -INFINITY : *std::min_element(all.begin(), all.end());
        bars[i] = std::isfinite(bar) ? bar - std::abs(bar) * 0x1p-20f : bar;  // the ends are rounded, too
    }
    wait_for_all();
    std::vector<size_t> chosen;
    for (size_t i = 0; i < a.m; i++)
        for_reaching(rows[i], columns, bars[i], [&](size_t j) { if (!(rows[i].logits[j] <= a.least)) chosen.push_back(j); });
    if (a.m > 1) {
        std::sort(chosen.begin(), chosen.end());
        chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    }
    enum { BLOCK = 32 };  // a multiple of the rows that a product takes together: sums are added as in the whole product
    std::vector<T> block(chosen.empty() ? 0 : BLOCK * a.k);
    std::vector<float> exact(BLOCK * a.m);
    const auto operand_x = operand(x, a.m, a.k, block.data());
    for (size_t first = 0; first < chosen.size(); first += BLOCK) {
        const size_t count = std::min(chosen.size() - first, size_t(BLOCK)), padded = (count + 3) / 4 * 4;
        for (size_t r = 0; r < padded; r++)
            std::memcpy(&block[r * a.k], w + chosen[first + std::min(r, count - 1)] * a.k, a.k * sizeof(T));
        linear_rows(operand_x, a.m, a.k, block.data(), (const T*)nullptr, exact.data(), padded, {0, padded});
        for (size_t i = 0; i < a.m; i++)
            for (size_t r = 0; r < count; r++) {
                float& logit = a.logits[i * a.n + chosen[first + r]];
                if (!(logit <= a.least)) logit = exact[i * padded + r];
            }
    }
}
