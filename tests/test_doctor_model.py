"""The doctor on the configured model and data, every fault really made: shards cut off, files missing, CONFIG wrong."""

import os
import subprocess
from pathlib import Path

import pytest

from commands import doctor as command
from doctor import model, probe
from doctor.run import own_variables, read_settings
from tests.golden_data import SHAPE, TOKENIZER, split_state, whole_state, write_checkpoint
from tests.tiny_tasks import write_tasks
from tools.converting.source import open_source

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ["--tokenizer-path", str(TOKENIZER / "ice_text.model")]
SHAPES = [f"--{name.replace('_', '-')}={value}" for name, value in SHAPE.items()]


@pytest.fixture
def two_shards(tmp_path):
    """A checkpoint in two parts."""
    return write_checkpoint(tmp_path / "ckpt", split_state(whole_state(), 2))


def shard(folder, rank):
    return folder / "49300" / f"mp_rank_{rank:02d}_model_states.pt"


def found(folder, *words, degree=2, free=10**12):
    """The findings on a checkpoint, looked at as the probe's process looks."""
    arguments = command.parse(["--load", str(folder), *words])
    lines = []
    probe.run(model.stages(arguments, open_source), lines.append)
    stages = probe.outcomes("\n".join(lines), 0, "")
    return [(one.code, one.level, str(one)) for one in model.check_model(stages, arguments, degree, free, "here")]


def test_a_whole_checkpoint_has_no_finding(two_shards):
    assert found(two_shards, *SHAPES, *VOCABULARY) == []


def test_no_checkpoint_folder(tmp_path):
    ((code, level, line),) = found(tmp_path / "nowhere")
    assert (code, level) == ("checkpoint", "error") and f"no checkpoint folder {tmp_path}/nowhere" in line


def test_a_folder_without_latest(two_shards):
    (two_shards / "latest").unlink()
    ((code, level, line),) = found(two_shards, *SHAPES, *VOCABULARY)
    assert (code, level) == ("checkpoint", "error") and f"no readable file {two_shards}/latest" in line
    assert f"echo 49300 > {two_shards}/latest" in line


def test_a_missing_shard(two_shards):
    shard(two_shards, 0).unlink()
    ((code, _, line),) = found(two_shards, *SHAPES, *VOCABULARY)
    assert code == "checkpoint" and f"missing shard {shard(two_shards, 0)}" in line
    assert f"python tools/verify_checkpoint.py {two_shards}" in line


def test_the_last_shard_is_missed_by_the_size_of_the_others(two_shards):
    shard(two_shards, 1).unlink()
    lines = found(two_shards, *SHAPES, *VOCABULARY)
    assert [code for code, _, _ in lines] == ["checkpoint-headers"]
    assert "mp_rank_01_model_states.pt" in lines[0][2] and "(2 belong together)" in lines[0][2]


