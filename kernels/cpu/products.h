// The product that threads make piece by piece, as stack.h's layers need it: in products.cpp, for all types.
#pragma once
#include "packed_product.h"

// x (m, k), of `type`, as product_columns wants it: x itself, or in memory of the calling thread, which its next call reuses.
const void* product_operand(int type, const void* x, size_t m, size_t k, const Matrix& w);
// Columns `part`, from a multiple of 4 on, of out (m, n) = x (m, k) w^T + bias.
void product_columns(int type, const void* operand, size_t m, size_t k, const Matrix& w, const Target& out, Range part);
// How many of all columns are best computed at a time, a multiple of 4.
size_t product_piece(int type, size_t m, size_t k, const Matrix& w, size_t columns, int threads);

// A product of many rows that a team shares, in two stages whose pieces are taken one by one: rows of x are put in order,
// then parts of out (m, n) are made. n: columns that are shared out; a part may be asked for further right as well.
class SharedProduct {
    int type;
    size_t m, k;
    const Matrix& w;
    size_t n, panels, floats, together, each;  // panels of x, its floats in order; panels of a part, and its columns

public:
    struct Part { Range panels, rows, columns; };  // rows: those of the panels
    SharedProduct(int type, size_t m, size_t k, const Matrix& w, size_t n, int threads);
    size_t room() const { return floats; }  // that x takes in order
    size_t pieces() const { return panels; }
    Range rows_of(size_t panel) const;
    void put_in_order(const void* x, size_t panel, float* room) const;
    size_t parts() const { return (n + each - 1) / each * ((panels + together - 1) / together); }
    Part part(size_t number) const;
    void make(const float* room, const Part& part, const Target& to) const;
};
// Whether a product of so many rows is one.
bool is_shared(int type, const Matrix& w, size_t m, size_t k);
