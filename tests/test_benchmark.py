"""tools/benchmark.py: a tiny run gives a table and the JSON file that docs/benchmarks.md is written from."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glm.config import ModelConfig
from quantization.functional import Scheme, dequantize
from runtime import resources
from runtime.errors import UserError
from tests.made_tensors import Made
from tools import benchmark as program
from tools.benchmarking import results
from tools.benchmarking.own import check_places, random_model, shape_of, too_large
from tools.benchmarking.rates import Timing, repeat
from tools.benchmarking.results import decode_result, prefill_result

ROOT = Path(__file__).resolve().parent.parent
SMALL = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2, inner_hidden_size=12, vocab_size=20,
                    max_sequence_length=8)
TINY = shape_of(SMALL)


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """The command in this process: (its words) -> exit code, standard output, standard error."""
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, words)])
        try:
            code = program.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("words", ["model --steps 0", "model --repeats -1", "pairs --rounds 0", "training --steps 0",
                                   "training --rows 0"])
def test_a_count_of_nothing_is_one_line(benchmark, words):
    code, shown, said = benchmark(*words.split())
    *_, flag, count = words.split()
    assert (code, shown, said) == (2, "", f"error: {flag}: {count} is not a whole number of at least 1\n")


def commands_in(text):
    """What follows benchmark.py or benchmark.sh in each command of a text, as words."""
    lines = re.findall(r"^ *(?:bash scripts/benchmark\.sh|python tools/benchmark\.py) (.*)$",
                       text.replace("\\\n", " "), re.M)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_in_help_and_documents_are_taken():
    texts = [(ROOT / name).read_text() for name in ("docs/benchmarks.md", "docs/contributing.md")]
    shown = [commands_in(text) for text in [program.__doc__, *texts]]
    assert all(shown) and len(shown[0]) >= 5
    for words in itertools.chain(*shown):
        program.parse(words)  # a mistake ends the test


def test_help_shows_what_the_documents_name_and_all_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        program.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    sentence = re.search(r"`--device cuda`, [^:]*: see `--help`", (ROOT / "docs/benchmarks.md").read_text()).group()
    flags = set(re.findall(r"--[a-z]+", sentence)) - {"--help"}
    assert not end.value.code and len(flags) >= 6 and all(f" {flag} " in text for flag in flags)
    assert "prompt lengths (default: 128 512 1024 2048)" in text and "(default: [" not in text


@pytest.mark.parametrize("load, warns", [(2.1, False), (6.0, False), (6.1, True)])
def test_a_crowded_machine_is_told_of(capsys, load, warns):
    results.show([], {"cores": 4, "load": load}, {})
    assert (f"warning: {load} programs want the 4 cores" in capsys.readouterr().out) == warns


def test_parameters_flops_and_shares_by_hand():
    layer = 24 * 8 + 8 * 8 + 24 * 8 + 8 * 12
    assert TINY.layer_parameters == 2 * layer and TINY.parameters == 2 * layer + 20 * 8
    timing = Timing(median=0.5, best=0.4, repeats=3)
    prefill = prefill_result("x", "bf16", TINY, 10, timing, ceiling=1e5, bytes_per_weight=2)
    assert prefill.tokens_per_second == 20
    assert prefill.share == pytest.approx(2 * (10 * 2 * layer + 160) / 0.5 / 1e5)
    decode = decode_result("x", "bf16", TINY, 100, 4, timing, ceiling=1e4, bytes_per_weight=2)
    assert decode.tokens_per_second == 8  # four rows a step, two steps a second
    assert decode.share == pytest.approx(2 * (2 * layer + 160) / 0.5 / 1e4)


def test_the_median_is_reported_and_warm_up_does_not_count():
    calls = []
    timing = repeat(lambda: calls.append(1), repeats=3, warm_up=2)
    assert len(calls) == 5 and timing.repeats == 3 and timing.best <= timing.median
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3)


def test_a_tiny_run_writes_the_table_and_the_file(benchmark, tmp_path):
    file = tmp_path / "result.json"
    code, out, err = benchmark("--model", "glm-small", "--prefill", 8, "--contexts", 4, "--steps", 2, "--repeats", 1,
                               "--dtype", "fp32", "--buffer-mb", 16, "--against", "llama.cpp", "--json", file)
    assert code == 0, err
    values = json.loads(file.read_text())
    expected = {"schema", "date", "command", "machine", "versions", "model", "settings", "results", "skipped"}
    assert values.keys() == expected
    assert values["versions"]["torch"] and values["machine"]["processor"]
    own = [r for r in values["results"] if r["engine"] == "glm"]
    measured = [(r["kind"], r["tokens"], r["width"]) for r in own]
    assert measured == [("prefill", 8, 1), ("decode", 4, 1), ("decode", 4, 4)]
    for result in own:
        assert result["seconds_best"] <= result["seconds_median"] and result["share_of_ceiling"] > 0
        assert result["rate"] > 0 and result["tokens_per_second"] > 0
    assert "Decoding" in out and "Prefill" in out
    if "llama.cpp" in values["skipped"]:
        assert "pip install llama-cpp-python" in values["skipped"]["llama.cpp"]
        assert "pip install llama-cpp-python" in out


def test_packed_weights_are_measured_beside_plain_ones(benchmark, tmp_path):
    file = tmp_path / "result.json"
    code, _, err = benchmark("--model", "glm-small", "--prefill", 8, "--contexts", 4, "--widths", 1, "--steps", 2,
                             "--repeats", 1, "--bits", 8, 4, "--group-size", 64, "--buffer-mb", 16, "--json", file)
    assert code == 0, err
    found = [(r["precision"], r["kind"], r["weight_bytes"]) for r in json.loads(file.read_text())["results"]]
    assert [name for name, *_ in found] == [name for name in ("bf16", "bf16, INT8 g64", "bf16, INT4 g64") for _ in "12"]
    layers, vocabulary = 5 * 384 * (4 * 384 + 3 * 1024), 16384 * 384
    expected = [layer * layers + of_vocabulary * vocabulary
                for layer, of_vocabulary in ((2, 2), (1 + 2 / 64, 1), (0.5 + 2 / 64, 1)) for _ in "12"]
    assert [size for *_, size in found] == pytest.approx(expected)


@pytest.mark.parametrize("scheme", [None, Scheme(8), Scheme(4), Scheme(4, 32)])
def test_a_quantised_model_is_never_whole_in_16_bits(scheme):
    config = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=2, inner_hidden_size=96, vocab_size=64,
                         max_sequence_length=16)
    with Made("cpu") as made:
        model = random_model(config, torch.float16, "cpu", scheme)
    assert sum(made.sizes) == model.weight_bytes()
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        logits = model.logits(tokens, tokens)
    assert logits.isfinite().all() and 0.05 < logits.std() < 0.5
    spread = model.transformer.layers[1].mlp.dense_4h_to_h
    whole = (spread.weight.float() if scheme is None else
             dequantize(spread.weight, spread.weight_scale, scheme.bits, torch.float32))
    assert whole.std().item() == pytest.approx(0.02, rel=0.2)


def test_glm_130b_is_measured_as_far_as_it_fits():
    config = ModelConfig.from_name("glm-130b")
    assert too_large(config, "fp16", 80 * 10**9) == "its weights take 257.4 GB, 80.0 GB are free"
    assert too_large(config, "fp16", 258 * 10**9) is None


def test_what_does_not_fit_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resources, "free_memory", lambda device: 10**6)
    command = ["model", "--model", "glm-small", "--prefill", "--contexts", "4", "--widths", "1", "--steps", "1",
               "--repeats", "1", "--buffer-mb", "1"]
    with pytest.raises(UserError, match=r"^glm-small in bf16: its weights take 0.0 GB, 0.0 GB are free; with --bits 4"):
        program.measure_model(program.parse(command))
    program.measure_model(program.parse([*command, "--bits", "4"]))
    shown = capsys.readouterr().out
    assert "glm bf16: not measured: its weights take" in shown and "bf16, INT4" in shown


def test_a_table_of_products(benchmark):
    code, out, err = benchmark("kernels", "--size", 64, 128, "--rows", 1, 50, "--groups", 32, "--matrices", 1,
                               "--repeats", 1)
    assert code == 0, err
    for name in ("torch F.linear", "torch _weight_int8pack_mm", "this, INT8", "this, INT4 g32"):
        assert out.count(f"{name} ") >= 2


ROWS = {
    "bloom/glue_cola/plain/validation": {"choices_pretokenized": ["yes", "no"], "label": 0},
    "CLUE/c3/plain/dev": {"choices_pretokenized": ["a long answer", "short", "none"], "label": 2},
    "lambada/lambada/plain/test": {"targets_pretokenized": ["word"]},
    "CLUE/cmrc2018/plain/dev": {"targets_pretokenized": ["an answer"]},
}


def test_evaluation_on_own_rows(benchmark, tmp_path):
    """The evaluator's batches come to the scores that plain passes over single items come to."""
    for path, fields in ROWS.items():
        file = (tmp_path / "data" / path).with_suffix(".jsonl")
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps({"inputs_pretokenized": "A sentence of words. " * n, **fields}) + "\n"
                                for n in (1, 3, 2)))
    file = tmp_path / "result.json"
    code, out, err = benchmark("evaluation", "--data-path", tmp_path / "data", "--repeats", 1, "--json", file)
    assert code == 0, err
    measured = json.loads(file.read_text())["results"]
    found = [(r["task"], r["kind"], r["items"], list(r["others"])) for r in measured]
    ways = ["choice by choice", "item by item"]
    assert found == [("CoLA", "score", 3, ways), ("C3", "score", 3, ways), ("LAMBADA", "score", 3, ways)] + [
        (name, "generate", 3, ["one at a time"]) for name in ("CMRC2018", "LAMBADA", "questions")]
    for result in measured:
        assert result["same"] == 1 and result["items_per_second"] > 0 and all(result["ratios"].values())
        assert (result["difference"] or 0) < 1e-5
    assert "Scoring" in out and "Generation" in out