def test_a_shard_that_is_cut_off(two_shards):
    os.truncate(shard(two_shards, 1), shard(two_shards, 1).stat().st_size // 2)
    ((code, _, line),) = found(two_shards, *SHAPES, *VOCABULARY)
    assert code == "checkpoint-headers" and f"{shard(two_shards, 1)}" in line and "truncated or damaged" in line


@pytest.mark.parametrize("fault, mend", [("cannot read x.pt: Permission denied", "chmod a+r DIR/*/mp_rank_* DIR/*.*"),
                                         ("x.pt: no memory to map it", "ulimit -v unlimited -d unlimited")])
def test_a_shard_that_this_user_may_not_read_or_that_a_limit_forbids(fault, mend):
    stages = {"headers": {"error": fault, "kind": "UserError"}}
    (one,) = model.check_model(stages, command.parse(["--load", "DIR"]), 2, 0, "here")
    assert one.code == "checkpoint-headers" and one.mend == mend


def test_a_shard_of_another_model(two_shards):
    ((code, _, line),) = found(two_shards, *SHAPES, "--num-layers", "6", *VOCABULARY)
    assert code == "checkpoint-headers" and "num_layers 4, but num_layers 6 was said" in line
    assert "mend it: name the model's preset: --model" in line


def test_a_shape_that_nobody_says(two_shards):
    lines = found(two_shards, *VOCABULARY)
    assert [code for code, _, _ in lines] == ["checkpoint-config"]
    assert "num_layers, hidden_size" in lines[0][2] and "--model glm-130b" in lines[0][2]


def test_another_degree_needs_no_conversion(two_shards):
    assert found(two_shards, *SHAPES, *VOCABULARY, degree=4, free=1000) == []


def test_a_degree_that_does_not_divide_the_model(two_shards):
    ((code, level, line),) = found(two_shards, *SHAPES, *VOCABULARY, degree=3)
    assert (code, level) == ("degree", "error")
    assert "num_attention_heads 8 cannot be divided among 3 tensor-parallel ranks; allowed: 1, 2, 4, 8; mend" in line


def test_another_degree_of_what_has_to_be_converted_and_room_for_it(two_shards):
    lines = found(two_shards, *SHAPES, *VOCABULARY, "--offload-memory-limit", "1", degree=4, free=1000)
    assert [(code, level) for code, level, _ in lines] == [("checkpoint-degree", "error"),
                                                          ("disk-conversion", "warning")]
    assert "is split for 2 tensor-parallel ranks, but 4 are asked for (MP_SIZE)" in lines[0][2]
    assert "mend it: export MP_SIZE=2, or python tools/convert_tp.py --input-folder " in lines[0][2]
    assert "--target-tp 4" in lines[0][2] and "0.0 GB are free beside it" in lines[1][2]


def test_bits_that_the_file_does_not_have(two_shards):
    ((code, _, line),) = found(two_shards, *SHAPES, *VOCABULARY, "--from-quantized-checkpoint")
    assert code == "checkpoint-bits" and "is not quantised, but said to be" in line
    arguments = command.parse(["--load", str(two_shards), "--quantization-bit-width", "4"])
    ((found_one),) = model.check_bits(8, arguments, "here")
    assert found_one.code == "checkpoint-bits" and "is quantised to 8 bits, 4 are asked for" in found_one.what
    assert not list(model.check_bits(4, arguments, "here")) and not list(model.check_bits(0, arguments, "here"))


def test_a_vocabulary_that_is_missing_damaged_or_another_model_s(two_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ((code, _, line),) = found(two_shards, *SHAPES)
    assert code == "tokenizer" and "no vocabulary file at" in line
    (tmp_path / "ice_text.model").write_bytes((TOKENIZER / "ice_text.model").read_bytes()[:5000])
    ((code, _, line),) = found(two_shards, *SHAPES, "--tokenizer-path", str(tmp_path))
    assert code == "tokenizer" and "is not icetk's vocabulary" in line
    ((code, _, line),) = found(two_shards, *SHAPES, "--num-image-tokens", "30000", *VOCABULARY)
    assert code == "vocabulary" and "the model's vocab_size is 23552" in line


# Data


def judged(folder, *paths, is_named=False):
    facts = model.look_for_data([str(path) for path in paths], folder)
    return [(one.code, str(one)) for one in model.check_data(facts, is_named, "here")]


def test_data_that_is_there(tmp_path):
    write_tasks(tmp_path)
    assert judged(tmp_path / "data", tmp_path / "tasks") == []
    assert judged(tmp_path / "nowhere") == []  # nobody wants any


def test_a_data_folder_that_is_not_there_has_one_line(tmp_path):
    write_tasks(tmp_path)
    ((code, line),) = judged(tmp_path / "no", tmp_path / "tasks")
    assert code == "data-path" and "no such folder; 3 of the tasks that were named have no data" in line
    assert judged(tmp_path / "no", is_named=True)[0][0] == "data-path"


def test_a_task_without_data(tmp_path):
    write_tasks(tmp_path)
    for file in (tmp_path / "data" / "writing").iterdir():
        file.unlink()
    ((code, line),) = judged(tmp_path / "data", tmp_path / "tasks")
    assert code == "task-data" and "writing.yaml" in line and "bash scripts/prepare_data.sh" in line


def test_a_task_file_with_a_mistake(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "tasks" / "writing.yaml").write_text("name: writing\ntyp: gen\n")
    found = judged(tmp_path / "data", tmp_path / "tasks")
    assert found and all(code == "task-file" and "writing.yaml" in line for code, line in found)
    ((code, line),) = judged(tmp_path / "data", tmp_path / "other")
    assert code == "task-file" and "name those of tasks/" in line and "edit" not in line


def test_a_data_file_that_cannot_be_read(tmp_path, monkeypatch):
    write_tasks(tmp_path)
    monkeypatch.setattr(model.os, "access", lambda path, mode: "writing" not in str(path))  # root may read everything
    ((code, line),) = judged(tmp_path / "data", tmp_path / "tasks")
    assert code == "data-readable" and "chmod a+r " in line


# The configuration, as the scripts read it


def configured(tmp_path, text, **environment):
    (tmp_path / "mine.sh").write_text(text, encoding="utf-8", newline="")
    values, findings = read_settings({"CONFIG": str(tmp_path / "mine.sh"), **environment}, "here")
    return values, [(one.code, str(one)) for one in findings]


def test_the_configurations_that_are_here_are_read():
    for file in ROOT.glob("configs/*.sh"):
        values, findings = read_settings({"CONFIG": f"configs/{file.name}"}, "here")
        assert findings == [] and values.checkpoint and command.complaint(list(values.arguments)) is None
    values, _ = read_settings({}, "here")
    assert values.checkpoint == str(ROOT / "checkpoints" / "glm-small") and values.degree == 1


def test_the_environment_wins_as_in_the_scripts(tmp_path):
    text = (ROOT / "configs" / "model_glm_130b.sh").read_text()
    values, findings = configured(tmp_path, text, CHECKPOINT_PATH="/data/two words", MP_SIZE="4")
    assert findings == [] and (values.checkpoint, values.degree) == ("/data/two words", 4)
    assert values.arguments == ("--model", "glm-130b", "--fp16")


def test_line_ends_of_windows_are_no_part_of_a_value(tmp_path):
    text = (ROOT / "configs" / "model_glm_130b.sh").read_text()
    plain, _ = configured(tmp_path, text)
    windows = configured(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))
    assert windows == (plain, [])


def test_a_configuration_that_is_not_there():
    _, (finding,) = read_settings({"CONFIG": "configs/no_such.sh"}, "here")
    assert finding.code == "config" and "no such file (there are: configs/model_glm_130b.sh" in finding.what


@pytest.mark.parametrize("text, why", [
    ("CHECKPOINT_PATH=/x\nif then\n", "syntax error"), ("MP_SIZE=1\n", "CHECKPOINT_PATH: unbound variable"),
    ("echo no such disk >&2; exit 3", "no such disk")])
def test_a_configuration_that_bash_cannot_read(tmp_path, text, why):
    _, ((code, line),) = configured(tmp_path, text)
    assert code == "config-script" and why in line and f"bash -n {tmp_path}/mine.sh" in line


def test_a_configuration_with_a_wrong_degree(tmp_path):
    values, ((code, line),) = configured(tmp_path, "CHECKPOINT_PATH=/x\nMP_SIZE=two\nMODEL_ARGS=()\necho hello\n")
    assert code == "mp-size" and "MP_SIZE=two" in line and values.degree == 1


def test_what_the_parser_says_of_a_configuration_s_flags():
    assert "unknown argument '--modle'" in command.complaint(["--modle", "glm-130b"])
    assert command.complaint(["--fp16", "--model", "glm-130b"]) is None


def test_bash_is_not_there(monkeypatch):
    def nobody(*_, **__):
        raise FileNotFoundError("no bash")

    monkeypatch.setattr(subprocess, "run", nobody)
    _, (finding,) = read_settings({}, "here")
    assert finding.code == "config-script" and "no bash" in finding.what


def test_only_our_own_variables_are_shown():
    assert own_variables({"SECRET_TOKEN": "x", "MP_SIZE": "2", "PATH": "/bin"}) == {"MP_SIZE": "2"}
