"""python -m quantization report: its figures against others' way to them, its files, and a user's mistakes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import glm
from commands.quantization import main, parse
from evaluation.scorer import Scorer
from glm.checkpoint import CONFIG_NAME
from glm.spec import LINEARS
from kernels.packing import dequantize
from quantization.functional import quantize
from tests.faults import said
from tests.golden_data import SHAPE, TOKENIZER, quantized_parts, split_state, whole_state, write_checkpoint
from tests.tiny_tasks import write_tasks
from tools.quantizing.measure import losses_of, windows
from tools.quantizing.show import tables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")


def complete(folder, parts):
    """A golden checkpoint that needs no further arguments: shapes and vocabulary lie beside the weights."""
    write_checkpoint(folder, parts)
    (folder / CONFIG_NAME).write_text(json.dumps(SHAPE))
    shutil.copy(TOKENIZER / "ice_text.model", folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder/model, and folder/tasks with three tasks of which one has choices."""
    folder = write_tasks(tmp_path_factory.mktemp("report"))
    complete(folder / "model", [whole_state()])
    return folder


def command(folder, *more, checkpoint="model"):
    return ["report", str(folder / checkpoint), "--tasks", str(folder / "tasks"), "--data-path", str(folder / "data"),
            "--text", str(folder / "data" / "text" / "test.txt"), "--window", "32", "--tokens", "64", "--device", "cpu",
            "--output", str(folder / "out"), *more]


