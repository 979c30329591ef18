"""What a warp of a GPU does with PTX, instruction by instruction, in lockstep with real divergence.

Written from the PTX ISA and from nothing in kernels/cuda: where the kernels' author has misread a fragment's layout, a
selector or a magic number, this does not follow. Only the instructions that these kernels compile to are known.
Values are numpy arrays of 32 lanes, uint64 (predicates bool).
"""

import re

import numpy as np

from tests.ptx_arithmetic import ALL64, LANES, LOW32, Fault, brain_pair, computed, filled, float_bits, floats, half_pair

BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


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
        self.copies = [[]]  # asynchronous ones that are under way: those of each group, the open one last
        special = {"%tid.x": LANES.astype(np.uint64) + np.uint64(self.first), "%ntid.x": filled(block.threads),
                   "%ctaid.x": filled(block.place[0]), "%ctaid.y": filled(block.place[1]),
                   "%nctaid.x": filled(block.grid[0]), "%nctaid.y": filled(block.grid[1]),
                   "%globaltimer": filled(0)}  # no time passes
        self.registers |= special | {name: filled(at) for name, at in block.kernel.shared.items()}

    def get(self, name: str):
        if name in self.registers:
            return self.registers[name]
        if name.startswith("0f"):
            return filled(int(name[2:], 16))
        if name.endswith("_param_0"):  # where the arguments lie
            return filled(0)
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
        elif kind == "cp":
            self.copy(rest, operands, acting)
        elif kind == "fence":
            pass  # one thread runs at a time
        elif kind == "atom":
            self.increase(operands, acting)
        elif kind in ("ld", "st"):
            (self.load if kind == "ld" else self.store)(rest, operands, acting)
        elif operands[0].startswith("{"):  # a register into its halves
            value = self.get(operands[1])
            for name, part in zip(names_of(operands[0]), (value & 0xFFFF, (value >> 16) & 0xFFFF), strict=True):
                self.put(name, part, acting)
        elif kind == "mov" and operands[1].startswith("{"):
            low, high = map(self.get, names_of(operands[1]))
            self.put(operands[0], (low & 0xFFFF) | (high << 16), acting)
        else:
            self.put(operands[0], computed(kind, rest, *map(self.get, operands[1:])), acting)

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
            offset += int(self.get(base)[0])
            raw = [self.block.arguments[offset + i * size:offset + (i + 1) * size] for i in range(len(names))]
            for name, part in zip(names, raw, strict=True):
                self.put(name, filled(int.from_bytes(part, "little")), acting)
            return
        places, values = self.get(base) + np.uint64(offset), np.zeros((len(names), 32), np.uint64)
        if rest[0] == "shared" and len(names) * size == 16:
            self.block.count_conflicts(places, acting)
        for lane in np.flatnonzero(acting):
            raw = self.block.read(int(places[lane]), len(names) * size, rest[0] == "shared", self.first + lane,
                                  is_constant="nc" in rest)
            for i in range(len(names)):
                values[i, lane] = int.from_bytes(raw[i * size:(i + 1) * size], "little")
        for name, value in zip(names, values, strict=True):
            self.put(name, value, acting)

    def copy(self, rest: list[str], operands: list[str], acting) -> None:
        """cp.async, of 16 bytes; what is not read is zero."""
        if rest[1] in ("commit_group", "wait_group") and not acting.all():
            raise Fault(f"{rest[1]} by {int(acting.sum())} of 32 lanes")
        if rest[1] == "commit_group":
            self.copies.append([])
        elif rest[1] == "wait_group":
            while len(self.copies) > int(operands[0]) + 1:
                for place, size, thread in self.copies.pop(0):
                    self.block.arrive(place, size, thread)
        else:
            (to, offset), (source, further) = map(address_of, operands[:2])
            to, source = self.get(to) + np.uint64(offset), self.get(source) + np.uint64(further)
            size, wanted = int(operands[2]), self.get(operands[3]) & LOW32
            for lane in np.flatnonzero(acting):
                thread, count, place = self.first + lane, int(wanted[lane]), int(to[lane]) & 0xFFFFFFFF
                raw = self.block.read(int(source[lane]), count, False, thread) if count else b""
                self.block.copy(place, raw + bytes(size - len(raw)), thread)
                self.copies[-1].append((place, size, thread))

    def increase(self, operands: list[str], acting) -> None:
        """atom.inc: back to zero behind the bound."""
        (base, offset), bound = address_of(operands[1]), self.get(operands[2])
        places, before = self.get(base) + np.uint64(offset), filled(0)
        for lane in np.flatnonzero(acting):
            place, thread = int(places[lane]), self.first + lane
            before[lane] = found = int.from_bytes(self.block.read(place, 4, False, thread), "little")
            self.block.write(place, (0 if found >= bound[lane] else found + 1).to_bytes(4, "little"), False, thread)
        self.put(operands[0], before, acting)

    def store(self, rest: list[str], operands: list[str], acting) -> None:
        (base, offset), size = address_of(operands[0]), BYTES[rest[-1][1:]]
        values, places = [self.get(name) for name in names_of(operands[1])], self.get(base) + np.uint64(offset)
        for lane in np.flatnonzero(acting):
            parts = (int(value[lane]) & ((1 << 8 * size) - 1) for value in values)
            self.block.write(int(places[lane]), b"".join(part.to_bytes(size, "little") for part in parts),
                             rest[0] == "shared", self.first + lane)
