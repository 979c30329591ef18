"""What a warp of a GPU does with PTX, instruction by instruction, in lockstep with real divergence.

Written from the PTX ISA and from nothing in kernels/cuda: where the kernels' author has misread a fragment's layout, a
selector or a magic number, this does not follow. Only the instructions that these kernels compile to are known.
Values are numpy arrays of 32 lanes, uint64 (predicates bool).
"""

import re

import numpy as np

LANES, LOW32, ALL64 = np.arange(32), np.uint64(0xFFFFFFFF), 0xFFFFFFFFFFFFFFFF
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


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


def names_of(operand: str) -> list[str]:
    return operand[1:-1].split(",") if operand.startswith("{") else [operand]


def address_of(operand: str) -> tuple[str, int]:
    found = re.match(r"\[([^+\]]+)(?:\+(-?\d+))?\]", operand)
    return found[1], int(found[2] or 0)


class Warp:
    """32 lanes, each with a program counter; those that lag behind run first. block: ptx_interpreter.Block."""

    def __init__(self, block, index: int):
        self.block, self.first = block, 32 * index
        self.counters, self.alive = np.zeros(32, np.int64), LANES + self.first < block.threads
        self.registers, self.waits = {}, False  # waits: at a barrier
        special = {"%tid.x": LANES.astype(np.uint64) + np.uint64(self.first), "%ntid.x": filled(block.threads),
                   "%ctaid.x": filled(block.place[0]), "%ctaid.y": filled(block.place[1]),
                   "%nctaid.x": filled(block.grid[0])}
        self.registers |= special | {name: filled(at) for name, at in block.kernel.shared.items()}

    def get(self, name: str):
        if name in self.registers:
            return self.registers[name]
        if name.startswith("0f"):
            return filled(int(name[2:], 16))
        if re.match(r"-?\d", name):
            return filled(int(name, 0) & ALL64)
        raise Fault(f"{name} is read before it is written")

    def put(self, name: str, value, lanes) -> None:
        if name != "_":
            value = value if value.dtype == bool else value.astype(np.uint64)
            self.registers[name] = np.where(lanes, value, self.registers.get(name, np.zeros(32, value.dtype)))

    def step(self) -> None:
        counter = self.counters[self.alive].min()
        lanes = self.alive & (self.counters == counter)
        operation, operands, guard = self.block.kernel.code[counter]
        acting = lanes
        if guard:
            is_inverted, predicate = guard
            acting = lanes & (self.get(predicate) ^ is_inverted)
        self.counters = np.where(lanes, counter + 1, self.counters)
        kind, *rest = operation.split(".")
        if kind == "bra":
            self.counters = np.where(acting, self.block.kernel.labels[operands[0]], self.counters)
        elif kind == "ret":
            self.alive = self.alive & ~acting
        elif kind == "bar":
            if not (lanes == self.alive).all():
                raise Fault("a part of a warp waits at a barrier")
            self.waits = True
        elif kind in ("mma", "shfl"):
            if not acting.all():
                raise Fault(f"{operation} by {int(acting.sum())} of 32 lanes")
            self.exchange(operation, operands)
        elif kind in ("ld", "st"):
            (self.load if kind == "ld" else self.store)(rest, operands, acting)
        elif operands[0].startswith("{"):  # a register into its halves
            value = self.get(operands[1])
            for name, part in zip(names_of(operands[0]), (value & 0xFFFF, (value >> 16) & 0xFFFF), strict=True):
                self.put(name, part, acting)
        else:
            self.put(operands[0], self.computed(kind, rest, operands), acting)

    def computed(self, kind: str, rest: list[str], operands: list[str]):
        type_ = rest[-1]
        if kind == "mov" and operands[1].startswith("{"):
            low, high = map(self.get, names_of(operands[1]))
            return (low & 0xFFFF) | (high << 16)
        x, *others = map(self.get, operands[1:])
        if kind == "mov":
            return x & LOW32 if type_ in ("u32", "b32", "f32") else x
        if kind == "cvt":
            return converted(x, rest[-2], type_)
        if kind == "setp":
            return compared(rest[0], type_, x, *others)
        if type_ == "pred":
            return ~x if kind == "not" else x & others[0] if kind == "and" else x | others[0]
        if type_ == "f32" and kind in ("add", "mul", "fma"):
            return with_floats(kind, floats, float_bits, x, *others)
        if type_ in ("f16x2", "bf16x2"):
            unpack, pack = (half_pair, half_bits) if type_ == "f16x2" else (brain_pair, brain_bits)
            pairs = [unpack(value) for value in (x, *others)]
            low, high = (arithmetic(kind, *parts) for parts in zip(*pairs, strict=True))
            return pack(low) | pack(high) << 16
        result = with_integers(kind, rest, x, *others)
        return result if type_.endswith("64") or rest[0] == "wide" else result & LOW32

    def exchange(self, operation: str, operands: list[str]) -> None:
        if operation.startswith("shfl"):  # bfly
            self.put(operands[0].partition("|")[0], self.get(operands[1])[LANES ^ int(self.get(operands[2])[0])], True)
            return
        results, *inputs = map(names_of, operands)
        a, b, c = ([self.get(name) for name in names] for names in inputs)
        unpack = half_pair if ".f16.f16" in operation else brain_pair
        a, b = ([half for register in registers for half in unpack(register)] for registers in (a, b))
        left, right, total = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
        group, member = LANES >> 2, LANES % 4
        for i in range(8):  # fragment A of m16n8k16
            rows = group if i in (0, 1, 4, 5) else group + 8
            left[rows, member * 2 + (i & 1) + (8 if i >= 4 else 0)] = a[i]
        for i in range(4):
            right[member * 2 + (i & 1) + (8 if i >= 2 else 0), group] = b[i]
            total[group + (8 if i >= 2 else 0), member * 2 + (i & 1)] = floats(c[i])
        total = (left @ right + total).astype(np.float32)
        for i, name in enumerate(results):
            self.put(name, float_bits(total[group + (8 if i >= 2 else 0), member * 2 + (i & 1)]), True)

    def load(self, rest: list[str], operands: list[str], acting) -> None:
        names, (base, offset), size = names_of(operands[0]), address_of(operands[1]), BYTES[rest[-1][1:]]
        if rest[0] == "param":
            raw = [self.block.arguments[offset + i * size:offset + (i + 1) * size] for i in range(len(names))]
            for name, part in zip(names, raw, strict=True):
                self.put(name, filled(int.from_bytes(part, "little")), acting)
            return
        places, values = self.get(base) + np.uint64(offset), np.zeros((len(names), 32), np.uint64)
        for lane in np.flatnonzero(acting):
            raw = self.block.read(int(places[lane]), len(names) * size, rest[0] == "shared", self.first + lane)
            for i in range(len(names)):
                values[i, lane] = int.from_bytes(raw[i * size:(i + 1) * size], "little")
        for name, value in zip(names, values, strict=True):
            self.put(name, value, acting)

    def store(self, rest: list[str], operands: list[str], acting) -> None:
        (base, offset), size = address_of(operands[0]), BYTES[rest[-1][1:]]
        values, places = [self.get(name) for name in names_of(operands[1])], self.get(base) + np.uint64(offset)
        for lane in np.flatnonzero(acting):
            parts = (int(value[lane]) & ((1 << 8 * size) - 1) for value in values)
            self.block.write(int(places[lane]), b"".join(part.to_bytes(size, "little") for part in parts),
                             rest[0] == "shared", self.first + lane)


