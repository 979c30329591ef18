#include "packed_linear.h"

const PackedProduct packed_int4 = PACKED_PRODUCT(4);
