// PackedProduct for one number of bits.
#pragma once
#include <type_traits>
#include "packed_digits.h"
#include "packed_unpack.h"

template <int BITS> struct Product {
#ifdef GLM_FOURS
    typedef Few<typename std::conditional<BITS == 4, InDigits<4>, InWords<BITS>>::type> Form;
#elif defined(GLM_PAIRS)
    typedef Few<InWords<BITS>> Form;
#else
    typedef Few<InFloats<BITS>> Form;
#endif
    typedef typename Form::X X;
    static bool has_few(const Packed& w) { return Order<BITS>::scaling(w) != BY_COLUMN; }
    static uint8_t* room(const Packed& w, size_t m) { return scratch<Product, uint8_t>(m * Form::padded(w.k) * sizeof(X)); }
    static void arrange(int type, const Packed& w, const void* x, size_t m, uint8_t* room) {
        BY_TYPE(type, {
            for (size_t i = 0; i < m; i++)
                Form::arrange((const T*)x + i * w.k, w, (X*)room + i * Form::padded(w.k));
        })
    }
    static void rows(const Packed& w, const uint8_t* arranged, size_t m, const Target& to, Range rows) {
        const X* x = (const X*)arranged;
        switch (Order<BITS>::scaling(w)) {
            case BY_ROW: return Form::template rows<BY_ROW>(w, x, m, to, rows);
            case BY_UNIT: return Form::template rows<BY_UNIT>(w, x, m, to, rows);
            case BY_PARTS: return Form::template rows<BY_PARTS>(w, x, m, to, rows);
            case BY_LANE: return Form::template rows<BY_LANE>(w, x, m, to, rows);
            case BY_COLUMN: return;  // has_few says no
        }
    }
    static void unpack(const Packed& w, size_t row, size_t first, size_t columns, const float* scales, int to_type, void* to) {
        switch (to_type) {
            case 0: return unpack_columns<BITS>(w, row, first, columns, scales, (float*)to);
            case 1: return unpack_columns<BITS>(w, row, first, columns, scales, (bf16*)to);
#ifdef GLM_PAIRS
            case OF_INTEGERS: return unpack_columns<BITS>(w, row, first, columns, scales, (int16_t*)to);
#endif
        }
    }
};

#define PACKED_PRODUCT(BITS)                                                                                     \
    {Product<BITS>::has_few, Product<BITS>::room, Product<BITS>::arrange, Product<BITS>::rows, places_of_scales, \
     scales_of_row, Product<BITS>::unpack}
