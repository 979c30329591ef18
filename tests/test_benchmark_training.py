"""tools/benchmark.py training: engines that step in turn, and how their figures stand beside each other."""

import dataclasses

import pytest
import torch

from runtime.errors import UserError
from tools.benchmarking import training


def work_of(engine, method="lora"):
    return training.Work(engine, method, "fp32", "glm-small", 2, 6, 3, torch.get_num_threads())


@pytest.mark.parametrize("method", training.METHODS)
def test_a_step_of_training(method):
    step = training.timed(training.prepared(work_of(training.OWN, method)))
    assert step.seconds > 0 and step.processor > 0 and step.peak > 1e7


def test_an_engine_steps_when_it_is_asked_and_says_why_it_cannot():
    with training.Engine(work_of(training.OWN)) as engine:
        assert engine.step().seconds > 0
    wrong = dataclasses.replace(work_of(training.OWN), model="glm-odd")
    with training.Engine(wrong) as engine, pytest.raises(RuntimeError, match="^glm, lora: its process ended with 1"):
        engine.step()


def test_a_model_that_is_not_known_is_told_before_a_process_begins():
    with pytest.raises(UserError, match="unknown model preset 'zebra'; allowed: "):
        next(training.measure([training.OWN], [("lora", "fp32")], 1, "zebra", rows=2, source=6, target=3, threads=1))


def test_figures_of_training_stand_beside_the_peer_s():
    found = [training.Result(work_of(engine), tuple(training.Step(factor * seconds, 2 * seconds, factor * peak)
                                                    for seconds, peak in ((1, 3), (2, 3), (4, 3))))
             for engine, factor in ((training.OWN, 1), (training.PEER, 2))]
    _, rows = training.table(found)
    assert rows[0][-3:] == ["2.00 (2.00 - 2.00)", "1.00 (1.00 - 1.00)", "0.50"] and rows[1][-3:] == ["", "", ""]
