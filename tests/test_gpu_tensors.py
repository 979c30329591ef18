"""A forward pass and a choice of tokens as a GPU makes them, on tensors that hold nothing (torch's meta device): one
that is left on the CPU is found where it meets the others, and so is what waits for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import kernels
from generation.params import SamplingParams
from generation.sampling import Choice, Ruling, rules
from glm import inputs
from glm.linear import pack_linears
from glm.logits import Logits, approximate_logits
from glm.model import GLM
from kernels import reference, vocabulary
from kernels.cache import BuildError
from kernels.cuda import Operators
from kernels.cuda.reduce import Ranks
from kernels.cuda.stack import Stack
from kernels.reference import Lengths, Shared
from quantization.functional import Scheme
from tests.test_recorded_steps import FAMILIES, TINY

GPU = torch.device("meta")
ROWS, PLACES, CAPACITY = 3, 5, 16
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class OneDevice(TorchDispatchMode):
    """Operations whose tensors are all on one device, but for numbers and what is copied."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = [x for x in tree_flatten((arguments, keywords))[0] if isinstance(x, torch.Tensor) and x.dim()]
        if function.overloadpacket not in COPIES and len({x.device for x in given}) > 1:
            raise RuntimeError(f"{function} is given tensors of several devices")
        return function(*arguments, **keywords or {})


def nowhere(_):
    raise BuildError("no driver")


@pytest.fixture
def gpu(monkeypatch):
    """The backend of a GPU whose operators are torch's."""
    operators = Operators(nowhere)
    operators.failure = "no driver"
    monkeypatch.setitem(kernels.BACKENDS, "meta", lambda: operators)
    with torch.inference_mode(), OneDevice():
        yield operators


def model_of(family, dtype, bits=None):
    model = GLM(TINY.override(**FAMILIES[family]), dtype, "meta")
    if bits:
        names = [name for name, _ in model.named_parameters() if "layers" in name and name.endswith("weight")]
        pack_linears(model, {name: Scheme(bits, None) for name in names if "layernorm" not in name})
    return model.requires_grad_(False)


def positions_of(model, tokens):
    places = torch.arange(tokens.shape[1], device=GPU).expand_as(tokens)
    return inputs.position_ids(model.config, places, torch.zeros_like(places))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, bits", [(torch.float16, None), (torch.bfloat16, 4), (torch.float32, 8)])
def test_a_prompt_and_a_step(gpu, monkeypatch, family, dtype, bits):
    """Contexts with a mask; then a token of rows that have a context in common, by the stack and on ranks."""
    monkeypatch.setattr(kernels, "is_recording", lambda: True)  # positions are not looked at
    model = model_of(family, dtype, bits)
    tokens, cache = torch.ones(ROWS, PLACES, dtype=torch.int64, device=GPU), model.new_cache(ROWS, CAPACITY)
    blocked = torch.zeros(ROWS, PLACES, PLACES, dtype=torch.bool, device=GPU)
    hidden = model.hidden_states(tokens, positions_of(model, tokens), blocked, cache)
    each = torch.full((ROWS,), PLACES, device=GPU)
    for ranks in (None, Ranks(lambda x: x)):
        monkeypatch.setattr(kernels, "stack", lambda *given, ranks=ranks: Stack(gpu, *given[:5], ranks))
        cache.stack, cache.length = None, Lengths(each.clone(), PLACES, Shared(each * 0, each - 1))
        step = model.hidden_states(tokens[:, :1], positions_of(model, tokens[:, :1]), None, cache)
        logits = model.head(step[:, -1])
        assert (hidden.dtype, logits.dtype, logits.device) == (dtype, torch.float32, GPU)
        assert logits.shape == (ROWS, model.config.vocab_size) and cache.keys[0].dtype is dtype


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), SamplingParams(top_k=5), SamplingParams(top_p=0.8),
                                    SamplingParams(temperature=1.3)], ids=str)
@pytest.mark.parametrize("forbids_ends", [False, True])
def test_a_choice(gpu, params, forbids_ends):
    given = rules((1, 2), (3,))
    choice = Choice(params, given, forbids_ends, Ruling(given, GPU))
    tokens = choice(Logits(torch.zeros(ROWS, 2000, device=GPU)), torch.zeros(ROWS, 2, dtype=torch.int64, device=GPU))
    assert (tokens.shape, tokens.dtype, tokens.device) == ((ROWS,), torch.int64, GPU)


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), SamplingParams(top_k=5, top_p=0.8),
                                    SamplingParams(temperature=1.3)], ids=str)
def test_a_choice_by_approximate_logits(gpu, params):
    given, weight = rules((1, 2), (3,)), torch.zeros(2000, 16, dtype=torch.float16, device=GPU)
    found = approximate_logits(weight[:ROWS], weight, vocabulary.pack(weight), looks=False)
    choice = Choice(params, given, False, Ruling(given, GPU))
    tokens = choice(found, torch.zeros(ROWS, 2, dtype=torch.int64, device=GPU))
    assert choice.needs_few and (tokens.shape, tokens.device) == (found.decides.shape, GPU)
    assert (found.decides.dtype, found.values.dtype) == (torch.bool, torch.float32)


def test_a_tensor_that_is_left_behind_is_found(gpu):
    for left_behind in (lambda x: reference.linear(x, torch.zeros(8, 8)), lambda x: x[torch.tensor([1])]):
        with pytest.raises(RuntimeError, match="several devices"):
            left_behind(torch.zeros(2, 8, device=GPU))
    with pytest.raises(RuntimeError):
        bool(torch.zeros(2, device=GPU).any())
