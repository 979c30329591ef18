// out (m, n) = x (m, k) times a packed matrix transposed, plus bias: which form of the product suits bits, type and m.
#pragma once
#include <type_traits>
#include "packed_bf16.h"
#include "packed_many.h"

static const size_t FEW = 8;  // rows of x; beyond, unpacking a block of weights for all of them pays

template <class Form> struct Chosen { typedef Form type; };

// Calls use(Chosen<Form>()) with the form for x of type T.
template <class T, int BITS, class Use> static void choose_form(const Packed& w, size_t m, Use use) {
    const bool many = m > FEW || Order<BITS>::scaling(w) == BY_COLUMN;
#ifdef GLM_BF16_DOTS
    if constexpr (std::is_same<T, bf16>::value) {
        if (many) return use(Chosen<Many<BITS, bf16>>());
        if constexpr (BITS == 4) return use(Chosen<Few<Int4InBf16>>());
    }
#endif
    if (many) return use(Chosen<Many<BITS, float>>());
    use(Chosen<Few<InFloats<BITS>>>());
}
template <class T, class Use> static void choose_form(const Packed& w, size_t m, Use use) {
    if (w.bits == 4) choose_form<T, 4>(w, m, use);
    else choose_form<T, 8>(w, m, use);
}

// Room for x (m, k) as the form for it wants it.
template <class T> static uint8_t* arranged_room(const Packed& w, size_t m) {
    size_t bytes = 0;
    choose_form<T>(w, m, [&](auto chosen) {
        typedef typename decltype(chosen)::type Form;
        bytes = m * Form::padded(w.k) * sizeof(typename Form::X);
    });
    return scratch<Chosen<T>, uint8_t>(bytes);
}

// Some rows of x, put in order into the whole matrix's room.
template <class T> static void arrange_rows(const Packed& w, const T* x, size_t m, Range rows, uint8_t* room) {
    choose_form<T>(w, m, [&](auto chosen) {
        typedef typename decltype(chosen)::type Form;
        typename Form::X* to = (typename Form::X*)room;
        for (size_t i = rows.first; i < rows.last; i++) Form::arrange(x + i * w.k, w.k, to + i * Form::padded(w.k));
    });
}

// The columns `rows` of out, from x as arrange_rows leaves it.
template <class T>
static void packed_rows(const Packed& w, const uint8_t* arranged, size_t m, const T* bias, T* out, size_t n, Range rows) {
    choose_form<T>(w, m, [&](auto chosen) {
        typedef typename decltype(chosen)::type Form;
        const typename Form::X* x = (const typename Form::X*)arranged;
        switch (Order<Form::BITS>::scaling(w)) {
            case BY_ROW: return Form::template rows<BY_ROW>(w, x, m, bias, out, n, rows);
            case BY_UNIT: return Form::template rows<BY_UNIT>(w, x, m, bias, out, n, rows);
            case BY_PARTS: return Form::template rows<BY_PARTS>(w, x, m, bias, out, n, rows);
            case BY_LANE: return Form::template rows<BY_LANE>(w, x, m, bias, out, n, rows);
            case BY_COLUMN:
                if constexpr (!Form::FEW_ROWS) return Form::template rows<BY_COLUMN>(w, x, m, bias, out, n, rows);
        }
    });
}
