"""kernels.reference's operations in float32 with gradients that are compiled, too: one pass over memory each, and less
is kept. What is cheap is computed again; what the compiled code does not take is the reference's.

Shapes: b batch, s sequence, h hidden, n heads, d head size, i inner.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_float, c_int, c_size_t, c_void_p
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import HEAD_BYTES, reference
from kernels.cpu.attention import Shape, address
from kernels.layer import Activation, Rotary

if TYPE_CHECKING:
    from kernels.cpu import Operators
    from kernels.gradients import Drop
    from kernels.reference import Lengths

SIGNATURES = {
    "glm_activate_gradient": [c_size_t, c_void_p, c_void_p, c_size_t, c_size_t, c_void_p, c_int],
    "glm_norm_gradient": [c_void_p, c_void_p, c_int, c_float, c_void_p, c_size_t, c_size_t, c_float, *[c_void_p] * 3,
                          c_int],
    "glm_attend_dropped": [*[c_void_p] * 5, c_float, c_void_p, c_int],
    "glm_attend_gradient": [*[c_void_p] * 6, c_float, c_void_p, c_int],
    "glm_softmax": [c_void_p, c_size_t, c_size_t, c_int, *[c_void_p] * 3, c_int],
}


class Training:
    """The operations of one compiled library, for float32 on a CPU."""

    linear, head, log_sums, scaled_add = map(staticmethod, (
        reference.linear, reference.head, reference.log_sums, reference.scaled_add))
    weight_only_linear, attend_groups = map(staticmethod, (reference.weight_only_linear, reference.attend_groups))

    def __init__(self, operators: Operators) -> None:
        self.operators, self.library = operators, operators.library
        for name, arguments in SIGNATURES.items():
            getattr(self.library, name).argtypes, getattr(self.library, name).restype = arguments, None

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return self._normed(None, x, 0.0, weight, bias, epsilon)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return self._normed(None, x, 0.0, weight, None, epsilon)

    def residual_layer_norm(self, residual: Tensor, update: Tensor, alpha: float, weight: Tensor, bias: Tensor,
                            epsilon: float) -> Tensor:
        return self._normed(residual, update, alpha, weight, bias, epsilon)

    def _normed(self, residual: Tensor | None, x: Tensor, alpha: float, weight: Tensor, bias: Tensor | None,
                epsilon: float) -> Tensor:
        if all(each is None or each.dtype is torch.float32 for each in (residual, x, weight, bias)):
            return Normed.apply(self, residual, x, alpha, weight, bias, epsilon)
        x = x if residual is None else reference.scaled_add(residual, x, alpha)
        return (reference.rms_norm(x, weight, epsilon) if bias is None
                else reference.layer_norm(x, weight, bias, epsilon))

    def geglu(self, x: Tensor) -> Tensor:
        return Activated.apply(self, x, Activation.GEGLU) if x.dtype is torch.float32 else reference.geglu(x)

    def swiglu(self, x: Tensor) -> Tensor:
        return Activated.apply(self, x, Activation.SWIGLU) if x.dtype is torch.float32 else reference.swiglu(x)

    def gelu(self, x: Tensor, is_exact: bool) -> Tensor:
        activation = Activation.GELU if is_exact else Activation.GELU_TANH
        return Activated.apply(self, x, activation) if x.dtype is torch.float32 else reference.gelu(x, is_exact)

    def attend(self, qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor | None = None,
               values: Tensor | None = None, start: int | Lengths = 0, blocked: Tensor | None = None,
               positions_2d: bool = False, drop: Drop | None = None, places: Tensor | None = None) -> Tensor:
        if keys is not None or qkv.dtype is not torch.float32:
            return reference.attend(qkv, cosine, sine, keys, values, start, blocked, positions_2d, drop, places)
        b, s, _ = qkv.shape
        blocked = None if blocked is None else blocked.expand(b, s, s).contiguous()
        cosine, sine = cosine.float().contiguous(), sine.float().contiguous()
        kept, share = (None, 0.0) if drop is None else (drop.kept.contiguous(), drop.share)
        return reference.wanted(Attended.apply(self, qkv, cosine, sine, blocked, positions_2d, kept, share), places)

    def score_tokens(self, hidden: Tensor, weight: Tensor, owners: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """hidden (n, h), weight (v, h) of the head; owners (t,) out of n, and targets (t,) out of v -> logit,
        log-probability, mean log-probability over the vocabulary, and whether it is the likeliest, of each token. All
        float32; in this alone of the backends."""
        return Scored.apply(self, hidden, weight, owners, targets)

    def softmax_(self, logits: Tensor, keeps: bool, log_sums: Tensor, means: Tensor, best: Tensor) -> None:
        """Of each row of logits (n, v), which become probabilities where `keeps`; all contiguous."""
        self.library.glm_softmax(logits.data_ptr(), *logits.shape, keeps, log_sums.data_ptr(), means.data_ptr(),
                                 best.data_ptr(), torch.get_num_threads())

    def probabilities(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """(n, h) and (v, h) -> (n, v)."""
        logits, numbers = F.linear(hidden, weight), hidden.new_empty(2, len(hidden))
        self.softmax_(logits, True, *numbers, torch.empty(len(hidden), dtype=torch.int64))
        return logits


class Normed(torch.autograd.Function):
    """The norm of alpha * residual + x, or of x where there is no residual; without a bias the RMS norm. Keeps what is
    normed."""

    @staticmethod
    def forward(ctx, training: Training, residual: Tensor | None, x: Tensor, alpha: float, weight: Tensor,
                bias: Tensor | None, epsilon: float) -> Tensor:
        ops = training.operators
        x = x.contiguous()
        if residual is not None:
            x = ops.scaled_add(residual.contiguous(), x, alpha)
        ctx.save_for_backward(x, weight)
        ctx.training, ctx.alpha, ctx.epsilon, ctx.has_bias = training, alpha, epsilon, bias is not None
        return ops.rms_norm(x, weight, epsilon) if bias is None else ops.layer_norm(x, weight, bias, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        gradient, h, threads = gradient.contiguous(), x.shape[-1], torch.get_num_threads()
        _, has_residual, needs_x, _, *learns, _ = ctx.needs_input_grad
        out, parts = torch.empty_like(x), x.new_empty(threads, 2, h) if any(learns) else None
        scaled = torch.empty_like(x) if has_residual else None
        ctx.training.library.glm_norm_gradient(
            x.data_ptr(), weight.data_ptr(), ctx.has_bias, ctx.epsilon, gradient.data_ptr(), x.numel() // h, h,
            ctx.alpha, out.data_ptr(), address(scaled), address(parts), threads)
        of_weight, of_bias = (parts[0][number].clone() if learns[number] else None for number in range(2))
        return None, scaled, out if needs_x else None, None, of_weight, of_bias, None


class Activated(torch.autograd.Function):
    """The activation of x (..., 2i) where it is gated, else (..., i). Keeps x."""

    @staticmethod
    def forward(ctx, training: Training, x: Tensor, activation: Activation) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.training, ctx.activation = training, activation
        return training.operators.activated(activation, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, None]:
        (x,), gradient = ctx.saved_tensors, gradient.contiguous()
        out = torch.empty_like(x)
        ctx.training.library.glm_activate_gradient(
            ctx.activation, x.data_ptr(), gradient.data_ptr(), math.prod(x.shape[:-1]), gradient.shape[-1],
            out.data_ptr(), torch.get_num_threads())
        return None, out, None


class Attended(torch.autograd.Function):
    """Attention of a whole sequence over itself, (b, s, n*3*d) -> (b, s, n*d). Of the probabilities those that are
    `kept` (b, n, s, s) count, the others being a share; None: all. Keeps qkv, the angles and `kept`."""

    @staticmethod
    def forward(ctx, training: Training, qkv: Tensor, cosine: Tensor, sine: Tensor, blocked: Tensor | None,
                positions_2d: bool, kept: Tensor | None, share: float) -> Tensor:
        qkv = qkv.contiguous()
        ctx.save_for_backward(qkv, cosine, sine, blocked, kept)
        ctx.training, ctx.positions_2d, ctx.scale = training, positions_2d, 1.0 / (1.0 - share)
        if kept is None:
            return training.operators.attend(qkv, cosine, sine, blocked=blocked, positions_2d=positions_2d)
        shape = _shape(qkv, cosine, blocked, positions_2d)
        out = qkv.new_empty(*qkv.shape[:2], shape.heads * shape.size)
        training.library.glm_attend_dropped(
            ctypes.byref(shape), qkv.data_ptr(), cosine.data_ptr(), sine.data_ptr(), kept.data_ptr(), ctx.scale,
            out.data_ptr(), torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (qkv, cosine, sine, blocked, kept), gradient = ctx.saved_tensors, gradient.contiguous()
        out = torch.empty_like(qkv)
        ctx.training.library.glm_attend_gradient(
            ctypes.byref(_shape(qkv, cosine, blocked, ctx.positions_2d)), qkv.data_ptr(), cosine.data_ptr(),
            sine.data_ptr(), gradient.data_ptr(), address(kept), ctx.scale, out.data_ptr(), torch.get_num_threads())
        return None, out, *[None] * 6


def _shape(qkv: Tensor, cosine: Tensor, blocked: Tensor | None, positions_2d: bool) -> Shape:
    (b, s, width), size = qkv.shape, cosine.shape[-1]
    heads, rotary = width // (3 * size), Rotary.HALVES_2D if positions_2d else Rotary.HALVES
    keys = qkv.view(b, s, heads, 3, size)[..., 1, :].transpose(1, 2)
    return Shape.of(b, heads, keys, s, rotary, cosine, True, blocked, None)


class Scored(torch.autograd.Function):
    """Training.score_tokens, some places at a time. Logits become probabilities p in place, and these at once p W,
    which is what the gradient of hidden needs of them. For the gradient of W they are kept where they are few, else
    made again."""

    @staticmethod
    def forward(ctx, training: Training, hidden: Tensor, weight: Tensor, owners: Tensor, targets: Tensor) -> tuple:
        hidden, weight = hidden.contiguous(), weight.contiguous()
        n, v = hidden.shape[0], weight.shape[0]
        needs, learns = any(ctx.needs_input_grad), ctx.needs_input_grad[2]
        log_sums, means, best = hidden.new_empty(n), hidden.new_empty(n), owners.new_empty(n)
        chosen, expected, kept = hidden.new_empty(len(owners)), torch.empty_like(hidden) if needs else None, None
        for part in _parts(n, v):
            logits = F.linear(hidden[part], weight)
            mine = torch.nonzero((owners >= part.start) & (owners < part.stop)).flatten()
            chosen[mine] = logits[owners[mine] - part.start, targets[mine]]
            training.softmax_(logits, needs, log_sums[part], means[part], best[part])
            if needs:
                torch.mm(logits, weight, out=expected[part])
            kept = logits if learns and len(logits) == n else None
        ctx.save_for_backward(hidden, weight, owners, targets, expected, kept)
        ctx.training = training
        ctx.set_materialize_grads(False)
        is_best = best[owners] == targets
        ctx.mark_non_differentiable(is_best)
        return chosen, chosen - log_sums[owners], (means - log_sums)[owners], is_best

    @staticmethod
    @once_differentiable
    def backward(ctx, of_logits: Tensor | None, of_logs: Tensor | None, of_means: Tensor | None, _) -> tuple:
        """The gradient of a place's logits: the sum over its tokens of own * (1 at the target) + minus * p + even."""
        hidden, weight, owners, targets, expected, kept = ctx.saved_tensors
        nothing, places = torch.zeros(len(owners)), torch.zeros(len(hidden))
        of_logits, of_logs, of_means = (nothing if each is None else each for each in (of_logits, of_logs, of_means))
        own = (of_logits + of_logs)[:, None]
        minus, even = (-places.index_add(0, owners, of_logs + of_means)[:, None],
                       places.index_add(0, owners, of_means)[:, None] / len(weight))
        of_hidden = of_weight = None
        if ctx.needs_input_grad[1]:
            of_hidden = (minus * expected).index_add_(0, owners, own * weight[targets])
            if even.any():
                of_hidden += even * weight.sum(0)
        if ctx.needs_input_grad[2]:
            of_weight, scaled = torch.empty_like(weight), minus * hidden
            for part in _parts(*scaled.shape[:1], len(weight)):
                p = kept if kept is not None else ctx.training.probabilities(hidden[part], weight)
                torch.addmm(of_weight, p.t(), scaled[part], beta=float(part.start > 0), out=of_weight)
            of_weight.index_add_(0, targets, own * hidden[owners])
            if even.any():
                of_weight += (even * hidden).sum(0)
        return None, of_hidden, of_weight, None, None


def _parts(places: int, vocabulary: int) -> list[slice]:
    """Of which no more than HEAD_BYTES of logits are made; of no places one, which makes their gradient zeros."""
    step = max(1, HEAD_BYTES // (4 * vocabulary))
    return [slice(begin, min(places, begin + step)) for begin in range(0, max(1, places), step)]
