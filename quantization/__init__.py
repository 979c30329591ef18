"""Weight-only quantisation of a model: the quantiser, the quantised linear layer, and the swap."""
