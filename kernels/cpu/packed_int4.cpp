#include "packed_linear.h"

const PackedProduct packed_int4 = {Product<4>::room, Product<4>::arrange, Product<4>::rows};
