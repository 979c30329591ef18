"""What PTX computes, without memory and without lanes that exchange anything: an instruction and its values.

Written from the PTX ISA, as ptx_warp.py, which brings the values: numpy arrays of 32 lanes, uint64 (predicates bool).
"""

import numpy as np

LANES, LOW32, ALL64 = np.arange(32), np.uint64(0xFFFFFFFF), 0xFFFFFFFFFFFFFFFF


class Fault(Exception):
    """A kernel does what is undefined on a GPU, or what nothing here knows."""


def filled(value: int):
    return np.full(32, value, np.uint64)


def signed(x):
    return (x & LOW32).astype(np.uint32).view(np.int32).astype(np.int64)


def floats(x):
    return (x & LOW32).astype(np.uint32).view(np.float32)


def float_bits(x):
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)


def half_pair(x):
    parts = (x & 0xFFFF, (x >> 16) & 0xFFFF)
    return tuple(part.astype(np.uint16).view(np.float16).astype(np.float64) for part in parts)


def half_bits(x):
    return x.astype(np.float16).view(np.uint16).astype(np.uint64)


def brain_pair(x):
    return floats((x & 0xFFFF) << 16).astype(np.float64), floats(x & 0xFFFF0000).astype(np.float64)


def brain_bits(x):
    """To the nearest, ties to even."""
    bits = float_bits(x)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded & 0xFFFF).astype(np.uint64)


def computed(kind: str, rest: list[str], x, *others):
    """The result of an instruction: `kind` is its name up to the first point, `rest` what stands behind."""
    type_ = rest[-1]
    if kind == "mov":
        return x & LOW32 if type_ in ("u32", "b32", "f32") else x
    if kind == "cvt":
        return converted(x, rest[-2], type_)
    if kind == "setp":
        return compared(rest[0], type_, x, *others)
    if kind == "selp":
        return np.where(others[1], x, others[0])
    if type_ == "pred":
        return {"not": lambda: ~x, "and": lambda: x & others[0], "or": lambda: x | others[0],
                "xor": lambda: x ^ others[0]}[kind]()
    if type_ == "f32":
        return of_floats(kind, x, *others)
    if type_ in ("f16x2", "bf16x2"):
        unpack, pack = (half_pair, half_bits) if type_ == "f16x2" else (brain_pair, brain_bits)
        pairs = [unpack(value) for value in (x, *others)]
        low, high = (arithmetic(kind, *parts) for parts in zip(*pairs, strict=True))
        return pack(low) | pack(high) << 16
    result = with_integers(kind, rest, x, *others)
    wide = type_.endswith("64") or (rest[0] == "wide" and not type_.endswith("16"))
    return result if wide else result & LOW32


def arithmetic(kind: str, x, y, z=None):
    """In float64, rounded by the caller: once, as fused operations are."""
    if kind not in ("add", "sub", "mul", "div", "fma"):
        raise Fault(f"{kind} of floats is not known")
    return {"add": lambda: x + y, "sub": lambda: x - y, "mul": lambda: x * y, "div": lambda: x / y,
            "fma": lambda: x * y + z}[kind]()


def of_floats(kind: str, x, *others):
    """In float64, rounded once. Approximations (ex2, rcp, rsqrt) are as good as the type allows."""
    if kind == "copysign":  # of the first, put on the second
        return (others[0] & np.uint64(0x7FFFFFFF)) | (x & np.uint64(0x80000000))
    x, *others = (floats(value).astype(np.float64) for value in (x, *others))
    one = {"neg": lambda: -x, "abs": lambda: abs(x), "ex2": lambda: np.exp2(x), "rcp": lambda: 1 / x,
           "rsqrt": lambda: 1 / np.sqrt(x)}
    return float_bits(one[kind]() if kind in one else arithmetic(kind, x, *others))