@pytest.mark.parametrize("arguments, part", [
    (["evaluation", "--data-path", "nowhere"], "bash scripts/prepare_data.sh prepares it"),
    (["evaluation", "--data-path", "nowhere", "--rows", "0"], "--rows 0: must be at least 1"),
    (["--model", "shape-335n"], "did you mean 'shape-335m'"),
    (["--contexts", "0"], "--contexts: 0"),
    (["pairs", "--rounds", "0"], "--rounds: 0"),
    (["--bits", "4", "--group-size", "32"], "--group-size 32: must divide the columns of the model's"),
    (["kernels", "--size", "64", "100", "--groups", "32"], "multiple of every group size [32]"),
    (["--load", "nowhere"], "nowhere"),
])
def test_a_mistake_is_one_line(benchmark, arguments, part):
    code, _, err = benchmark(*arguments)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("error: ") and part in err


def test_help_needs_no_torch():
    run = ("import runpy, sys\nsys.argv = ['benchmark.py', '--help']\ntry:\n"
           f"    runpy.run_path({str(ROOT / 'tools' / 'benchmark.py')!r}, run_name='__main__')\n"
           "except SystemExit:\n    assert 'torch' not in sys.modules")
    assert subprocess.run([sys.executable, "-c", run], capture_output=True).returncode == 0


def test_positions_that_are_learned_end():
    check_places(ModelConfig.from_name("shape-335m"), [2048], [512], 24)
    for words in (([2048], [1]), ([128], [500])):
        with pytest.raises(UserError, match=r"the model has learned 512 positions; give at most (512|488)"):
            check_places(ModelConfig.from_name("glm-large"), *words, 24)
