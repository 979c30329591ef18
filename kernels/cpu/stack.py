"""All layers in one call: at small sizes the calls of single operations cost more than the work of a decoding step, and
beside other programs each operation of a prompt would wait for threads that have no core."""

import ctypes
import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import PANEL_BYTES
from kernels.cpu import attention
from kernels.cpu.attention import address
from kernels.cpu.ranks import Sums
from kernels.layer import LayerForm, LayerWeights
from kernels.packing import BITS
from kernels.reference import FLOATS, Lengths, PackedWeight

SIZE, POINTER = ctypes.c_size_t, ctypes.c_void_p
BEFORE_LAYER = ctypes.CFUNCTYPE(ctypes.c_int, SIZE)
SIGNATURE = [ctypes.c_int, *[POINTER] * 9, BEFORE_LAYER, POINTER, ctypes.c_int]
NOTHING_BEFORE = BEFORE_LAYER()
PASS_SIGNATURE = [ctypes.c_int, *[POINTER] * 3, ctypes.c_int, SIZE, *[POINTER] * 4, SIZE, POINTER, ctypes.c_int]
MOST_TOKENS = 512  # of a pass, or as many as PANEL_BYTES hold
MOST_PRODUCTS = 10**11  # of two numbers, in one call: seconds on a slow processor, and Ctrl-C is heard between calls
MATRICES = ("qkv_weight", "dense_weight", "in_weight", "out_weight")


class Shape(ctypes.Structure):
    """stack.h's StackShape."""

    _fields_ = [("layers", SIZE), ("hidden", SIZE), ("inner", SIZE), ("is_pre_norm", SIZE), ("activation", SIZE),
                ("alpha", ctypes.c_double), ("epsilon", ctypes.c_double)]


