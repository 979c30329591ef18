"""All layers of a decoding step in one call: at small sizes the calls of single operations cost more than the work."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.packing import BITS
from kernels.reference import FLOATS, LayerWeights, Lengths, PackedWeight

SIZE, POINTER = ctypes.c_size_t, ctypes.c_void_p
BEFORE_LAYER = ctypes.CFUNCTYPE(ctypes.c_int, SIZE)
SIGNATURE = [ctypes.c_int, POINTER, *[SIZE] * 7, ctypes.c_int, ctypes.c_float, ctypes.c_float, *[POINTER] * 3,
             SIZE, SIZE, *[POINTER] * 5, BEFORE_LAYER, ctypes.c_int]
MATRICES = ("qkv_weight", "dense_weight", "in_weight", "out_weight")


class Stack:
    """kernels.reference.stack for one model and one cache, whose addresses are collected once.

    Valid as long as neither the weights nor the cache's buffers are replaced; both are kept alive.
    before: called before each layer with its number; what it returns are that layer's weights from then on, and no
    other's are looked at (None: those that it has). An error in it ends the step.
    """

    def __init__(self, operators, layers: list[LayerWeights], final_norm: tuple[Tensor, Tensor], keys: list[Tensor],
                 values: list[Tensor], alpha: float, epsilon: float, positions_2d: bool = False,
                 before: Callable[[int], LayerWeights | None] | None = None):
        self.operators, self.before, self.failure = operators, before, None
        self.kept = (layers, final_norm, keys, values)
        batch, heads, self.capacity, size = keys[0].shape
        hidden, inner = layers[0].dense_weight.shape[0], layers[0].out_weight.shape[1]
        batch_stride, head_stride = keys[0].stride()[:2]
        self.batch, self.hidden, self.dtype = batch, hidden, keys[0].dtype
        numbers = [number for layer, *cache in zip(layers, keys, values, strict=True)
                   for number in (*self._numbers(layer), *(tensor.data_ptr() for tensor in cache))]
        self.table = (SIZE * len(numbers))(*numbers)
        self.fixed = (operators.TYPES[self.dtype], ctypes.addressof(self.table), len(layers), hidden, inner, heads,
                      size, batch_stride, head_stride, positions_2d, alpha, epsilon, final_norm[0].data_ptr(),
                      final_norm[1].data_ptr())
        self._stack = operators.library.glm_stack
        self._stack.argtypes, self._stack.restype = SIGNATURE, None

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

    def _described(self, name: str, tensor: Tensor | PackedWeight) -> tuple[int, ...]:
        """One part of stack.h's LayerWeights: an address, or the five numbers of a matrix."""
        if name not in MATRICES:
            return (tensor.data_ptr(),)
        if isinstance(tensor, Tensor):
            return tensor.data_ptr(), 0, 0, 0, 0
        weight, scale, bits, group_size = tensor
        group_size = group_size or tensor.shape[1]
        return weight.data_ptr(), scale.data_ptr(), group_size, bits, self.operators.TYPES[scale.dtype]

    def step(self, hidden: Tensor, cosine: Tensor, sine: Tensor, start: int | Lengths,
             blocked: Tensor | None = None) -> Tensor:
        """hidden (b, 1, h), cosine and sine (b, 1, d) float32, blocked None or bool (b, 1, start + 1)
        -> (b, 1, h) after the final layer norm; keys and values are written at place `start`, of each row its own
        under Lengths. Of the cache's rows, the first b are used."""
        start, lengths = (start.longest, start.each) if isinstance(start, Lengths) else (start, None)
        batch = hidden.shape[0]
        if (batch > self.batch or hidden.shape[1:] != (1, self.hidden) or hidden.dtype is not self.dtype
                or start >= self.capacity or (lengths is not None and lengths.shape != (batch,))
                or (blocked is not None and blocked.shape[-1] != start + 1)):
            raise ValueError(f"stack: made for ({self.batch}, 1, {self.hidden}) at most and {self.capacity} places, "
                             f"given {tuple(hidden.shape)} at place {start}")
        hidden = hidden.contiguous()
        cosine, sine = cosine.float().contiguous(), sine.float().contiguous()
        if blocked is not None:
            blocked = blocked.contiguous()
        out = torch.empty_like(hidden)
        callback = BEFORE_LAYER() if self.before is None else BEFORE_LAYER(self._renew)  # not kept: it holds self
        self._stack(*self.fixed, hidden.data_ptr(), batch, start + 1,
                    None if lengths is None else lengths.data_ptr(), cosine.data_ptr(), sine.data_ptr(),
                    None if blocked is None else blocked.data_ptr(), out.data_ptr(), callback,
                    torch.get_num_threads())
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return out


def fits(layers: list[LayerWeights], final_norm: tuple[Tensor, Tensor], keys: list[Tensor],
         values: list[Tensor]) -> bool:
    """Whether the compiled code can take these: one element type, dense, whole heads, all layers shaped alike."""
    first, (_, heads, _, size) = layers[0], keys[0].shape
    hidden, inner = first.dense_weight.shape[0], first.out_weight.shape[1]
    local = heads * size
    expected = [(hidden,), (hidden,), (3 * local, hidden), (3 * local,), (hidden, local), (hidden,),
                (hidden,), (hidden,), (2 * inner, hidden), (2 * inner,), (hidden, inner), (hidden,)]
    parts = [part for layer in layers for part in layer] + [*final_norm]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    caches = [*keys, *values]
    dtype, place = keys[0].dtype, keys[0].stride()
    return (all(t.dtype is dtype and t.is_contiguous() for t in tensors)
            and all(_is_whole(part) for part in parts if isinstance(part, PackedWeight))
            and all(c.dtype is dtype and c.shape == keys[0].shape and c.stride() == place for c in caches)
            and place[2:] == (keys[0].shape[3], 1)
            and all([tuple(part.shape) for part in layer] == expected for layer in layers)
            and all(t.shape == (hidden,) for t in final_norm))


def _is_whole(packed: PackedWeight) -> bool:
    """Whether weight and scales of a packed matrix belong together."""
    weight, scale, bits, group_size = packed
    n, k = packed.shape
    expected = (n,) if group_size is None else (n, k // group_size)
    return (bits in BITS and weight.dtype is torch.int8 and weight.is_contiguous() and scale.is_contiguous()
            and scale.dtype in FLOATS and tuple(scale.shape) == expected
            and (group_size is None or k % group_size == 0))
