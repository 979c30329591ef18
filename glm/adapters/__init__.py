"""What adapts a model beside its weights: low-rank pairs of its linears, and prefixes of keys and values."""
