// PackedProduct for one number of bits: which form of the product suits the type of x and m.
#pragma once
#include <type_traits>
#include "packed_many.h"
#include "packed_words.h"

static const size_t FEW = 8;  // rows of x; beyond, unpacking a block of weights for all of them pays

template <class Form> struct Chosen { typedef Form type; };

// Calls use(Chosen<Form>()) with the form for m rows of x of type T.
template <int BITS, class T, class Use> static void choose_form(const Packed& w, size_t m, Use use) {
    const bool many = m > FEW || Order<BITS>::scaling(w) == BY_COLUMN;
#ifdef GLM_BF16_DOTS
    if (many && std::is_same<T, bf16>::value) return use(Chosen<Many<BITS, bf16>>());
#endif
    if (many) return use(Chosen<Many<BITS, float>>());
#ifdef GLM_PAIRS
    use(Chosen<Few<InWords<BITS>>>());
#else
    use(Chosen<Few<InFloats<BITS>>>());
#endif
}

template <int BITS> struct Product {
    static uint8_t* room(int type, const Packed& w, size_t m) {
        size_t bytes = 0;
        BY_TYPE(type, (choose_form<BITS, T>(w, m, [&](auto chosen) {
            typedef typename decltype(chosen)::type Form;
            bytes = m * Form::padded(w.k) * sizeof(typename Form::X);
        })))
        return scratch<Product, uint8_t>(bytes);
    }
    static void arrange(int type, const Packed& w, const void* x, size_t m, Range rows, uint8_t* room) {
        BY_TYPE(type, (choose_form<BITS, T>(w, m, [&](auto chosen) {
            typedef typename decltype(chosen)::type Form;
            typename Form::X* to = (typename Form::X*)room;
            for (size_t i = rows.first; i < rows.last; i++)
                Form::arrange((const T*)x + i * w.k, w, to + i * Form::padded(w.k));
        })))
    }
    static void rows(const Packed& w, const uint8_t* arranged, size_t m, const Target& to, Range rows) {
        BY_TYPE(to.type, (choose_form<BITS, T>(w, m, [&](auto chosen) {
            typedef typename decltype(chosen)::type Form;
            by_scaling<Form>(w, (const typename Form::X*)arranged, m, to, rows);
        })))
    }
    template <class Form>
    static void by_scaling(const Packed& w, const typename Form::X* x, size_t m, const Target& to, Range rows) {
        switch (Order<BITS>::scaling(w)) {
            case BY_ROW: return Form::template rows<BY_ROW>(w, x, m, to, rows);
            case BY_UNIT: return Form::template rows<BY_UNIT>(w, x, m, to, rows);
            case BY_PARTS: return Form::template rows<BY_PARTS>(w, x, m, to, rows);
            case BY_LANE: return Form::template rows<BY_LANE>(w, x, m, to, rows);
            case BY_COLUMN:
                if constexpr (!Form::FEW_ROWS) return Form::template rows<BY_COLUMN>(w, x, m, to, rows);
        }
    }
    static size_t padded(size_t k) { return Order<BITS>::padded(k); }
    static void arrange_plain(int type, const void* x, size_t k, Range rows, int to_type, void* to) {
        if (to_type == 1) arrange_as(type, x, k, rows, (bf16*)to);
        else arrange_as(type, x, k, rows, (float*)to);
    }
    template <class E> static void arrange_as(int type, const void* x, size_t k, Range rows, E* to) {
        for (size_t i = rows.first; i < rows.last; i++)
            BY_TYPE(type, InFloats<BITS>::arrange((const T*)x + i * k, k, to + i * padded(k)))
    }
    static void unpack(const Packed& w, Range rows, int to_type, void* to) {
        if (to_type == 1) unpack_as(w, rows, (bf16*)to);
        else unpack_as(w, rows, (float*)to);
    }
    template <class E> static void unpack_as(const Packed& w, Range rows, E* to) {
        switch (Order<BITS>::scaling(w)) {
            case BY_ROW: return Many<BITS, E>::template unpack_rows<BY_ROW>(w, rows, to);
            case BY_UNIT: return Many<BITS, E>::template unpack_rows<BY_UNIT>(w, rows, to);
            case BY_PARTS: return Many<BITS, E>::template unpack_rows<BY_PARTS>(w, rows, to);
            case BY_LANE: return Many<BITS, E>::template unpack_rows<BY_LANE>(w, rows, to);
            case BY_COLUMN: return Many<BITS, E>::template unpack_rows<BY_COLUMN>(w, rows, to);
        }
    }
};

#define PACKED_PRODUCT(BITS)                                                                                    \
    {Product<BITS>::room, Product<BITS>::arrange, Product<BITS>::rows, Product<BITS>::padded, Product<BITS>::arrange_plain, \
     Product<BITS>::unpack}
