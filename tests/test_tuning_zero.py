"""Trainings that DeepSpeed divides over ranks give what the plain loop gives."""

import json

import pytest
import torch

from tests.parallel_helper import run_ranks
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tuning.__main__ import main

LORA = ("--lora-rank", 2, "--lora-alpha", 4, "--lora-format", "glm")


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def on_a_rank(flags):
    return main(["train", *flags])


def trained(glm, folder, ranks, *more, zero=None):
    """A training on so many ranks -> its log. zero: zero_optimization of the JSON."""
    flags = training_flags(glm, "--save", folder, "--train-iters", 6, "--batch-size", 12 // ranks,
                           "--gradient-accumulation-steps", 2, "--clip-grad", 0.5, "--warmup", 0.3, "--lr", 1e-3, *more)
    if zero is not None:
        (folder.parent / "zero.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
        flags += ["--deepspeed-config", str(folder.parent / "zero.json")]
    meeting = folder.parent / f"{folder.name}-ranks"
    meeting.mkdir()
    assert run_ranks(on_a_rank, ranks, meeting, flags) == [0] * ranks
    return log_of(folder)


def assert_same(log, other, folder, expected):
    assert [line["rows"] for line in log] == [line["rows"] for line in other]
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [line[name] for line in log] == pytest.approx([line[name] for line in other], rel=1e-3, abs=1e-6), name
    whole = weights_of(expected)
    for name, tensor in weights_of(folder).items():
        if "query_key_value.bias" not in name:  # of the keys' biases the gradient is rounding alone
            assert torch.allclose(tensor, whole[name], atol=2e-4), name


CPU = {"device": "cpu"}


@pytest.mark.parametrize("zero", [
    {"stage": 2},
    *(pytest.param(zero, marks=pytest.mark.slow) for zero in (
        {"stage": 1}, {"stage": 3}, {"stage": 1, "offload_optimizer": CPU}, {"stage": 2, "offload_optimizer": CPU},
        {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}))], ids=str)
def test_all_weights(glm, tmp_path, zero):
    plain = trained(glm, tmp_path / "plain", 1)
    assert_same(trained(glm, tmp_path / "divided", 2, zero=zero), plain, tmp_path / "divided", tmp_path / "plain")
