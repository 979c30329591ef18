"""The vocabulary's matrix in INT8: whatever is chosen from approximate logits is what the exact product would choose.

The oracle is the exact product of all rows.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glm
import kernels
from generation import BeamParams, SamplingParams, fill_blanks
from generation.batch import Batch
from generation.groups import Row
from generation.sampling import FORBIDDEN, REFINED, rules
from glm.config import ModelConfig
from glm.loading import sharing
from glm.logits import Logits, approximate_logits
from glm.options import holds_int8_vocabulary
from kernels import CHOICE_ROWS, cuda, vocabulary
from kernels.vocabulary import pack
from planning import memory
from planning.shapes import Format, Setup
from tests import kernel_cases
from tests.cuda_emulator import Emulator, shared_folder

CHECKPOINT = "checkpoints/glm-small"
variants = kernel_cases.ops  # a fixture: the instruction sets
ROWS, COLUMNS = 96, 72
KINDS = ("normal", "outliers", "ties", "zeros", "tiny", "huge", "one column", "equal")


def matrix(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, columns, generator=generator)
    places = torch.randint(rows * columns, (5,), generator=generator)
    if kind == "outliers":
        made.view(-1)[places] *= 1000
    elif kind == "ties":
        made[rows // 2:] = made[:rows - rows // 2].clone()
    elif kind == "zeros":
        made[::2] = 0
    elif kind == "tiny":
        made *= 1e-30
    elif kind == "huge":
        made *= 1e9
    elif kind == "one column":
        made[:, 1:] = 0
    elif kind == "equal":
        made[:] = made[0].clone()
    return made


def check(ops, x, weight, count, added=None):
    """`refine_` on the approximate logits: the best are those of the exact product, bit by bit."""
    exact = ops.head(x, weight)
    packed = pack(weight)
    rough = vocabulary.approximate(x, packed, ops)
    reach = x.float().norm(dim=-1, keepdim=True) * packed.error
    assert ((rough - exact).abs() <= reach).all()
    found = rough.clone()
    ops.refine_(found, x, weight, packed.error, count, added)
    ranked, wanted = (each if added is None else each + added for each in (found, exact))
    assert torch.equal(ranked.topk(count).values, wanted.topk(count).values)
    assert torch.equal(ranked.argmax(-1), wanted.argmax(-1))
    changed = found != rough
    assert torch.equal(found[changed], exact[changed])
    slow = rough.clone()
    vocabulary.refine_(slow, x, weight, packed.error, count, added)
    torch.testing.assert_close(slow, found, rtol=2e-2, atol=2e-2 * float(reach.max()) + 1e-30)
    return int(changed.any(0).sum())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
       st.integers(1, CHOICE_ROWS), st.sampled_from([1, 2, 7, 40, ROWS]), st.booleans(), st.integers(0, 10**6))
def test_the_best_are_those_of_the_exact_product(rows_of, x_of, dtype, m, count, is_noisy, seed):
    if dtype is torch.float16 and {"huge", "tiny", "outliers"} & {rows_of, x_of}:
        dtype = torch.float32  # beyond its range
    if rows_of == x_of == "huge":
        x_of = "normal"
    weight, x = matrix(rows_of, ROWS, COLUMNS, seed).to(dtype), matrix(x_of, m, COLUMNS, seed + 1).to(dtype)
    added = torch.randn(m, ROWS, generator=torch.Generator().manual_seed(seed)) if is_noisy else None
    with torch.inference_mode():
        check(kernels.compiled(), x, weight, count, added)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_with_the_instructions_of_all_processors(variants, dtype):
    weight, x = matrix("normal", 2000, 384, 0).to(dtype), matrix("normal", 3, 384, 1).to(dtype)
    assert check(variants, x, weight, 5) < 200  # a small part of all rows is computed again
    assert check(variants, x[:1], weight[:1999], 1) < 40


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
       st.integers(1, CHOICE_ROWS), st.sampled_from([1, 2, 7, 40, ROWS]), st.booleans(), st.sampled_from([0, 5, 60]),
       st.integers(0, 10**6))
def test_a_fixed_number_of_rows_is_the_exact_choice_where_it_says_so(rows_of, x_of, dtype, m, count, is_noisy, spare,
                                                                     seed):
    if dtype is torch.float16 and {"huge", "tiny", "outliers"} & {rows_of, x_of}:
        dtype = torch.float32
    if rows_of == x_of == "huge":
        x_of = "normal"
    weight, x = matrix(rows_of, ROWS, COLUMNS, seed).to(dtype), matrix(x_of, m, COLUMNS, seed + 1).to(dtype)
    added = torch.randn(m, ROWS, generator=torch.Generator().manual_seed(seed)) if is_noisy else None
    packed, exact = pack(weight), x.float() @ weight.float().T
    found = vocabulary.approximate(x, packed).to(dtype).float()  # as a GPU's kernels round it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "SPARE", spare)
        patch.setattr(vocabulary.reference, "head", lambda x, weight: x.float() @ weight.float().T)
        is_sure = vocabulary.refine_some_(found, x, weight, packed.error, count, added)
    assert is_sure.shape == (m,) and (is_sure.all() or count + spare < ROWS)
    ranked, wanted = (each if added is None else each + added for each in (found, exact))
    rounding = 1e-5 * wanted.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(ranked.topk(count).values[is_sure], wanted.topk(count).values[is_sure], rtol=1e-5,
                               atol=float(rounding.max()))
    chosen = ranked.argmax(-1, keepdim=True)
    assert (wanted.gather(-1, chosen) >= wanted.amax(-1, keepdim=True) - rounding)[is_sure].all()


@pytest.mark.parametrize("m", [1, CHOICE_ROWS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_gpu_s_kernels_keep_to_the_bound(tmp_path_factory, dtype, m):
    """On the emulator, which rounds as they do."""
    emulator = Emulator(shared_folder(tmp_path_factory))
    for kind in ("normal", "outliers", "ties"):
        weight, x = matrix(kind, 160, 352, 0).mul_(0.03).to(dtype), matrix("outliers", m, 352, 1).mul_(0.1).to(dtype)
        packed, exact = pack(weight), x.float() @ weight.float().T
        with torch.inference_mode():
            found = cuda.Operators(lambda _: emulator).weight_only_linear(x, packed.weight, packed.scale).float()
        assert ((found - exact).abs() <= vocabulary.rounded_reach(found, x, packed.error)).all()
    assert len(emulator.launched) == 3 and all(name.startswith("skinny") for name in emulator.launched)


def test_a_small_part_of_the_rows_is_enough():
    weight, x = matrix("normal", 20000, 64, 0), matrix("normal", 8, 64, 1)
    packed = pack(weight)
    rough = vocabulary.approximate(x, packed)
    for count in (1, 50):
        assert vocabulary.refine_some_(rough.clone(), x, weight, packed.error, count).all()


def test_the_one_row_that_is_not_computed_again_counts(monkeypatch):
    monkeypatch.setattr(vocabulary, "SPARE", 2)
    weight, x = torch.eye(4), torch.tensor([[1.0, 0.5, 0.25, 0.99]])
    packed, rough = pack(weight), torch.tensor([[1.0, 0.5, 0.25, 0.2]])
    error = torch.ones(4)  # of every row: the last one may be the best
    assert packed.error.shape == error.shape
    assert not vocabulary.refine_some_(rough, x, weight, error, 1).any()


def test_what_was_forbidden_stays():
    weight, x = matrix("normal", 64, 32, 0), matrix("normal", 2, 32, 1)
    packed, best = pack(weight), (x @ weight.T).argmax(-1)
    for refine_ in (kernels.compiled().refine_, vocabulary.refine_, vocabulary.refine_some_):
        logits = vocabulary.approximate(x, packed)
        logits[:, best] = FORBIDDEN
        refine_(logits, x, weight, packed.error, 64, None, FORBIDDEN)  # more than there are left
        assert (logits[:, best] == FORBIDDEN).all()
        rest = [place for place in range(64) if place not in best]
        torch.testing.assert_close(logits[:, rest], (x @ weight.T)[:, rest])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows(bad):
    ops, weight, x = kernels.compiled(), matrix("normal", 64, 32, 0), matrix("normal", 1, 32, 1)
    damaged = weight.clone()
    damaged[7, 3] = bad
    packed = pack(damaged)
    logits = vocabulary.approximate(x, packed, ops)
    assert not logits.sum().isfinite()  # what a step looks at
    ops.refine_(logits, x, damaged, packed.error, 1)
    assert torch.equal(logits[0, 7], ops.head(x, damaged)[0, 7]) or (bad != bad and logits[0, 7].isnan())
    assert not vocabulary.refine_some_(vocabulary.approximate(x, packed, ops), x, damaged, packed.error, 1).any()
    x[0, 0] = bad
    packed = pack(weight)
    logits = vocabulary.approximate(x, packed, ops)
    assert not vocabulary.refine_some_(logits.clone(), x, weight, packed.error, 3).any()
    ops.refine_(logits, x, weight, packed.error, 3)
    assert not logits.sum().isfinite()


def test_tensors_that_do_not_belong_together_are_refused():
    ops, weight, x = kernels.compiled(), matrix("normal", 8, 4, 0), matrix("normal", 1, 4, 1)
    with pytest.raises(ValueError, match="refine_"):
        ops.refine_(torch.zeros(1, 7), x, weight, torch.zeros(8), 1)


@pytest.fixture(scope="module")
def models():
    """glm-small in INT4: with the matrix in INT8, as is the default, and without."""
    both = [glm.load(CHECKPOINT, dtype="float32", bits=4, device="cpu", int8_vocabulary=asked)
            for asked in (None, "off")]
    return both[0][1], [model for model, _ in both]


def test_quantised_models_hold_it_on_a_cpu(models):
    _, (model, plain) = models
    assert model.vocabulary.weight.shape == model.head_weight.shape and plain.vocabulary is None
    assert sharing(model).vocabulary is model.vocabulary
    for held in ((None, "cpu", True, 1, False, 4), ("on", "cpu", False, 1, False, 4),
                 ("on", "cuda", False, 1, False, 2)):
        assert holds_int8_vocabulary(*held)
    for refused in ((None, "cpu", False, 1, False, 4), ("off", "cpu", True, 1, False, 4),
                    (None, "cuda", True, 1, False, 2), ("on", "cuda", True, 1, False, 4),
                    ("on", "cpu", True, 2, False, 4), ("on", "cpu", True, 1, True, 4)):
        assert not holds_int8_vocabulary(*refused)


PROMPTS = ["Ng Adam is a [gMASK]", "The capital of France is [MASK] and lies at a river.", "中国的首都是[gMASK]"]
CHOICES = {
    "greedy": SamplingParams(top_k=1), "top-k": SamplingParams(top_k=40, seed=1),
    "all": SamplingParams(temperature=0.9, seed=2), "top-p": SamplingParams(top_p=0.7, seed=3),
    "wide nucleus": SamplingParams(top_p=0.97, temperature=1.5, seed=4),
    "top-k and top-p": SamplingParams(top_k=50, top_p=0.8, seed=5),
    "penalty": SamplingParams(top_k=1, repetition_penalty=1.3),
    "least length": SamplingParams(top_k=1, min_gen_length=8),
    "beams": BeamParams(num_beams=2), "beams, n-grams once": BeamParams(num_beams=2, no_repeat_ngram_size=2),
    "beams of fine-tuned GLM": BeamParams(num_beams=2, ranking="seq2seq", no_repeat_ngram_size=2),
    "drawn beams": BeamParams(num_beams=2, stochastic=True, seed=6),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_same_text_with_it_and_without(models, name):
    tokenizer, both = models
    params = replace(CHOICES[name], max_gen_length=12)
    found, wanted = (fill_blanks(model, tokenizer, PROMPTS, params) for model in both)
    assert [result.text for result in found] == [result.text for result in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.beams == theirs.beams


@pytest.mark.parametrize("name", ["greedy", "top-k", "all", "top-k and top-p", "least length"])
def test_the_same_text_without_a_look(models, monkeypatch, name):
    """As a recorded step on a GPU chooses."""
    tokenizer, both = models
    params = replace(CHOICES[name], max_gen_length=12)
    monkeypatch.setattr("glm.model.approximate_logits",
                        lambda hidden, weight, packed, looks: approximate_logits(hidden, weight, packed, False))
    found, wanted = (fill_blanks(model, tokenizer, PROMPTS, params) for model in both)
    assert [result.text for result in found] == [result.text for result in wanted]


def test_it_is_read_where_it_can_decide_and_only_there(models, monkeypatch):
    _, (model, _) = models
    read = []
    monkeypatch.setattr("glm.model.approximate_logits",
                        lambda hidden, *rest: read.append(len(hidden)) or approximate_logits(hidden, *rest))
    head = type(model).head
    monkeypatch.setattr(type(model), "head", lambda self, hidden: read.append(0) or head(self, hidden))

    def step(params, rows=1, **more):
        batch = Batch(model)
        batch.add([Row([3, 4, 5], params, 4, rules([1]), seed=(1,), **more)] * rows)
        read.clear()
        batch.step()
        return read[:]

    assert step(SamplingParams(top_k=1)) == [1] and step(SamplingParams(top_k=1), CHOICE_ROWS) == [CHOICE_ROWS]
    assert step(SamplingParams(top_k=1), CHOICE_ROWS + 1) == [0]
    assert step(SamplingParams(top_p=0.5, seed=1)) == [1]
    assert step(SamplingParams(top_k=1), alternatives=3) == [0]
    assert step(SamplingParams(top_k=1, repetition_penalty=1.1)) == [0]
    assert step(BeamParams(num_beams=2)) == [0]


def test_all_logits_together_are_nearly_right(models):
    """The normaliser of log-probabilities, with the REFINED best exact."""
    _, (model, _) = models
    with torch.inference_mode():
        hidden = model.hidden_states(torch.arange(40)[None] * 7, torch.arange(40)[None])[0, ::5]
        found, exact = model.choices(hidden), model.head(hidden)
        assert isinstance(found, Logits) and not torch.equal(found.values, exact)
        assert found.refine(REFINED)
        torch.testing.assert_close(found.values.logsumexp(-1), exact.logsumexp(-1), atol=1e-3, rtol=0)
        assert torch.equal(model.choices(hidden, is_exact=True).values, exact)
        assert not model.choices(hidden, is_exact=True).refine(1)
        part = found.rows(slice(2, 4))
        part.refine(model.config.vocab_size)
        torch.testing.assert_close(found.values[2:4], exact[2:4], atol=1e-5, rtol=0)


def test_the_plan_counts_it():
    config = ModelConfig.from_name("glm-small")
    without = Setup(config, Format("bf16", 4), context=8, new_tokens=8)
    more = replace(without, int8_vocabulary=True)
    size = config.vocab_size * (config.hidden_size + 8)
    assert memory.plan(more).weights - memory.plan(without).weights == size
    assert memory.plan(more).host_running - memory.plan(without).host_running == size
    limited = replace(more, offload_limit=memory.least_offloaded(more))
    assert memory.plan(limited).weights == memory.plan(replace(limited, int8_vocabulary=False)).weights
    on_gpu = [memory.plan(replace(setup, kind="cuda")) for setup in (without, more)]
    assert on_gpu[1].weights - on_gpu[0].weights == size and on_gpu[1].activations >= on_gpu[0].activations
