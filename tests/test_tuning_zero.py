"""Trainings that DeepSpeed divides over ranks give what the plain loop gives; so do tensor-parallel ones."""

import json
import os
import shlex
import signal
import sys

import pytest
import torch

from runtime.errors import UserError
from runtime.files import REPOSITORY
from tests.parallel_helper import run_ranks
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tests.two_hosts import on_two_hosts, without_ssh
from tuning.__main__ import main
from tuning.deepspeed_config import settled
from tuning.options import CheckpointOptions
from tuning.train_options import OptimizerOptions, TrainOptions
from tuning.zero import DividedOptimizer, narrowed

CPU = {"device": "cpu"}
LORA = ("--lora-rank", 2, "--lora-alpha", 4, "--lora-format", "glm")
INT4 = (*LORA, "--quantization-bit-width", 4, "--quantization-group-size", 32)
STAGES = [{"stage": 1}, {"stage": 2}, {"stage": 3}, {"stage": 1, "offload_optimizer": CPU},
          {"stage": 2, "offload_optimizer": CPU}, {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}]


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def flags_of(glm, folder, ranks, *more, zero=None):
    """Of a training of six clipped steps of 12 rows in four parts, on any number of ranks.

    zero: zero_optimization of the JSON.
    """
    flags = training_flags(glm, "--save", folder, "--batch-size", 12 // ranks, "--gradient-accumulation-steps",
                           4 // ranks, "--clip-grad", 0.5, "--warmup", 0.3, "--lr", 1e-3, *more, steps=6)
    if zero is None:
        return flags
    file = folder.with_suffix(".json")
    file.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    return [*flags, "--deepspeed-config", str(file)]


def each(commands):
    """On a rank: one training after another, since ranks that import DeepSpeed take seconds to start."""
    return [main(["train", *command]) for command in commands]


def run(folder, ranks, *commands):
    meeting = folder / f"ranks-{len(list(folder.iterdir()))}"
    meeting.mkdir()
    assert run_ranks(each, ranks, meeting, commands) == [[0] * len(commands)] * ranks


def assert_same(folder, expected, tolerance=1e-3):
    log, other = log_of(folder), log_of(expected)
    assert [line["rows"] for line in log] == [line["rows"] for line in other]
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [line[name] for line in log] == pytest.approx([line[name] for line in other], rel=tolerance, abs=1e-6)


def assert_same_weights(folder, expected):
    whole = weights_of(expected)
    for name, tensor in weights_of(folder).items():
        if "query_key_value.bias" not in name:  # of the keys' biases the gradient is rounding alone
            assert torch.allclose(tensor, whole[name], atol=2e-4), name


def test_stage_2_gives_what_one_rank_gives(glm, tmp_path):
    assert main(["train", *flags_of(glm, tmp_path / "plain", 1)]) == 0
    run(tmp_path, 2, flags_of(glm, tmp_path / "zero", 2, zero={"stage": 2}))
    assert_same(tmp_path / "zero", tmp_path / "plain")
    assert_same_weights(tmp_path / "zero", tmp_path / "plain")
    assert not list((tmp_path / "zero").glob("state*"))


@pytest.mark.slow
@pytest.mark.parametrize("more, tolerance", [
    ((), 1e-3), (LORA, 1e-3), (INT4, 1e-3), (("--dtype", "bfloat16"), 1e-2), ((*LORA, "--dtype", "bfloat16"), 1e-2),
    (("--checkpoint-activations", "--eval-epoch", 1, "--train-iters", 3), 1e-3)], ids=str)
def test_all_stages_and_offloading(glm, tmp_path, more, tolerance):
    folders = [tmp_path / f"zero-{number}" for number in range(len(STAGES))]
    run(tmp_path, 2, flags_of(glm, tmp_path / "plain", 2, *more), *(
        flags_of(glm, folder, 2, *more, zero=zero) for folder, zero in zip(folders, STAGES, strict=True)))
    for folder in folders:
        assert_same(folder, tmp_path / "plain", tolerance)
        if not more:
            assert_same_weights(folder, tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["head", "prompt"])
def test_what_is_float32_beside_a_model_of_half_precision(glm, tmp_path, beside):
    """It computes in the model's precision, and has float32 masters, which begin with its own values."""
    prompt = ("--continuous-prompt", "--num-prompt-tokens", 3)
    commands = []
    for name, zero in (("plain", None), ("two", {"stage": 2}), ("three", {"stage": 3})):
        flags = flags_of(glm, tmp_path / name, 2, "--dtype", "bfloat16", *(prompt if beside == "prompt" else ()),
                         zero=zero)
        commands.append([flag for flag in flags if beside == "prompt" or flag != "--cloze-eval"])
    run(tmp_path, 2, *commands)
    for name in ("two", "three"):
        assert_same(tmp_path / name, tmp_path / "plain", 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_float16_finds_its_scale(glm, tmp_path, stage):
    """Steps that overflow move nothing; the scale falls, and later rises. (Several parts are summed in float16 by the
    plain optimiser, and in float32 by stage 3.)"""
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        pytest.skip("DeepSpeed refuses float16 on this processor")
    more = ("--dtype", "float16", "--loss-scale-window", 2, "--gradient-accumulation-steps", 1)
    run(tmp_path, 2, flags_of(glm, tmp_path / "plain", 2, *more),
        flags_of(glm, tmp_path / "zero", 2, *more, zero={"stage": stage}))
    lines = [[(line.get("skipped", False), line["learning_rate"]) for line in log_of(tmp_path / name)]
             for name in ("plain", "zero")]
    assert lines[0] == lines[1] and any(skipped for skipped, _ in lines[0])


def ended_behind_step_3(command):
    """On a rank: SIGINT on the last one in the fourth step ends all."""
    from tuning import run as runs

    log = runs.Run.log

    def interrupting(self, line):
        log(self, line)
        if line["step"] == 3 and torch.distributed.get_rank() + 1 == torch.distributed.get_world_size():
            os.kill(os.getpid(), signal.SIGINT)

    runs.Run.log = interrupting
    return main(["train", *command])


@pytest.mark.slow
@pytest.mark.parametrize("zero", STAGES[1:3] + STAGES[5:], ids=str)
def test_a_run_that_was_ended_goes_on(glm, tmp_path, zero):
    """Bit for bit with the same ranks; to rounding with another number of them, and with no DeepSpeed at all."""
    first, ended = flags_of(glm, tmp_path / "whole", 2, zero=zero), flags_of(glm, tmp_path / "ended", 2, zero=zero)
    run(tmp_path, 2, first)
    (tmp_path / "end").mkdir()
    assert run_ranks(ended_behind_step_3, 2, tmp_path / "end", ended) == [130, 130]
    assert len(log_of(tmp_path / "ended")) == 4
    run(tmp_path, 2, ended)
    assert log_of(tmp_path / "ended") == log_of(tmp_path / "whole")
    whole = weights_of(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights_of(tmp_path / "ended").items())


def killed_in_step_4(command):
    """On a rank: all end at once, between a state and the next one, and before the step's line."""
    from tuning import run as runs

    log = runs.Run.log

    def killing(self, line):
        if line["step"] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, line)

    runs.Run.log = killing
    return main(["train", *command])


@pytest.mark.slow
@pytest.mark.parametrize("zero", STAGES[:3] + STAGES[5:], ids=str)
def test_a_run_that_was_killed_ends_with_the_same_files(glm, tmp_path, zero):
    """Bit for bit: its state is of step 3, its log has one line more."""
    whole, killed = flags_of(glm, tmp_path / "whole", 2, zero=zero), flags_of(glm, tmp_path / "killed", 2, zero=zero)
    run(tmp_path, 2, whole)
    (tmp_path / "kill").mkdir()
    with pytest.raises(AssertionError, match="died"):
        run_ranks(killed_in_step_4, 2, tmp_path / "kill", killed)
    assert len(log_of(tmp_path / "killed")) == 4 and (tmp_path / "killed" / "state.pt").exists()
    run(tmp_path, 2, killed)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    expected = weights_of(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(tmp_path / "killed").items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_goes_on_with_other_ranks(glm, tmp_path, stage):
    """Begun by two ranks with ZeRO, it ends on one without, and the other way round."""
    alone = flags_of(glm, tmp_path / "whole", 1)
    assert main(["train", *alone]) == 0
    for name, begins, ends in (("fewer", 2, 1), ("more", 1, 2)):
        by = {1: flags_of(glm, tmp_path / name, 1),
              2: flags_of(glm, tmp_path / name, 2, zero={"stage": stage})}
        (tmp_path / f"{name}-begins").mkdir()
        assert run_ranks(ended_behind_step_3, begins, tmp_path / f"{name}-begins", by[begins]) == [130] * begins
        run(tmp_path, ends, by[ends])
        assert_same(tmp_path / name, tmp_path / "whole")
        assert_same_weights(tmp_path / name, tmp_path / "whole")


@pytest.mark.slow
def test_two_hosts(glm, tmp_path):
    if reason := without_ssh():
        pytest.skip(reason)
    assert main(["train", *flags_of(glm, tmp_path / "plain", 1)]) == 0
    (tmp_path / "hosts.txt").write_text("first slots=1\nsecond slots=1\n", encoding="utf-8")
    command = [sys.executable, str(REPOSITORY / "scripts" / "launch_hosts.py"), "hosts.txt", "1", "tuning", "train",
               *flags_of(glm, tmp_path / "two", 2, zero={"stage": 2})]
    done = on_two_hosts(shlex.join(command), tmp_path, with_ssh=True, cwd=tmp_path, env={
        **os.environ, "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "two", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("zero", [None, {"stage": 1}, {"stage": 2}], ids=str)
def test_data_parallel_over_tensor_parallel_ranks(glm, tmp_path, zero):
    assert main(["train", *flags_of(glm, tmp_path / "plain", 1)]) == 0
    run(tmp_path, 4, flags_of(glm, tmp_path / "parts", 2, "--model-parallel-size", 2, zero=zero))
    assert_same(tmp_path / "parts", tmp_path / "plain")


@pytest.mark.slow
def test_lora_on_tensor_parallel_ranks(glm, tmp_path):
    """Not of INT4 and INT8: a row that is split has other scales."""
    more = (*LORA, "--lora-linears", "query_key_value,dense,dense_h_to_4h,dense_4h_to_h")
    assert main(["train", *flags_of(glm, tmp_path / "one", 1, *more)]) == 0
    run(tmp_path, 2, flags_of(glm, tmp_path / "two", 1, *more, "--model-parallel-size", 2))
    assert_same(tmp_path / "two", tmp_path / "one")


def test_stage_3_over_tensor_parallel_ranks_is_refused(glm, tmp_path):
    (tmp_path / "ranks").mkdir()
    command = flags_of(glm, tmp_path / "run", 1, "--model-parallel-size", 2, zero={"stage": 3})
    assert run_ranks(each, 2, tmp_path / "ranks", [command]) == [[2], [2]]
    assert not (tmp_path / "run").exists()


def test_an_odd_number_of_parameters_is_divided():
    """DeepSpeed wants buckets of an even size."""
    module = torch.nn.Linear(2, 1)
    optimizer = DividedOptimizer(dict(module.named_parameters()), OptimizerOptions(), module, print, {"stage": 2},
                                 1, lambda name: False)
    zero = optimizer._config()["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"]) == (4, 4)


def test_what_learns_beside_half_precision_has_it_too():
    model, head = torch.nn.Linear(2, 2, dtype=torch.float16), torch.nn.Linear(2, 1)
    whole = head.weight.detach().clone()
    values = narrowed({"model": model.weight, "head": head.weight})
    assert head.weight.dtype == torch.float16 and torch.equal(values["head"], whole) and list(values) == ["head"]
    assert narrowed({"head": torch.nn.Parameter(whole)}) == {}


def test_one_rank_has_nothing_to_divide(glm, tmp_path, capsys):
    assert main(["train", *flags_of(glm, tmp_path / "run", 1, "--train-iters", 1, zero={"stage": 2})]) == 0
    assert "nothing to divide" in capsys.readouterr().err


@pytest.mark.parametrize("zero, named", [
    ({"stage": 3, "offload_param": {"device": "nvme"}}, "offload_param.device is nvme"),
    ({"stage": 2, "offload_param": CPU}, "offload_param needs stage 3, and the stage is 2"),
    ({"offload_optimizer": CPU}, "offload_optimizer needs stage 1 or more"),
    ({"stage": 3, "zero_hpz_partition_size": 8}, "zero_optimization.zero_hpz_partition_size cannot be used"),
    ({"stage": True}, "0, 1, 2 or 3")])
def test_what_cannot_be_done_is_refused(tmp_path, zero, named):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    with pytest.raises(UserError, match=named):
        settled(CheckpointOptions(), TrainOptions(deepspeed_config=path), OptimizerOptions(), [], 2)
