// The attention of a prompt in stages whose pieces threads take: in prefill.cpp, for all types.
#pragma once
#include "attention.h"

// Some rows of the batch at a time, so that they stay in a cache: first their tokens are turned, then come their heads.
struct PromptAttention {
    int type, products;  // products: at most glm_prefill_products(); types other than bf16 have but FP32's
    const AttentionShape& shape;
    size_t length;         // new tokens of a row
    const int64_t* asked;  // those whose results are wanted, in their order; null: all
    size_t count;          // of these
    const void* qkv;
    const float *cosine, *sine;
    void *keys, *values, *out;
    int threads;

    size_t stages() const { return 2 * ((shape.batch + rows() - 1) / rows()); }
    size_t pieces(size_t stage) const;
    void piece(size_t stage, size_t number) const;

private:
    enum { BYTES = 1 << 20, TOKENS = 32 };  // of a thread's rows that stay in a cache; of a piece
    size_t enough() const { return threads == 1 ? 1 : 4 * threads; }  // pieces of a stage
    size_t rows() const;                                             // at a time
    size_t parts() const { return (enough() + rows() * shape.groups - 1) / (rows() * shape.groups); }  // of a group
    Range rows_of(size_t stage) const;
    template <class Products, class T> void piece_of(size_t stage, size_t number) const;
};
