"""Options that change nothing are told of, once; a least above the most is refused, wherever it is said."""

import pytest

import commands.generate as command
from commands.evaluate import oddities
from evaluation.task_file import load_task
from generation import BeamParams, SamplingParams
from generation.params import Options, without_effect
from generation.session import Session
from runtime.errors import UserError
from tests.fake_model import FakeModel
from tests.test_generation_cli import GREEDY, MODEL, run_file

BEAMS = {"strategy": "BeamSearchStrategy"}


@pytest.mark.parametrize("options, given, line", [
    ({}, ["num_beams", "load"], "without effect: num_beams (only with BeamSearchStrategy)"),
    ({}, ["length_penalty", "no_repeat_ngram_size", "stochastic_beams"],
     "without effect: length_penalty (only with BeamSearchStrategy), no_repeat_ngram_size (only with "
     "BeamSearchStrategy), stochastic_beams (only with BeamSearchStrategy)"),
    (BEAMS, ["temperature", "num_beams"], "without effect: temperature (only with BaseStrategy)"),
    (BEAMS, ["seed"], "without effect: seed (only with stochastic_beams)"),
    ({"top_k": 1}, ["top_k", "temperature", "seed"],
     "without effect: temperature (top_k 1 is greedy), seed (top_k 1 is greedy)"),
    ({"print_all_beams": True}, ["print_all_beams"],
     "without effect: print_all_beams (only with BeamSearchStrategy and several beams)"),
    ({"out_seq_length": 4096}, ["out_seq_length"],
     "without effect: out_seq_length (4096 is more than the model takes, 512)"),
    (BEAMS | {"max_gen_length": 513}, ["max_gen_length"],
     "without effect: max_gen_length (513 is more than the model takes, 512)"),
    ({"out_seq_length": 512, "top_p": 0.9}, ["out_seq_length", "top_p", "seed", "temperature", "top_k"], ""),
    (BEAMS | {"stochastic_beams": True, "print_all_beams": True}, ["seed", "num_beams", "print_all_beams"], ""),
    ({"num_beams": 2}, [], ""),  # left at what it was: nobody asked for it
])
def test_what_changes_nothing(options, given, line):
    assert without_effect(Options().changed(**options), given, 512) == line


def test_what_was_said_is_told_from_what_was_not():
    parser = command.parser()
    assert parser.said(["--num_beams=4", "--top-p", "0.7", "--resume"]) == ["num_beams", "top_p", "resume"]
    assert parser.said([]) == []


def test_a_file_of_prompts_gets_one_note(tmp_path, capsys):
    arguments = ["--num-beams", "2", "--no-stream", "--out-seq-length", "4096", "--top-k", "1"]
    assert run_file(tmp_path, "word", *arguments, "--max-gen-length", "2") == 0
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [
        "note: without effect: no_stream (in a session only); without effect: num_beams (only with "
        "BeamSearchStrategy), out_seq_length (4096 is more than the model takes, 512)"]
    assert run_file(tmp_path, "word", *GREEDY, "--max-gen-length", "2", "--overwrite") == 0
    assert "without effect" not in capsys.readouterr().err


def test_in_a_session_at_once(tokenizer):
    lines, notes = ["/set num_beams 2", "/set strategy BeamSearchStrategy", "/set num_beams 3", "stop"], []
    Session(FakeModel(), tokenizer, Options(), lambda: lines.pop(0), lambda text: None, notes.append, False).run()
    assert notes == ["note: without effect: num_beams (only with BeamSearchStrategy)"]


def task(folder, more: str):
    path = folder / "t.yaml"
    path.write_text(f"name: t\ntype: gen\npath: ./t\n{more}\n")
    return load_task(path, folder)


@pytest.mark.parametrize("more, said", [
    ("num_beams: 4\nlength-penalty: 0.5",
     "without effect: num_beams, length_penalty (only with sampling_strategy: BeamSearchStrategy)"),
    ("sampling_strategy: BeamSearchStrategy\nnum_beams: 4", ""),
    ("max_gen_length: 7", ""),
])
def test_keys_of_a_task_file(tmp_path, more, said):
    notes = list(oddities(task(tmp_path, more), 2048))
    assert notes == ([f"note: {tmp_path / 't.yaml'}: {said}"] if said else [])


def test_least_above_most_is_refused_in_the_same_words_everywhere(tmp_path, capsys, tokenizer):
    line = "min_gen_length: must be at most max_gen_length (6), is 10"
    for kind in (SamplingParams, BeamParams):
        with pytest.raises(UserError, match="^min_gen_length: must be at most max_gen_length .6., is 10$"):
            kind(min_gen_length=10, max_gen_length=6)
    assert command.main([*MODEL, "--min-gen-length", "10", "--max-gen-length", "6"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    lines, notes = ["/set max_gen_length 6", "/set min_gen_length 10", "stop"], []
    Session(FakeModel(), tokenizer, Options(), lambda: lines.pop(0), lambda text: None, notes.append, False).run()
    assert notes == [f"error: {line}"]
    with pytest.raises(UserError) as error:
        task(tmp_path, "min_gen_length: 10\nmax_gen_length: 6")
    assert str(error.value) == f"{tmp_path / 't.yaml'}: {line}"
    with pytest.raises(UserError, match="^min_gen_length: must be at most out_seq_length - 2 .18., is 19$"):
        SamplingParams(min_gen_length=19, out_seq_length=20)
    SamplingParams(min_gen_length=6, max_gen_length=6, out_seq_length=8)