class Stack:
    """kernels.layer.stack for one model and one cache, whose addresses are collected once.

    Valid as long as neither the weights nor the cache's buffers are replaced; both are kept alive.
    before: called before each layer with its number; what it returns are that layer's weights from then on, and no
    other's are looked at (None: those that it has). An error in it ends the step.
    ranks: where each holds a part of all layers, cpu.ranks.Sums; then there are steps alone.
    """

    def __init__(self, operators, layers: list[LayerWeights], final_norm: tuple[Tensor, Tensor | None],
                 keys: list[Tensor], values: list[Tensor], form: LayerForm,
                 before: Callable[[int], LayerWeights | None] | None = None, ranks: Sums | None = None):
        self.operators, self.before, self.ranks, self.failure = operators, before, ranks, None
        self.kept = (layers, final_norm, keys, values)
        self.batch, _, self.capacity, size = keys[0].shape
        (self.hidden, width), inner = layers[0].dense_weight.shape, layers[0].out_weight.shape[1]
        self.form, self.heads, self.keys, self.dtype = form, width // size, keys[0], keys[0].dtype
        numbers = [number for layer, *cache in zip(layers, keys, values, strict=True)
                   for number in (*self._numbers(layer), *(tensor.data_ptr() for tensor in cache))]
        self.table = (SIZE * len(numbers))(*numbers)
        self.layer_bytes = ctypes.sizeof(self.table) // len(layers)
        self.shape = Shape(len(layers), self.hidden, inner, form.is_pre_norm, form.activation, form.alpha, form.epsilon)
        self.fixed = (operators.TYPES[self.dtype], ctypes.addressof(self.shape), ctypes.addressof(self.table),
                      *(address(part) for part in final_norm))
        self._stack, self._pass = operators.library.glm_stack, operators.library.glm_pass
        self._stack.argtypes = SIGNATURE
        self._pass.argtypes, self._pass.restype = PASS_SIGNATURE, None
        self.parameters = sum(math.prod(getattr(layers[0], name).shape) for name in MATRICES)  # of a layer
        self.most_tokens = max(MOST_TOKENS, PANEL_BYTES // (4 * max(self.hidden, width, inner)))

    def _numbers(self, layer: LayerWeights) -> list[int]:
        return [number for name, tensor in layer._asdict().items() for number in self._described(name, tensor)]

    def _renew(self, number: int) -> int:
        """What the C code calls: no error may leave it."""
        try:
            layer = self.before(number)
            if layer is not None:
                numbers = self._numbers(layer)
                place = number * (len(numbers) + 2)  # behind each layer its keys and values
                self.table[place:place + len(numbers)] = numbers
        except BaseException as error:  # an interrupt, too
            self.failure = error
            return 1
        return 0

    def _described(self, name: str, tensor: Tensor | PackedWeight | None) -> tuple[int, ...]:
        """One part of stack.h's LayerWeights: an address, or the five numbers of a matrix."""
        if name not in MATRICES:
            return (address(tensor),)
        if isinstance(tensor, Tensor):
            return tensor.data_ptr(), 0, 0, 0, 0
        weight, scale, bits, group_size = tensor
        group_size = group_size or tensor.shape[1]
        return weight.data_ptr(), scale.data_ptr(), group_size, bits, self.operators.TYPES[scale.dtype]

    def _filled(self, hidden: Tensor, start: int | Lengths, blocked: Tensor | None,
                length: int | str = "s") -> tuple[int, Lengths | None]:
        """How many places are filled, and where rows differ in it, of each. Raises ValueError for what C++ does not
        check; length: that hidden must have, "s": any."""
        start, lengths = (start.longest, start) if isinstance(start, Lengths) else (start, None)
        batch, s, width = hidden.shape
        if (batch > self.batch or width != self.hidden or hidden.dtype is not self.dtype or length not in ("s", s)
                or start + s > self.capacity or (lengths is not None and lengths.each.shape != (batch,))
                or (blocked is not None and blocked.shape[-1] != start + s)):
            raise ValueError(f"stack: made for ({self.batch}, {length}, {self.hidden}) at most and {self.capacity} "
                             f"places, given {tuple(hidden.shape)} at place {start}")
        return start, lengths

    def step(self, hidden: Tensor, cosine: Tensor, sine: Tensor, start: int | Lengths,
             blocked: Tensor | None = None) -> Tensor:
        """hidden (b, 1, h), cosine and sine (b, 1, r) float32, blocked None or bool (b, 1, start + 1)
        -> (b, 1, h) after the final norm; keys and values are written at place `start`, of each row its own under
        Lengths. Of the cache's rows, the first b are used."""
        batch, (start, lengths) = hidden.shape[0], self._filled(hidden, start, blocked, 1)
        hidden = hidden.contiguous()
        cosine, sine = cosine.float().contiguous(), sine.float().contiguous()
        if blocked is not None:
            blocked = blocked.contiguous()
        out = torch.empty_like(hidden)
        if batch == 0:
            return out  # without a piece of work a stage would never end
        if self.ranks is not None:
            self.ranks.check()
        callback = NOTHING_BEFORE if self.before is None else BEFORE_LAYER(self._renew)  # not kept: it holds self
        shape = attention.Shape.of(batch, self.heads, self.keys, start + 1, self.form.rotary, cosine,
                                   self.form.is_by_heads, blocked, lengths)
        code = self._stack(*self.fixed, ctypes.addressof(shape), hidden.data_ptr(), cosine.data_ptr(), sine.data_ptr(),
                           out.data_ptr(), callback, self.ranks and self.ranks.address, torch.get_num_threads())
        if self.ranks is not None:
            self.ranks.check(code)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            if self.ranks is not None:
                self.ranks.leave_out()
            raise failure
        return out

    def reads(self, tokens: int) -> bool:
        """Whether `read` takes a pass over so many tokens: their operands are in memory all at once, and layers that
        come and go are walked, as are passes whose products the compiled code leaves to torch."""
        return (tokens <= self.most_tokens and self.before is None and self.ranks is None
                and self.operators.multiplies_rows(tokens))

    def read(self, hidden: Tensor, cosine: Tensor, sine: Tensor, start: int | Lengths, blocked: Tensor | None = None,
             places: Tensor | None = None) -> Tensor:
        """hidden (b, s, h), cosine and sine (b, s, r) float32, blocked None or bool (b, s, start + s) -> (b, s, h)
        before the final norm; keys and values are written from place `start` on. places (n,) int64 out of b * s: the
        result is (n, h), and for all others the last layer computes no more than keys and values."""
        (batch, length, _), (start, lengths) = hidden.shape, self._filled(hidden, start, blocked)
        if places is not None and (places.dtype is not torch.int64
                                   or bool(((places < 0) | (places >= batch * length)).any())):
            raise ValueError(f"stack: places {places.tolist()} ({places.dtype}) of {batch} x {length} tokens")
        hidden, cosine, sine = hidden.contiguous(), cosine.float().contiguous(), sine.float().contiguous()
        blocked = None if blocked is None else blocked.expand(batch, length, -1).contiguous()
        if hidden.numel() == 0:
            return hidden if places is None else hidden.new_empty((0, self.hidden))
        if places is not None:  # one at least: without a piece of work a stage would never end
            ascending, order = (places if len(places) else places.new_zeros(1)).sort()
        shape = attention.Shape.of(batch, self.heads, self.keys, start + length, self.form.rotary, cosine,
                                   self.form.is_by_heads, blocked, lengths)
        (kind, _, table, *_), threads = self.fixed, torch.get_num_threads()
        at_once = max(1, MOST_PRODUCTS // (batch * length * self.parameters))
        for first in range(0, self.shape.layers, at_once):
            layers = Shape.from_buffer_copy(self.shape)
            layers.layers = min(at_once, self.shape.layers - first)
            is_last = first + at_once >= self.shape.layers
            asked = ascending if is_last and places is not None else None
            out = torch.empty_like(hidden) if asked is None else hidden.new_empty((len(asked), self.hidden))
            self._pass(kind, ctypes.addressof(layers), table + first * self.layer_bytes, ctypes.addressof(shape),
                       self.operators.prefill_products, length, hidden.data_ptr(), cosine.data_ptr(), sine.data_ptr(),
                       address(asked), 0 if asked is None else len(asked), out.data_ptr(), threads)
            hidden = out
        return hidden if places is None else hidden[order.argsort()[:len(places)]]


def fits(layers: list[LayerWeights], final_norm: tuple[Tensor, Tensor | None], keys: list[Tensor],
         values: list[Tensor], form: LayerForm) -> bool:
    """Whether the compiled code can take these: one element type, dense, whole heads, all layers shaped alike."""
    first, (_, groups, _, size) = layers[0], keys[0].shape
    (hidden, local), inner = first.dense_weight.shape, first.out_weight.shape[1]
    heads, halves = local // size, 2 * inner if form.activation.is_gated else inner
    width = (heads + 2 * groups) * size
    expected = [(hidden,), (hidden,), (width, hidden), (width,), (hidden, local), (hidden,),
                (hidden,), (hidden,), (halves, hidden), (halves,), (hidden, inner), (hidden,)]
    parts = [part for layer in layers for part in layer] + [*final_norm]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    caches = [*keys, *values]
    dtype, place = keys[0].dtype, keys[0].stride()
    return (all(t.dtype is dtype and t.is_contiguous() for t in tensors)
            and all(_is_whole(part) for part in parts if isinstance(part, PackedWeight))
            and all(c.dtype is dtype and c.shape == keys[0].shape and c.stride() == place for c in caches)
            and place[2:] == (size, 1) and local == heads * size and heads % groups == 0
            and (heads == groups or not form.is_by_heads)
            and all([shape if part is None else tuple(part.shape) for part, shape in zip(layer, expected, strict=True)]
                    == expected for layer in layers)
            and all(t is None or t.shape == (hidden,) for t in final_norm))


def _is_whole(packed: PackedWeight) -> bool:
    """Whether weight and scales of a packed matrix belong together."""
    weight, scale, bits, group_size = packed
    n, k = packed.shape
    expected = (n,) if group_size is None else (n, k // group_size)
    return (bits in BITS and weight.dtype is torch.int8 and weight.is_contiguous() and scale.is_contiguous()
            and scale.dtype in FLOATS and tuple(scale.shape) == expected
            and (group_size is None or k % group_size == 0))
