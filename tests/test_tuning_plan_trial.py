"""A step of a few layers, from which the time of a training is planned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glm.config import PRESETS, ModelConfig
from glm.linear import quantization_of
from glm.spec import MLP_IN, QKV
from planning.devices import Device
from planning.shapes import Format, Setup
from tuning import plan_trial
from tuning.packing import Size, size_of
from tuning.plan import Job, Learned, LowRank
from tuning.plan_time import Pace, epoch_seconds, update_seconds

CPU = Device("cpu", "", "cpu", 0, 20e9, {"fp32": 2e11, "bf16": 2e11}, 20e9, 20e9, "")
CONFIG = ModelConfig(**(PRESETS["glm-small"] | dict(
    num_layers=6, hidden_size=64, num_attention_heads=4, inner_hidden_size=96, vocab_size=2048,
    max_sequence_length=128)))
WHOLE, LORA = Learned(6), Learned(0, False, 0, (LowRank(QKV, 4, 3, True), LowRank(MLP_IN, 2)))
FLOAT = Format("fp32")


def job(learned: Learned = WHOLE, run: Format = FLOAT, **changes) -> Job:
    return Job(Setup(CONFIG, run), learned, (Size(3, 32, 20),), steps=10, of_epoch=10, **changes)


@pytest.mark.parametrize("asked", [
    job(), job(is_checkpointed=True, optimizer="adafactor"), job(LORA), job(LORA, Format("bf16", 4)),
    job(Learned(2, False)), job(Learned(0, False, 100, prefix=3)),
    job(Learned(0, False, 100), hidden_dropout=0.0, attention_dropout=0.0)])
def test_the_very_step_is_timed(asked, monkeypatch):
    monkeypatch.setattr(plan_trial, "ENOUGH", 0.0)
    made, learner, optimizers, optimizer = [], plan_trial.learner, [], plan_trial.Optimizer
    monkeypatch.setattr(plan_trial, "learner", lambda tried: made.append(learner(tried)) or made[0])
    monkeypatch.setattr(plan_trial, "Optimizer", lambda parameters, options: optimizers.append(options.optimizer)
                        or optimizer(parameters, options))
    found = plan_trial.pace(asked, CPU)
    assert optimizers == [asked.optimizer]
    assert found.part > 0 and found.update > 0
    (tuned, parameters), learned = made[0], asked.learned
    assert len(tuned.model.transformer.layers) == 4 and tuned.is_checkpointed == asked.is_checkpointed
    assert (quantization_of(tuned.model) or "").startswith("INT4" if asked.setup.run.bits else "")
    names = set(parameters)
    assert (len(names) == len(tuned.named())) == learned.is_whole
    assert all(".matrix_" in name for name in names) == bool(learned.low_rank)
    assert all("prefix_encoder" in name for name in names) == bool(learned.prefix)
    assert learned.prefix or any(".layers.0." in name for name in names)  # gradients go down through all layers
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in parameters.values())


def test_what_is_tried_is_small():
    large = replace(job(parts=4, ranks=2), sizes=(Size(64, 128, 640), Size(1, 16, 1), Size(64, 128, 640)))
    tried = plan_trial.smaller(large)
    assert tried.sizes == (Size(8, 128, 80),) and (tried.parts, tried.ranks) == (1, 1)
    assert size_of([plan_trial.sample(tried.sizes[0])] * 8) == tried.sizes[0]


def test_the_whole_takes_as_many_times_longer():
    seconds, updates = epoch_seconds(job(), CPU), 10 * update_seconds(job(), CPU, plan_trial.CPU)
    assert epoch_seconds(job(), CPU, Pace(2.0, 1.0)) == pytest.approx(2 * seconds - updates)
    assert epoch_seconds(job(), CPU, Pace(1.0, 3.0)) == pytest.approx(seconds + 2 * updates)
