"""A precision that this processor does not multiply is told of once, before loading: generation, evaluation, plan."""

import pytest

import commands.evaluate as evaluation
import commands.generate as generation
from commands.plan import main as plan
from planning import machine
from planning.machine import default_precision
from tests.test_generation_cli import GREEDY, MODEL, run_file
from tests.tiny_tasks import arguments, write_tasks

OLD, NEW = {"fpu", "avx2", "avx512f"}, {"fpu", "avx512_bf16", "avx512_fp16"}


@pytest.mark.parametrize("precision, device, known, lacking", [
    ("bf16", "cpu", OLD, "amx_bf16 or avx512_bf16"),
    ("fp16", "cpu", OLD, "amx_fp16 or avx512_fp16"),
    ("fp16", "cpu", OLD | {"amx_bf16"}, "amx_fp16 or avx512_fp16"),
    ("bf16", "cpu", OLD | {"amx_bf16"}, None),
    ("bf16", "cpu", NEW, None), ("fp16", "cpu", NEW, None),
    ("fp32", "cpu", OLD, None), (None, "cpu", OLD, None),
    ("bf16", "cuda", OLD, None), ("bf16", "cuda:1", OLD, None),
    ("bf16", "cpu", set(), None),  # another system than Linux: nobody knows
])
def test_what_a_processor_does_not_multiply(precision, device, known, lacking):
    assert machine.note_on(precision, device, known) == (lacking and (
        f"--{precision}: this processor has no products of 16-bit numbers ({lacking}), so it reads texts several times "
        "more slowly than with --fp32; for less memory there is --quantization-bit-width 8"))


@pytest.fixture
def old(monkeypatch):
    monkeypatch.setattr(machine, "instructions", lambda: OLD)


def in_bf16(argv: list[str]) -> list[str]:
    return ["--bf16" if word == "--fp32" else word for word in argv]


def notes(capsys) -> int:
    return capsys.readouterr().err.count("note: --bf16: this processor has no products of 16-bit numbers")


def test_in_every_program_once(old, tmp_path, capsys):
    assert default_precision("cpu") == "fp32"
    (tmp_path / "prompts.txt").write_text("word")
    answers = ["--input-source", str(tmp_path / "prompts.txt"), "--output-path", str(tmp_path / "answers")]
    assert generation.main(in_bf16([*MODEL, *answers, *GREEDY, "--max-gen-length", "1"])) == 0
    assert notes(capsys) == 1
    assert evaluation.main(in_bf16(arguments(write_tasks(tmp_path), "--limit", "1"))) == 0
    assert notes(capsys) == 1
    plan(["--model", "glm-small", "--bf16"])
    assert notes(capsys) == 1


def test_nothing_is_said_of_the_default(old, tmp_path, capsys):
    assert run_file(tmp_path, "word", *GREEDY, "--max-gen-length", "1") == 0
    assert "16-bit" not in capsys.readouterr().err
