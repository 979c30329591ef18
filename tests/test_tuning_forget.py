"""python -m tuning forget: a base and what was made of it, on tasks of the evaluator."""

import pytest
import torch

from evaluation.table import figure as shown
from glm.checkpoint import find_shards
from tests.golden_data import SHAPE, TOKENIZER, TP1, write_checkpoint
from tests.golden_finetune import refused
from tests.tiny_tasks import results, write_tasks
from tuning.__main__ import main

FLAGS = ["--tokenizer-path", str(TOKENIZER / "ice_text.model"), "--fp32", "--device", "cpu",
         *(f"--{name}={value}" for name, value in SHAPE.items())]


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path, rows=6)


def words(folder, *more):
    return ["forget", "--base", str(TP1), "--output", str(folder / "out"), "--tasks", str(folder / "tasks/text.yaml"),
            "--data-path", str(folder / "data"), *FLAGS, *more]


def test_a_table_of_before_and_after(folder, capsys):
    tuned = folder / "tuned"
    (shard,) = find_shards(TP1)
    state = torch.load(shard, map_location="cpu", weights_only=True)["module"]
    state["transformer.final_layernorm.weight"] = -state["transformer.final_layernorm.weight"]
    write_checkpoint(tuned, [state])
    assert main(words(folder, "--load", str(tuned))) == 0
    told = capsys.readouterr()
    line = next(line for line in told.out.splitlines() if "PPL" in line)
    assert "[" in line and "B - A" in told.out
    figures = [results(folder, f"out/{name}")["tasks"]["text"]["groups"]["all"]["PPL"]["average"]
               for name in ("before", "after")]
    assert figures[0] != figures[1]
    assert line.split()[3:5] == [shown(figure) for figure in figures]


@pytest.mark.parametrize("more", [[], ["--load", "x", "--adapter", "y"]])
def test_exactly_one_thing_was_tuned(folder, more, capsys):
    assert "name one" in refused(*words(folder, *more), capsys=capsys)


@pytest.mark.parametrize("flag", ["--load", "--adapter"])
def test_what_is_not_there_is_said_before_the_base_is_scored(folder, flag, capsys):
    assert "there is no" in refused(*words(folder, flag, str(folder / "nothing")), capsys=capsys)
    assert not (folder / "out").exists()


def test_what_the_evaluation_refuses_is_refused(folder, capsys):
    assert main([*words(folder, "--load", str(TP1)), "--limit", "0"]) == 2
    assert "--limit 0" in capsys.readouterr().err
