"""Decoding with steps that are recorded and begun before the last one is read, as on a GPU, against decoding without:
here torch's operations are recorded, on a CPU (recorded_operations.py)."""

import pytest
import torch

import kernels
from generation import BeamParams, SamplingParams, sampling, sequences
from generation.batch import Batch, generate
from generation.groups import Row
from generation.sampling import rules
from glm.config import ModelConfig
from glm.linear import pack_linears
from glm.model import GLM
from kernels.cache import BuildError
from kernels.cuda import Operators, graph
from kernels.cuda.reduce import Ranks
from kernels.cuda.stack import Stack
from quantization.functional import Scheme
from runtime.errors import UserError
from tests.fake_model import FakeModel
from tests.recorded_operations import Recorder
from tests.test_batch import assert_same, collect, finish
from tools.benchmarking.own import WARM_UP, random_model, recorded_decodes
from tools.benchmarking.rates import Bandwidth

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, inner_hidden_size=48, vocab_size=40,
                   max_sequence_length=64, num_image_tokens=0)
GREEDY, SAMPLED, BEAMS = SamplingParams(top_k=1), SamplingParams(top_p=0.9, temperature=1.3), BeamParams(num_beams=3)
DRAWN = SamplingParams(top_k=5, temperature=1.3, min_gen_length=5)
CONTEXTS = ([7, 8, 9, 10], [5], [9, 30, 31, 7, 8, 8, 9, 11, 12, 5], [6, 6])
SHARED = (None, 0, 2, None)


def nowhere(_):
    raise BuildError("no driver")


@pytest.fixture
def on_gpu(monkeypatch):
    """Decoding goes as on a GPU, whose operators are torch's; gives the recorder."""
    operators, recorder = Operators(nowhere), Recorder()
    operators.failure = "no driver"  # and has been said
    monkeypatch.setattr(kernels, "BACKENDS", {"cpu": lambda: operators})
    monkeypatch.setattr(kernels, "stack", lambda *arguments: Stack(operators, *arguments[:5]))
    monkeypatch.setattr(kernels, "graphs", lambda device: graph.Graphs(recorder))
    monkeypatch.setattr(graph, "EAGER_RUNS", 1)
    monkeypatch.setattr(sequences, "FEWEST_PLACES", 8)
    monkeypatch.setattr(Batch, "goes_ahead", property(lambda self: True, lambda self, value: None), raising=False)
    monkeypatch.setattr(kernels, "is_recording", lambda: recorder.is_recording)
    monkeypatch.setattr(kernels, "compiled", lambda: None)  # random numbers are torch's
    monkeypatch.setattr(sampling, "is_at_hand", lambda values: False)
    return recorder


def model_of(fields=None, scheme=None, config=TINY):
    torch.manual_seed(3)
    model = GLM(config.override(**fields or {}), device="meta")
    if scheme is not None:
        names = [name for name, _ in model.named_parameters() if "layers" in name and name.endswith("weight")]
        pack_linears(model, {name: scheme for name in names if "layernorm" not in name})
    model.to_empty(device="cpu").requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.dtype is torch.int8:
            weight.random_(-128, 128)
        elif name.endswith("weight_scale"):
            weight.fill_(1.0 / 2 ** (scheme.bits - 1))
        elif weight.dim() == 2:
            weight.normal_(std=0.5 if "embeddings" in name else 0.6)
        else:
            weight.fill_(float(name.endswith("weight")))
    return model


def answers(model, params, contexts=CONTEXTS, limit=13):
    return generate(model, contexts, params, end_tokens=[1, 2, 3], limits=[limit - n for n in range(len(contexts))],
                    shared_positions=SHARED[:len(contexts)], seeds=[(n,) for n in range(len(contexts))])


