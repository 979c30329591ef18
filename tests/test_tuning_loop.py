"""What a training does beside its steps: validation, precision, losses that say something is wrong, several ranks."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from runtime import parallel
from runtime.errors import UserError
from tests.golden_finetune import KIT, refused
from tests.parallel_helper import run_ranks
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tuning.__main__ import main
from tuning.data.sample import Kind, Row, Sample
from tuning.loop import Progress, Training, one_step, weight_of
from tuning.optimizer import LossScale, Optimizer, is_decayed
from tuning.packing import cut
from tuning.schedules import Schedule
from tuning.steps import Work
from tuning.train_options import OptimizerOptions
from tuning.validation import Validation, validated


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def train(load, save, *more):
    assert main(["train", *training_flags(load, "--save", save, *more)]) == 0
    return log_of(save)


def evaluated(load, capsys):
    flags = training_flags(load)[:training_flags(load).index("--batch-size")]
    capsys.readouterr()
    assert main(["evaluate", *flags, "--split", "dev"]) == 0
    return json.loads(capsys.readouterr().out)["metrics"]


def test_the_best_epoch_is_kept(glm, tmp_path, capsys):
    log = train(glm, tmp_path / "run", "--eval-epoch", 1, "--epochs", 3, "--train-iters", 18, "--batch-size", 2)
    ends = [line for line in log if "epoch" in line]
    assert [(line["step"], line["epoch"]) for line in ends] == [(5, 0), (11, 1), (17, 2)]
    values = [line["validation"]["accuracy"] for line in ends]
    assert [line["is_best"] for line in ends] == [value > max(values[:place], default=-1)
                                                  for place, value in enumerate(values)]
    assert evaluated(tmp_path / "run" / "best", capsys)["accuracy"] == max(values)
    assert evaluated(tmp_path / "run", capsys)["accuracy"] == values[-1]


def test_only_a_better_epoch_is_the_best():
    kept, values = [], iter([50.0, 50.0, 60.0, 55.0])
    progress = Progress()
    validation = Validation(lambda epoch: {"accuracy": next(values), "f1": 0.0}, keep=kept.append)
    for epoch in range(4):
        progress.step = epoch
        validated(validation, epoch, progress)
    assert kept == [0, 2] and progress.best == 60.0
    assert validated(Validation(dict, every=2), 0, Progress()) == {"epoch": 0}


def test_without_a_validation_split_one_is_told(glm, tmp_path, capsys):
    rows = tmp_path / "COPA"
    rows.mkdir()
    shutil.copy(KIT / "data" / "superglue" / "COPA" / "train.jsonl", rows)
    flags = ["--eval-epoch", 1, "--data-dir", rows, "--train-iters", 1]
    refused("train", *training_flags(tmp_path / "none", "--save", tmp_path / "run", *flags), capsys=capsys)  # by a line
    train(glm, tmp_path / "run", *flags)
    assert "no validation: " in capsys.readouterr().err


def test_names_that_do_not_decay():
    assert [is_decayed(name) for name in (
        "transformer.layers.0.mlp.dense_h_to_4h.bias", "transformer.layers.0.input_layernorm.weight",
        "transformer.final_layernorm.bias")] == [False] * 3
    assert all(map(is_decayed, ("word_embeddings.weight", "prompt_spell.lstm_head.bias_ih_l0",
                                "transformer.prefix_encoder.embedding.weight")))


def test_the_scale_of_the_loss():
    options = OptimizerOptions(loss_scale_window=3, min_scale=2.0)
    scale = LossScale(16.0)
    scales = []
    for has_overflowed in (True, True, False, False, False, True, True, True, True, True):
        scale = scale.after(has_overflowed, options)
        scales.append(scale.value)
    # the first overflow only uses up the hysteresis, three good steps restore it
    assert scales == [16.0, 8.0, 8.0, 8.0, 16.0, 16.0, 8.0, 4.0, 2.0, 2.0]


def half_trained(loss, **options):
    parallel.start()
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = Optimizer({"weight": parameter}, OptimizerOptions(lr=1e-4, clip_grad=0, weight_decay=0, **options))
    sample = Sample("0", Kind.CHOICES, (Row((1,), (0,), (0,), 1),), label=0)
    training = Training([Work((0,))] * 9, lambda work: [sample], lambda samples, first, step: loss(parameter, step),
                        optimizer, Schedule("constant", 9))
    return parameter, optimizer, training, Progress()


def test_half_precision_has_masters_that_keep_small_steps():
    parameter, optimizer, training, progress = half_trained(
        lambda parameter, step: 0.1 * parameter.float().sum())
    for _ in range(9):
        one_step(training, Work((0,)), progress)
    assert torch.allclose(optimizer.masters["weight"], torch.full((3,), 1 - 9e-4), atol=1e-6)
    assert torch.equal(parameter, optimizer.masters["weight"].half()) and optimizer.scale.value == 2.0**16


def test_a_step_that_overflows_is_skipped():
    parameter, optimizer, training, progress = half_trained(
        lambda parameter, step: parameter.float().sum() * (math.inf if step < 2 else 1.0))
    lines = [one_step(training, Work((0,)), progress) for _ in range(4)]
    assert [line.get("skipped", False) for line in lines] == [True, True, False, False]
    assert lines[0]["loss"] is None and progress.updates == 2 and optimizer.scale.value == 2.0**15
    restored = Optimizer({"weight": torch.nn.Parameter(parameter.detach().clone())}, optimizer.options)
    restored.load(optimizer.state())
    assert restored.scale == optimizer.scale and torch.equal(restored.masters["weight"], optimizer.masters["weight"])


def test_a_static_scale_does_not_skip():
    _, _, training, progress = half_trained(lambda parameter, step: parameter.float().sum() * math.inf, loss_scale=8.0)
    with pytest.raises(UserError, match=r"step 0: the loss is inf.*\(rows 0\)"):
        one_step(training, Work((0,)), progress)


@pytest.mark.parametrize("factor, named", [(math.nan, "the loss is nan"), (0.0, "exactly 0")])
def test_a_loss_that_cannot_be_right_stops(factor, named):
    _, optimizer, training, progress = half_trained(lambda parameter, step: parameter.float().sum() * factor)
    optimizer.scale = None
    with pytest.raises(UserError, match=rf"step 0: .*{named}.*\(rows 0\)"):
        one_step(training, Work((0,)), progress)
    if not factor:
        one_step(replace(training, is_hinge=True), Work((0,)), progress)
        assert progress.step == 1


def test_weights_that_are_not_finite_stop_a_training(glm, tmp_path, capsys):
    load = tmp_path / "glm"
    shutil.copytree(glm, load)
    state = weights_of(load)
    state["transformer.final_layernorm.weight"][0] = math.nan
    torch.save({"module": state}, load / "100" / "mp_rank_00_model_states.pt")
    assert main(["train", *training_flags(load, "--save", tmp_path / "run")]) == 2
    *notes, error = capsys.readouterr().err.splitlines()  # of rows that were shortened, as the training begins
    assert "step 0: the loss is nan" in error and "(rows " in error and not any("error" in note for note in notes)
    assert not (tmp_path / "run" / "latest_checkpointed_iteration.txt").exists()


def test_a_mean_is_of_targets():
    row = Row((1, 2, 3), (0, 1, 2), (0, 0, 0), 1, (0, 2, 3), (0, 1, 1))
    assert weight_of([Sample("0", Kind.SEQ2SEQ, (row,)), Sample("1", Kind.SEQ2SEQ, (row,))]) == 4
    assert weight_of([Sample("0", Kind.CHOICES, (row, row))]) == 1
    assert [len(part) for _, part in cut(range(7), 3)] == [2, 2, 3] and [first for first, _ in cut(range(7), 3)] == [
        0, 2, 4]


def on_a_rank(flags):
    return main(["train", *flags])


def test_two_ranks_give_what_one_gives(glm, tmp_path):
    """With dropout; rows, targets and batches are not alike on both ranks."""
    gigaword = ["--task", "gigaword", "--data-dir", KIT / "data" / "seq2seq" / "gigaword", "--src-seq-length", 40,
                "--tgt-seq-length", 16, "--lr", 1e-3]
    one = train(glm, tmp_path / "one", *gigaword, "--batch-size", 6, "--train-iters", 4)
    flags = training_flags(glm, "--save", tmp_path / "two", *gigaword, "--batch-size", 3, "--train-iters", 4)
    (tmp_path / "ranks").mkdir()
    assert run_ranks(on_a_rank, 2, tmp_path / "ranks", flags) == [0, 0]
    two = log_of(tmp_path / "two")
    assert [line["rows"] for line in two] == [line["rows"] for line in one]
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-4)
    whole = weights_of(tmp_path / "one")
    for name, tensor in weights_of(tmp_path / "two").items():
        if "query_key_value.bias" not in name:  # of the keys' biases the gradient is rounding alone
            assert torch.allclose(tensor, whole[name], atol=2e-4), name


def test_tensor_parallel_ranks_give_what_one_gives(glm, tmp_path):
    """Also when the first run of both ends in the middle."""
    one = train(glm, tmp_path / "one", "--train-iters", 6, "--lr", 1e-3)
    (tmp_path / "ranks").mkdir()
    flags = training_flags(glm, "--save", tmp_path / "two", "--train-iters", 6, "--lr", 1e-3,
                           "--model-parallel-size", 2)
    assert run_ranks(interrupted, 2, tmp_path / "ranks", flags) == [130, 130]
    assert len(log_of(tmp_path / "two")) == 4
    (tmp_path / "again").mkdir()
    assert run_ranks(on_a_rank, 2, tmp_path / "again", flags) == [0, 0]
    two = log_of(tmp_path / "two")
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-3, abs=1e-4)
    assert len(list((tmp_path / "two" / "6").iterdir())) == 2 and not list((tmp_path / "two").glob("state*"))


def interrupted(flags):
    """SIGINT on one rank ends both, behind the step in which it came."""
    import os
    import signal

    from tuning import run as runs

    log = runs.Run.log

    def interrupting(self, line):
        log(self, line)
        if line["step"] == 3 and parallel.rank():
            os.kill(os.getpid(), signal.SIGINT)

    runs.Run.log = interrupting
    return main(["train", *flags])