def converted(x, to: str, source: str):
    if (to, source) == ("f32", "f16"):
        return float_bits(half_pair(x)[0])
    if (to, source) in (("f16", "f32"), ("bf16", "f32")):
        return (half_bits if to == "f16" else brain_bits)(floats(x))
    if (to, source) in (("f32", "s32"), ("f32", "u32")):
        return float_bits(signed(x) if source == "s32" else x & LOW32)
    if "f" in to + source:
        raise Fault(f"cvt from {source} to {to} is not known")
    return x & np.uint64((1 << min(int(to[1:]), int(source[1:]))) - 1)


def compared(relation: str, type_: str, x, y):
    if type_ == "f32":
        x, y = floats(x), floats(y)
        if relation == "nan":
            return np.isnan(x) | np.isnan(y)
        if len(relation) == 3:  # unordered: also where one is not a number
            return np.isnan(x) | np.isnan(y) | compared_values(relation[:2], x, y)
        return ~np.isnan(x) & ~np.isnan(y) & compared_values(relation, x, y)
    if type_ == "s32":
        x, y = signed(x), signed(y)
    elif type_ == "s64":
        x, y = x.view(np.int64), y.view(np.int64)
    else:
        x, y = x & LOW32, y & LOW32
    return compared_values(relation, x, y)


def compared_values(relation: str, x, y):
    return {"eq": x == y, "ne": x != y, "lt": x < y, "ge": x >= y, "gt": x > y, "le": x <= y}[relation]


def with_integers(kind: str, rest: list[str], x, y=None, z=None, last=None):
    type_, size = rest[-1], 64 if rest[-1].endswith("64") else 32
    if type_.endswith("16") and kind == "mul":  # wide
        return (x & 0xFFFF) * (y & 0xFFFF)
    if kind == "mul" and rest[0] in ("wide", "hi"):
        return (x & LOW32) * (y & LOW32) >> (32 if rest[0] == "hi" else 0)
    if kind in ("shl", "shr"):
        if (kind, type_) == ("shr", "s32"):
            return (signed(x) >> np.minimum(y, 31).astype(np.int64)).astype(np.uint64)
        x, count = x if size == 64 else x & LOW32, y & 63
        return np.where(y >= size, 0, x << count if kind == "shl" else x >> count).astype(np.uint64)
    if kind == "bfi":
        at, mask = int(z[0]), ((1 << int(last[0])) - 1) << int(z[0])
        return (y & ~np.uint64(mask)) | ((x << np.uint64(at)) & np.uint64(mask))
    if kind == "lop3":
        table, result = int(last[0]), filled(0)
        for i in (i for i in range(8) if table >> i & 1):
            result = result | ((x if i & 4 else x ^ LOW32) & (y if i & 2 else y ^ LOW32) & (z if i & 1 else z ^ LOW32))
        return result
    if kind == "prmt":
        source, result = np.stack([(half >> (8 * i)) & 0xFF for half in (x, y) for i in range(4)]), filled(0)
        for i in range(4):
            selector = (z >> (4 * i)) & 0xF
            byte = source[(selector & 7).astype(int), LANES]
            byte = np.where(selector & 8, np.where(byte & 0x80, 0xFF, 0), byte).astype(np.uint64)
            result = result | byte << np.uint64(8 * i)
        return result
    simple = {"mul": lambda: x * y, "mad": lambda: x * y + z, "add": lambda: x + y, "sub": lambda: x - y,
              "and": lambda: x & y, "or": lambda: x | y, "xor": lambda: x ^ y, "not": lambda: ~x,
              "neg": lambda: np.uint64(0) - x,
              "min": lambda: np.minimum(x & LOW32, y & LOW32), "max": lambda: np.maximum(x & LOW32, y & LOW32),
              "div": lambda: (x & LOW32) // np.maximum(y & LOW32, 1),
              "rem": lambda: (x & LOW32) % np.maximum(y & LOW32, 1)}
    if kind not in simple:
        raise Fault(f"{kind}.{'.'.join(rest)} is not known")
    return simple[kind]()