FAMILIES = {
    "glm-130b": {}, "2d": {"position_encoding_2d": True}, "chatglm": {"family": "chatglm"},
    "glm": {"family": "glm", "position_encoding_2d": True},
    "chatglm2": {"family": "chatglm2", "tie_word_embeddings": False, "num_key_value_groups": 2}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_recorded_steps_give_the_same_ids(family, params, request, monkeypatch):
    """Rows of unlike lengths that leave one after the other, and become longer than what a recording looked at."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model = model_of(FAMILIES[family])
    wanted = answers(model, params)
    recorder = request.getfixturevalue("on_gpu")
    for found, expected in zip(answers(model, params), wanted, strict=True):
        assert_same(found, expected)
    assert recorder.recordings >= 2 and recorder.replays >= 2


@pytest.mark.parametrize("scheme", [Scheme(8, None), Scheme(4, 16)], ids=str)
def test_packed_weights(scheme, request, monkeypatch):
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model = model_of(scheme=scheme)
    wanted = answers(model, GREEDY)
    recorder = request.getfixturevalue("on_gpu")
    assert answers(model, GREEDY) == wanted and recorder.replays


def test_layers_that_are_walked_one_by_one(request, monkeypatch):
    """As with adapters."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model = model_of()
    wanted = answers(model, GREEDY)
    recorder = request.getfixturevalue("on_gpu")
    monkeypatch.setattr(kernels, "stack", lambda *arguments: None)
    assert answers(model, GREEDY) == wanted and recorder.replays


@pytest.mark.parametrize("family", ["glm-130b", "glm"])
def test_tensor_parallel_ranks(family, request, monkeypatch):
    """Here of one rank, whose sums are its own."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model = model_of(FAMILIES[family])
    wanted = answers(model, GREEDY)
    recorder, sums = request.getfixturevalue("on_gpu"), []

    def stack(layers, norm, keys, values, form, before, total, small):
        operators = kernels.BACKENDS["cpu"]()
        return Stack(operators, layers, norm, keys, values, form, Ranks(lambda x: sums.append(1) or total(x), small))

    monkeypatch.setattr(kernels, "stack", stack)
    model.is_parallel = True
    assert answers(model, GREEDY) == wanted and recorder.replays
    assert sums and len(sums) % (2 * TINY.num_layers) == 0


def test_what_waits_for_the_device_is_said_once_and_computed_as_before(on_gpu, monkeypatch, capsys):
    model = model_of()
    wanted = answers(model, GREEDY)
    head = GLM.head
    monkeypatch.setattr(GLM, "head", lambda self, hidden: head(self, hidden / float(hidden.isfinite().all())))
    assert answers(model, GREEDY) == wanted
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in said] == [
        f"kernels: {kind} goes on without CUDA graphs" for kind in ("choosing tokens", "decoding")]


def test_choices_are_recorded_with_the_step(request, monkeypatch):
    """Among five while no end may come, and then with one: all that the host starts is the recording."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model = model_of()
    wanted = answers(model, DRAWN)
    recorder = request.getfixturevalue("on_gpu")
    run, kinds = graph.Graphs.run, []
    monkeypatch.setattr(graph.Graphs, "run", lambda self, kind, *rest: kinds.append(kind) or run(self, kind, *rest))
    assert answers(model, DRAWN) == wanted and recorder.recordings >= 2 and recorder.replays >= 2
    assert set(kinds) == {sequences.CHOICE}


def test_a_choice_that_cannot_be_recorded_follows_a_recorded_step(request, monkeypatch, capsys):
    """One that waits; rows that are not alike: by their options, by whether they may end yet."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model, common = model_of(), rules((1, 2))
    late = SamplingParams(top_k=1, min_gen_length=6)
    waves = [[Row([7, 8, 9], late, 12, common)],
             [Row([5, 6], late, 9, common), Row([6], SAMPLED, 5, common, seed=(1,))]]
    wanted = [finish_alone(model, row) for wave in waves for row in wave], answers(model, GREEDY)
    recorder = request.getfixturevalue("on_gpu")
    batch = Batch(model)
    first, found, told = batch.add(waves[0]), {}, {}
    for _ in range(4):
        collect(batch.step(), found, told)
    numbers = first + batch.add(waves[1])
    found |= finish(batch)
    for number, result in zip(numbers, wanted[0], strict=True):
        assert_same(found[number], result)
    best = sampling.best
    monkeypatch.setattr(sampling, "best", lambda logits: best(logits + 0 * float(logits.max())))
    recorder.replays = 0
    assert answers(model, GREEDY) == wanted[1] and recorder.replays
    assert capsys.readouterr().err.count("kernels: choosing tokens goes on without CUDA graphs") == 1


def test_positions_behind_the_learned_ones_are_met_before_they_are_looked_up(on_gpu):
    """A recorded step cannot tell; a GPU would end."""
    model = model_of({"family": "glm", "max_sequence_length": 12})
    with pytest.raises(UserError, match="max_sequence_length"):
        generate(model, [[5, 6, 7]], SamplingParams(top_k=1, min_gen_length=20), end_tokens=[1], limits=[20])
    assert on_gpu.replays


def test_rows_that_join_leave_and_are_dropped_while_a_step_is_under_way(request, monkeypatch):
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model, common = model_of(), rules((1, 2))
    waves = [[Row([7, 8, 9, 10], GREEDY, 9, common), Row([5, 6], SAMPLED, 12, common, seed=(1,), alternatives=2)],
             [Row([9, 30, 31, 7, 8, 8, 9], SAMPLED, 12, common, shared_position=2, seed=(5,)),
              Row([8, 8], GREEDY, 30, common)],
             [Row([6, 6], BEAMS, 5, common, unidirectional=True), Row([12, 13], GREEDY, 3, common)]]
    batch = Batch(model)
    wanted = [[finish_alone(model, row) for row in wave] for wave in waves]
    request.getfixturevalue("on_gpu")
    batch, found, told, numbers = Batch(model), {}, {}, []
    for wave in waves:
        numbers.append(batch.add(wave))
        for _ in range(2):
            collect(batch.step(), found, told)
    batch.drop(numbers[1][1])
    found |= finish(batch)
    for wave, results in zip(numbers, wanted, strict=True):
        for number, result in zip(wave, results, strict=True):
            if number != numbers[1][1]:
                assert_same(found[number], result)
    assert numbers[1][1] not in found


def finish_alone(model, row):
    batch = Batch(model)
    number, = batch.add([row])
    return finish(batch)[number]


def test_a_step_begins_before_the_last_one_is_read(monkeypatch):
    """One more pass for the model than there are tokens, where an end comes unforeseen; none where the limit ends."""
    for end, passes in ((4, 4 + 1), (49, 6)):
        model = FakeModel(script=lambda ids: len(ids))
        batch = Batch(model)
        batch.goes_ahead = True
        batch.add([Row([7], GREEDY, 6, rules((end,)))])
        ids = []
        while events := batch.step():
            ids.append(events[0].token)
        assert ids == list(range(1, 7))[:4 if end == 4 else 6] and len(model.rows_read) == passes


def test_a_step_waits_where_it_depends_on_the_last_ones_ids():
    for params, given in ((SamplingParams(top_k=1, repetition_penalty=1.5), rules((49,))),
                          (GREEDY, rules((49,), (), ((8, 9, 10, 11, 12, 13),)))):
        model = FakeModel(script=lambda ids: len(ids))
        batch = Batch(model)
        batch.goes_ahead = True
        batch.add([Row([7], params, 6, given)])
        for step in range(1, 4):
            batch.step()
            assert len(model.rows_read) == step


def test_steps_of_generation_alone(monkeypatch):
    """What is timed as recorded on a GPU: the product's step, once a repetition, behind a context of its own."""
    model, recorder = random_model(TINY, torch.float32, "cpu"), Recorder()
    monkeypatch.setattr(kernels, "BACKENDS", {})
    monkeypatch.setattr(kernels, "graphs", lambda device: graph.Graphs(recorder))
    rows = list(recorded_decodes(model, [1, 9], [1, 4], "FP32", 3, Bandwidth("cpu", 1 << 20)))
    assert [(row.tokens, row.width) for row in rows] == [(1, 1), (1, 4), (9, 1), (9, 4)]
    assert recorder.recordings == 4 and recorder.replays == 4 * (WARM_UP - graph.EAGER_RUNS + 2)