def arithmetic(kind: str, x, y, z=None):
    """In float64, rounded by the caller: once, as fused operations are."""
    return x + y if kind == "add" else x * y if kind == "mul" else x * y + z


def with_floats(kind: str, unpack, pack, *values):
    return pack(arithmetic(kind, *(unpack(value).astype(np.float64) for value in values)).astype(np.float32))


def converted(x, to: str, source: str):
    if (to, source) == ("f32", "f16"):
        return float_bits(half_pair(x)[0])
    if (to, source) in (("f16", "f32"), ("bf16", "f32")):
        return (half_bits if to == "f16" else brain_bits)(floats(x))
    if (to, source) == ("f32", "s32"):
        return float_bits(signed(x))
    if "f" in to + source:
        raise Fault(f"cvt from {source} to {to} is not known")
    return x & np.uint64((1 << min(int(to[1:]), int(source[1:]))) - 1)


def compared(relation: str, type_: str, x, y):
    if type_ == "s32":
        x, y = signed(x), signed(y)
    elif type_ == "s64":
        x, y = x.view(np.int64), y.view(np.int64)
    else:
        x, y = x & LOW32, y & LOW32
    return {"eq": x == y, "ne": x != y, "lt": x < y, "ge": x >= y, "gt": x > y, "le": x <= y}[relation]


def with_integers(kind: str, rest: list[str], x, y=None, z=None, last=None):
    type_, size = rest[-1], 64 if rest[-1].endswith("64") else 32
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
              "and": lambda: x & y, "or": lambda: x | y, "xor": lambda: x ^ y, "selp": lambda: np.where(z, x, y),
              "min": lambda: np.minimum(x & LOW32, y & LOW32), "max": lambda: np.maximum(x & LOW32, y & LOW32),
              "div": lambda: (x & LOW32) // np.maximum(y & LOW32, 1)}
    if kind not in simple:
        raise Fault(f"{kind}.{'.'.join(rest)} is not known")
    return simple[kind]()
