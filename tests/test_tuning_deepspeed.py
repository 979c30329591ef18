"""DeepSpeed's JSON files in the words of this program; what a flag says differently is refused."""

import json

import pytest

from runtime.errors import UserError
from runtime.files import REPOSITORY
from tuning.deepspeed_config import settled
from tuning.options import CheckpointOptions
from tuning.train_options import OptimizerOptions, TrainOptions

OF_10B = REPOSITORY / "config_tasks" / "config_blocklm_10B.json"


def of(path, said=(), ranks=8, optimizer=None, **options):
    return settled(CheckpointOptions(), TrainOptions(deepspeed_config=path, **options), optimizer or OptimizerOptions(),
                   said, ranks)


def test_the_original_s_file_for_10b():
    found = of(OF_10B)
    assert found.optimizer == OptimizerOptions(lr=5e-6, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.95)
    assert (found.options.batch_size, found.options.gradient_accumulation_steps) == (8, 2)
    assert found.checkpoint.dtype == "float16" and found.deepspeed.stage == 2 and found.deepspeed.is_offloaded


def test_no_file():
    assert of(None).optimizer == OptimizerOptions() and of(None).deepspeed.stage == 0


@pytest.mark.parametrize("flag, values, named", [
    ("lr", {"optimizer": OptimizerOptions(lr=1e-5)}, "--lr is 1e-05, but optimizer.params.lr of"),
    ("adam_beta2", {}, "--adam-beta2 is 0.999, but optimizer.params.betas of"),
    ("batch_size", {"batch_size": 16}, "--batch-size is 16, but train_micro_batch_size_per_gpu times"),
    ("dtype", {}, "--dtype is float32, but fp16.enabled"),
])
def test_said_in_two_places(flag, values, named):
    with pytest.raises(UserError, match=named) as error:
        of(OF_10B, {flag}, **values)
    assert str(OF_10B) in str(error.value)


def test_the_same_in_both_places():
    assert of(OF_10B, {"lr", "batch_size"}, optimizer=OptimizerOptions(lr=5e-6), batch_size=8).optimizer.lr == 5e-6


def test_auto_leaves_it_to_the_flags(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": "auto", "fp16": {"enabled": "auto", "loss_scale": 0},
                                "zero_optimization": {"stage": 2}}))
    found = of(path, {"batch_size"}, batch_size=3)
    assert (found.options.batch_size, found.checkpoint.dtype, found.optimizer.loss_scale) == (3, "float32", None)


@pytest.mark.parametrize("config, named", [
    ([], "must hold a JSON object"), ({"optimizer": {"params": {"lr": "x"}}}, "optimizer.params.lr is 'x'"),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type is 'Lamb'"),
    ({"zero_optimization": {"stage": 4}}, "0, 1, 2 or 3"),
    ({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 2}, "train_batch_size is 24"),
    ({"optimizer": {"params": {"betas": 0.9}}}, "two numbers"),
])
def test_files_that_cannot_be_meant(config, named, tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=named):
        of(path)


def test_what_changes_nothing_is_named(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"scheduler": {"type": "WarmupLR"}, "wall_clock_breakdown": False,
                                "steps_per_print": 5}))
    assert of(path).deepspeed.unused == ("scheduler", "steps_per_print")
