#include "packed_linear.h"

const PackedProduct packed_int8 = {Product<8>::room, Product<8>::arrange, Product<8>::rows};
