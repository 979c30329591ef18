// The product that one thread computes by itself, as stack.h's layers need it: in products.cpp, for all types.
#pragma once
#include <initializer_list>
#include "packed_product.h"

// The columns `parts` of out (m, n) = x (m, k) w^T + bias. type: that of x.
void product_part(int type, const void* x, size_t m, size_t k, const Matrix& w, const Target& out,
                  std::initializer_list<Range> parts);
