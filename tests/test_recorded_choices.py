"""Tokens chosen by approximate logits inside a recorded step, on a GPU's stand-in: the ids are those of exact logits,
where these are sure, where they are not, and where they would have been others."""

import pytest
import torch

import kernels
from generation import SamplingParams, sequences
from generation.batch import Batch
from generation.groups import Row
from generation.sampling import rules
from glm.model import GLM
from kernels import vocabulary
from kernels.vocabulary import PackedVocabulary
from runtime.errors import NonFinite
from tests import test_recorded_steps
from tests.test_batch import collect, finish
from tests.test_recorded_steps import DRAWN, GREEDY, SAMPLED, answers, finish_alone, model_of

pytestmark = pytest.mark.usefixtures("one_thread")
on_gpu = test_recorded_steps.on_gpu  # a fixture


def with_vocabulary(model, digits: int):
    """The model with its head's matrix in so coarse a form as these digits of a byte, beside its errors."""
    weight = model.head_weight.detach()
    scale = weight.abs().amax(dim=1) / digits
    integers = (weight / scale[:, None]).round().to(torch.int8)
    error = 1.01 * (weight - integers * scale[:, None]).norm(dim=1) + 1e-4
    model.vocabulary = PackedVocabulary(integers, scale, error)
    return model


@pytest.mark.parametrize("params", [GREEDY, DRAWN, SamplingParams(temperature=1.3)], ids=["greedy", "drawn", "all"])
@pytest.mark.parametrize("digits, spare", [(127, 20), (2, 0), (1, 0)])
def test_choices_by_approximate_logits(params, digits, spare, request, monkeypatch):
    """Where they do not decide, exact ones do, a step later; where these choose another token, the row goes back."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model = model_of()
    wanted = answers(model, params)
    recorder = request.getfixturevalue("on_gpu")
    monkeypatch.setattr(vocabulary, "SPARE", spare)
    asked, gone = [], []
    for name, told in (("exactly", asked), ("go_back", gone)):
        kept = getattr(sequences.Sequences, name)
        monkeypatch.setattr(sequences.Sequences, name,
                            lambda *given, kept=kept, told=told: told.append(given) or kept(*given))
    monkeypatch.setattr(GLM, "choices", lambda self, hidden, is_exact, looks, choices=GLM.choices: (
        told_exact.append(is_exact) or choices(self, hidden, is_exact, looks)))
    told_exact = []
    assert answers(with_vocabulary(model, digits), params) == wanted and recorder.replays >= 2
    assert not any(told_exact) and bool(asked) == bool(gone) == (digits < 127)


def test_rows_that_go_back_while_others_join_leave_and_are_dropped(request, monkeypatch):
    """One of them joins with options of its own, so that the step begun since is not recorded with its choice."""
    monkeypatch.setattr(kernels, "BACKENDS", {})
    model, common = model_of(), rules((1, 2))
    waves = [[Row([7, 8, 9, 10], GREEDY, 14, common), Row([5, 6], GREEDY, 6, common)],
             [Row([30, 31], GREEDY, 30, common)],
             [Row([8, 8], GREEDY, 12, common), Row([6, 6, 5], GREEDY, 9, common)],
             [Row([9, 9], SAMPLED, 7, common, seed=(5,))]]
    wanted = [finish_alone(model, row) for wave in waves for row in wave]
    request.getfixturevalue("on_gpu")
    monkeypatch.setattr(vocabulary, "SPARE", 0)
    gone, go_back = [], sequences.Sequences.go_back
    monkeypatch.setattr(sequences.Sequences, "go_back", lambda *given: gone.append(given[1]) or go_back(*given))
    batch, found, told, numbers = Batch(with_vocabulary(model, 1)), {}, {}, []
    for wave in waves:
        numbers += batch.add(wave)
        for _ in range(3):
            collect(batch.step(), found, told)
        if len(numbers) == 5:
            batch.drop(numbers[2])
    found |= finish(batch)
    assert len(gone) > 3
    assert {number: found.get(number) for number in numbers} == {
        number: None if number == numbers[2] else result for number, result in zip(numbers, wanted, strict=True)}


def test_logits_that_are_no_numbers_end_a_row_that_is_chosen_for_by_approximate_ones(on_gpu):
    model = model_of()
    with torch.no_grad():
        model.head_weight[7, 3] = torch.nan
    with pytest.raises(NonFinite):
        answers(with_vocabulary(model, 127), GREEDY)
