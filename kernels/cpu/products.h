// The product that threads make piece by piece, as stack.h's layers need it: in products.cpp, for all types.
#pragma once
#include "packed_product.h"

// x (m, k), of `type`, as product_columns wants it: x itself, or in memory of the calling thread that its next call reuses.
const void* product_operand(int type, const void* x, size_t m, size_t k, const Matrix& w);
// Columns `part`, from a multiple of 4 on, of out (m, n) = x (m, k) w^T + bias.
void product_columns(int type, const void* operand, size_t m, size_t k, const Matrix& w, const Target& out, Range part);
// How many of all columns are best computed at a time, a multiple of 4.
size_t product_piece(size_t m, size_t k, const Matrix& w, size_t weight_bytes, size_t columns, int threads);