@pytest.fixture(scope="module")
def report(folder):
    done = subprocess.run([sys.executable, "-m", "quantization", *command(folder, "--group-sizes", "16")], cwd=ROOT,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    return report | {"printed": done.stdout, "said": done.stderr}


# what is in it


def test_every_linear_and_scheme_has_its_errors(report):
    names = ["INT8", "INT4", "INT4 g16"]
    assert [record["scheme"] for record in report["schemes"]] == ["fp32", *names]
    found = [(record["layer"], record["linear"], record["scheme"]) for record in report["linears"]]
    assert found == [(layer, linear, name) for layer in range(4) for linear in LINEARS for name in names]
    for record in report["linears"]:
        low, high = (0.001, 0.02) if record["scheme"] == "INT8" else (0.02, 0.4)
        assert low < record["weight_error"] < high and low / 4 < record["output_error"] < high


def test_errors_of_a_weight_are_those_of_its_definition(report):
    weight = whole_state()["transformer.layers.2.mlp.dense_4h_to_h.weight"]
    difference = dequantize(*quantize(weight, 4, 16), 4, torch.float32) - weight.float()
    (record,) = [record for record in report["linears"] if
                 (record["layer"], record["linear"], record["scheme"]) == (2, "mlp.dense_4h_to_h", "INT4 g16")]
    assert record["weight_error"] == pytest.approx(float(difference.norm() / weight.float().norm()), rel=1e-5)
    assert record["largest_weight_error"] == pytest.approx(float(difference.abs().max()))


@pytest.mark.parametrize("name, bits, group_size", [("fp32", None, None), ("INT8", 8, None), ("INT4 g16", 4, 16)])
def test_the_loss_is_that_of_the_model_as_it_is_loaded(folder, report, name, bits, group_size):
    model, tokenizer = glm.load(folder / "model", bits=bits, group_size=group_size)
    requests = windows(folder / "data" / "text" / "test.txt", tokenizer, 32, 64)
    loss, tokens = losses_of(Scorer(model), requests).sum(axis=0)
    (record,) = [record for record in report["loss"] if record["scheme"] == name]
    assert record["tokens"] == tokens == 64 and record["windows"] == 4
    assert record["loss"] == pytest.approx(loss / tokens, abs=1e-5)
    assert record["increase"] == pytest.approx(record["loss"] - report["loss"][0]["loss"], abs=1e-9)


def test_flips_and_accuracies_are_those_of_the_evaluator(folder, report):
    """Every item of the evaluation's samples, unquantised and in INT4."""
    samples = {}
    for name, flags in (("fp32", []), ("INT4", ["--quantization-bit-width", "4"])):
        output = folder / "evaluated" / name
        command = ["--load", str(folder / "model"), "--fp32", "--device", "cpu", "--data-path", str(folder / "data"),
                   "--output", str(output), str(folder / "tasks" / "choices.yaml"), *flags]
        from commands.evaluate import main as evaluate

        assert evaluate(command) == 0
        samples[name] = [json.loads(line) for path in sorted((output / "samples").rglob("*.jsonl"))
                         for line in path.read_text().splitlines()]
    flips = sum(one["prediction"] != other["prediction"] for one, other in zip(*samples.values(), strict=True))
    record = next(record for record in report["choices"] if record["scheme"] == "INT4")
    right = sum(item["prediction"] == item["label"] for item in samples["INT4"])
    assert (record["n"], record["flips"], record["accuracy"]) == (16, flips, right / 16)
    low, high = record["interval"]
    assert low <= record["share"] == flips / 16 <= high


def test_only_tasks_with_choices_are_asked(report):
    assert report["settings"]["tasks"] == ["choices"]
    assert {record["task"] for record in report["choices"]} == {"choices"}


def test_each_kind_of_linear_alone(folder, report):
    assert [(record["scheme"], record["linear"]) for record in report["sensitivity"]] == [
        (name, linear) for name in ("INT4", "INT4 g16") for linear in LINEARS]
    assert len({record["increase"] for record in report["sensitivity"]}) == 8  # not one of them for another


def test_what_is_printed_and_drawn(folder, report):
    printed = report["printed"]
    for word in ("The model", "nats/token", "flips", "INT4 g16", "attention.query_key_value", "mean",
                 "one kind of linear quantised alone", "64 tokens scored"):
        assert word in printed
    assert said(report["said"]) == ""
    assert max(map(len, printed.splitlines()[:-3])) <= 140
    assert (folder / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_narrow_terminals_get_the_figures_that_fit(report):
    printed = "\n".join(tables(report, 80))
    assert "…" not in printed and "Relative error of outputs, %" in printed and "mean" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_deep_model_s_table_has_means_only(report):
    linears = [record | {"layer": layer} for layer in range(20) for record in report["linears"][:12]]
    _, table, _ = tables(report | {"linears": linears}, 140)
    assert [line.split()[0] for line in table.splitlines()[3:]] == ["mean"] * 5


def test_packed_sizes(report):
    plain, int8, int4, grouped = (record["bits_per_weight"] for record in report["schemes"])
    assert plain == 16 and 8 < int8 < 8.3 and 4 < int4 < 4.3 and grouped == 5  # 4 + 16 bits for 16 weights


def test_every_field_is_documented(report):
    rows = dict(re.findall(r"^\| (`schemes`|`linears`|`loss`|`sensitivity`|`choices`) \| (.*) \|$", DOCUMENT, re.M))
    assert len(rows) == 5
    for name, text_of_row in rows.items():
        for field in report[name.strip("`")][0]:
            assert f"`{field}`" in text_of_row, (name, field)
    top = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`settings`.*?) \|", DOCUMENT, re.M)) + "".join(rows)))
    assert top == set(report) - {"printed", "said"}


# a user's mistakes


def error(capsys, *arguments):
    """The line that is said of them."""
    assert main([*arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_no_checkpoint(folder, capsys):
    assert "nowhere: no such folder; name the one that holds" in error(capsys, *command(folder, checkpoint="nowhere"))
    assert "no readable file" in error(capsys, *command(folder, checkpoint="tasks"))


def test_a_checkpoint_in_parts_is_to_be_merged_first(folder, capsys):
    complete(folder / "halves", split_state(whole_state(), 2))
    assert "--target-tp 1" in error(capsys, *command(folder, checkpoint="halves"))


def test_a_quantised_checkpoint_has_nothing_to_be_compared_with(folder, capsys):
    complete(folder / "int8", quantized_parts(8))
    assert "is quantised already; the report needs the unquantised checkpoint" in error(
        capsys, *command(folder, checkpoint="int8"))


def test_groups_that_do_not_divide(folder, capsys):
    line = error(capsys, *command(folder, "--group-sizes", "16", "48"))
    assert "--group-sizes 48: transformer.layers.0." in line and "groups of 48 columns do not divide 64" in line


def test_texts(folder, capsys, tmp_path):
    for content, what in (("a few words", "at least 31 are needed"), (" \n", "holds no text")):
        (tmp_path / "text.txt").write_text(content)
        assert what in error(capsys, *command(folder, "--text", str(tmp_path / "text.txt")))
    assert f"{tmp_path / 'none'}: No such file" in error(capsys, *command(folder, "--text", str(tmp_path / "none")))


def test_tasks(folder, capsys):
    assert "no multiple-choice task (type: mul) among them" in error(
        capsys, *command(folder, "--tasks", str(folder / "tasks" / "text.yaml")))
    assert "there is no folder" in error(capsys, *command(folder, "--data-path", str(folder / "elsewhere")))


def test_numbers_and_folders(folder, capsys):
    for flag, value in (("limit", "0"), ("tokens", "0"), ("window", "31")):
        assert f"--{flag} {value}: must be at least" in error(capsys, *command(folder, f"--{flag}", value))
    (folder / "file").touch()
    assert f"--output {folder / 'file'}: File exists" in error(capsys, *command(folder, "--output",
                                                                             str(folder / "file")))


def test_several_processes(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "made by one process" in error(capsys, *command(folder))


def test_commands(capsys):
    assert "no command was named; there is: report" in error(capsys)
    with pytest.raises(SystemExit, match="2"):
        main(["reprot"])
    with pytest.raises(SystemExit, match="2"):
        main(["report", "model", "--group-sises", "32"])
    assert "did you mean --group-sizes?" in capsys.readouterr().err
    assert parse(["model", "--data_path", "x"]).data_path == Path("x")


def test_help_comes_without_torch():
    program = ("import sys\nfrom commands.quantization import main\n"
               "try:\n    main(['report', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
               "assert not {'torch', 'sat', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "--group-sizes" in done.stdout
