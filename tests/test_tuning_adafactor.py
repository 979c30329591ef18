"""Adafactor against the paper's formulas, written out, and against torch's own; trainings with it."""

import json

import pytest
import torch

from runtime.errors import UserError
from tests.golden_finetune import refused
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tuning.__main__ import main
from tuning.adafactor import Adafactor
from tuning.deepspeed_config import settled
from tuning.optimizer import Optimizer
from tuning.options import CheckpointOptions, PartsOptions, Settings
from tuning.plan import job_of
from tuning.plan_memory import needs
from tuning.train_options import OPTIMIZERS, OptimizerOptions, TrainOptions

RATE = 1e-2
STEPS = 3


def gradients(shape):
    torch.manual_seed(0)
    return [torch.randn(shape) * torch.rand(shape) for _ in range(STEPS)]


def moved(optimizer, parameter, found):
    for gradient in found:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def rms(tensor):
    return tensor.double().square().mean().sqrt()


def by_formulas(value, found, decay):
    """Algorithm 4 of the paper, with a rate from outside."""
    value, rows, columns = value.double(), 0.0, 0.0
    for step, gradient in enumerate(map(torch.Tensor.double, found), 1):
        old = 1 - step ** -0.8
        squares = gradient ** 2 + 1e-30
        if value.ndim == 2:
            rows = old * rows + (1 - old) * squares.mean(1)
            columns = old * columns + (1 - old) * squares.mean(0)
            estimate = torch.outer(rows, columns) / rows.mean()
        else:
            estimate = rows = old * rows + (1 - old) * squares
        update = gradient / estimate.sqrt()
        update = update / max(1.0, float(rms(update)))
        rate = RATE * max(1e-3, float(rms(value)))
        value = value - decay * rate * value - rate * update
    return value


@pytest.mark.parametrize("shape", [(5, 7), (6,), (1, 4)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_formulas(shape, decay):
    torch.manual_seed(1)
    parameter, found = torch.nn.Parameter(torch.randn(shape)), gradients(shape)
    expected = by_formulas(parameter.detach(), found, decay)
    result = moved(Adafactor([{"params": [parameter], "weight_decay": decay}], RATE), parameter, found)
    assert torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-7)


def test_torch_finds_the_same():
    """Where its own bound of the rate, 1 / sqrt(step), does not bind."""
    value, found = torch.randn(5, 7), gradients((5, 7))
    own, other = torch.nn.Parameter(value.clone()), torch.nn.Parameter(value.clone())
    expected = moved(torch.optim.Adafactor([other], lr=RATE), other, found)
    assert torch.allclose(moved(Adafactor([{"params": [own]}], RATE), own, found), expected, atol=1e-6)


def test_a_row_without_a_gradient_stays():
    parameter, gradient = torch.nn.Parameter(torch.ones(3, 4)), torch.ones(3, 4)
    gradient[1] = 0
    result = moved(Adafactor([{"params": [parameter]}], RATE), parameter, [gradient])
    assert result.isfinite().all() and (result[1] == 1).all() and (result[0] < 1).all()


def test_its_state_goes_on():
    """A matrix keeps a number for each row and column, no moments."""
    found, states = gradients((5, 7)), []
    for ends in ((STEPS,), (1, STEPS)):
        parameters, done = {"weight": torch.nn.Parameter(torch.ones(5, 7))}, 0
        for end in ends:
            optimizer = Optimizer(parameters, OptimizerOptions(optimizer="adafactor", clip_grad=0.0))
            if done:
                optimizer.load(states[-1])
            for gradient in found[done:end]:
                parameters["weight"].grad = gradient.clone()
                optimizer.step(RATE, 1.0)
            states.append(optimizer.state())
            done = end
    assert {name: each.numel() for name, each in states[0]["moments"]["weight"].items()} == {
        "step": 1, "rows": 5, "columns": 7}
    assert torch.equal(states[0]["parameters"]["weight"], states[-1]["parameters"]["weight"])


def test_a_training(tmp_path, capsys):
    """It learns; its state is not AdamW's, and the plan counts no moments."""
    glm = tiny_glm(tmp_path / "glm")
    flags = training_flags(glm, "--optimizer", "adafactor", "--hidden-dropout", 0, "--attention-dropout", 0, steps=4)
    assert main(["train", *flags, "--save", str(tmp_path / "run")]) == 0
    first, trained, log = weights_of(glm), weights_of(tmp_path / "run"), log_of(tmp_path / "run")
    assert log[-1]["gradient_norm"] > 0 and any(not torch.equal(first[name], trained[name]) for name in first)
    capsys.readouterr()
    assert "--optimizer is its default" in refused(
        "train", *training_flags(glm, steps=4), "--save", tmp_path / "run", "--hidden-dropout", "0",
        "--attention-dropout", "0", capsys=capsys)
    jobs = [job_of(CheckpointOptions(glm), PartsOptions(), Settings(), TrainOptions(), None, optimizer=name)
            for name in OPTIMIZERS]
    assert needs(jobs[0]).moments > 0 == needs(jobs[1]).moments


@pytest.mark.parametrize(("config", "message"), [
    ({"optimizer": {"type": "Adam"}}, "says Adam"), ({"zero_optimization": {"stage": 1}}, "divides by zero")])
def test_deepspeed_has_adamw_alone(tmp_path, config, message):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        settled(CheckpointOptions(), TrainOptions(deepspeed_config=path), OptimizerOptions(optimizer="adafactor"),
                ["optimizer"], 2)
