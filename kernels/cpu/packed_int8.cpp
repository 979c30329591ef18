#include "packed_linear.h"

const PackedProduct packed_int8 = PACKED_PRODUCT(8);
