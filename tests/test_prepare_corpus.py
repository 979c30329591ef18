"""Texts of one's own become a corpus: what a document is, what is held out, and mistakes."""

import json
import lzma

import numpy as np
import pytest

from runtime.errors import UserError
from tests.golden_data import TOKENIZER
from tools import export_checkpoint, prepare_corpus, pretrain, train_vocabulary
from tools.preparing.texts import divided, documents_of, is_held_out, without_end
from tuning.corpus_run import Lines, read_log

VOCABULARY = TOKENIZER / "ice_text.model"
SENTENCES = [f"The {number}th sentence of a text that somebody has written." for number in range(60)]


def prepared(folder, name, data, *more):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    prepare_corpus.main(["--vocabulary", str(VOCABULARY), "--inputs", str(folder / name), "--output",
                         str(folder / "corpus"), "--processes", "1", *more])
    facts = json.loads((folder / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    return facts[name.partition(".")[0]]


@pytest.mark.parametrize("between", ["", " ", "\t ", "\u3000", "\n", " \n\t"], ids=repr)
def test_lines_without_a_visible_character_separate_documents(between):
    text = f"one\n  two \n{between}\nthree\n{between}\n"
    assert documents_of(text.split("\n")) == ["one\n  two ", "three"]


def test_the_hash_chooses_documents_wherever_they_stand():
    train, held_out = divided(SENTENCES, 0.3)
    assert sorted(train + held_out) == sorted(SENTENCES)
    assert held_out == [sentence for sentence in SENTENCES if is_held_out(sentence, 0.3)]
    assert set(divided(SENTENCES[::-1], 0.3)[1]) == set(held_out)


@pytest.mark.parametrize("documents, characters, kept, end", [
    (["one two three"], 5, ["one two "], ["three"]),
    (["one two\nthree four"], 8, ["one two"], ["three four"]),
    (["一二三四五六"], 2, ["一二三四"], ["五六"]),
    (["one", "two", "three"], 8, ["one"], ["two", "three"]),
    (["one"], 5, [], ["one"]),
])  # fmt: skip
def test_the_end_of_a_text(documents, characters, kept, end):
    assert without_end(documents, characters) == (kept, end)


@pytest.mark.parametrize("between", ["\n", "\n \n"], ids=["one document", "lines of a blank"])
def test_a_single_text_is_trained_on(tmp_path, capsys, between):
    facts = prepared(tmp_path, "mytext.txt", between.join(SENTENCES))
    assert facts["held_out"]["tokens"] >= 12 and facts["train"]["tokens"] > 5 * facts["held_out"]["tokens"]
    assert facts["held_out_by"] == "place" and "held out, the end of the text" in capsys.readouterr().out
    begin, end = (np.load(tmp_path / "corpus" / f"mytext{suffix}.npy") for suffix in ("", ".heldout"))
    assert (len(begin), len(end)) == (facts["train"]["tokens"], facts["held_out"]["tokens"])
    pretrain.main(["--corpus", str(tmp_path / "corpus"), "--vocabulary", str(VOCABULARY), "--output",
                   str(tmp_path / "run"), "--num-layers", "1", "--hidden-size", "16", "--num-attention-heads", "2",
                   "--inner-hidden-size", "24", "--steps", "1", "--rows", "1", "--width", "32", "--threads", "1",
                   "--evaluation-rows", "1"])
    (entry,) = read_log(tmp_path / "run" / "log.jsonl")
    assert set(entry["held_out"]) == {"mytext", "mytext [MASK]"}
    config = json.loads((tmp_path / "run" / "model_config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == 3344, "as many as the vocabulary has"
    assert "\nstep 1 of 1: loss " in capsys.readouterr().out


def test_a_text_from_windows_is_the_same_text(tmp_path):
    text = "\n\n".join(SENTENCES)
    plain = prepared(tmp_path, "plain.txt", text)
    assert prepared(tmp_path, "windows.txt", "\ufeff" + text.replace("\n", "\r\n"))["train"] == plain["train"]
    assert prepared(tmp_path, "packed.txt.xz", lzma.compress(text.encode()))["train"] == plain["train"]


@pytest.mark.parametrize("name, data, more, message", [
    ("a.txt", "few words", [], "a.txt: 4 tokens are too little to train on; give more text"),
    ("a.txt", "", [], "a.txt: 0 tokens are too little to train on"),
    ("a.txt", "\n\n".join(SENTENCES), ["--held-out", "0"], "argument --held-out: 0 is not a share"),
    ("a.txt", "\n\n".join(SENTENCES), ["--held-out", "1"], "argument --held-out: 1 is not a share"),
    ("a.txt", "Stra\u00dfe\n".encode("latin-1"), [], "a.txt:1: not valid UTF-8 at byte 5"),
    ("a.txt", b"\x1f\x8b\x08", [], "a.txt: is compressed by gzip"),
    ("a.txt.xz", b"plain text", [], "a.txt.xz: is not, or not all of, what xz has written"),
    ("a.txt", "x", ["--inputs", "one/a.txt", "two/a.txt.xz"], "two files are called a"),
    ("a.txt", "x", ["--inputs", "no_such.txt"], "no_such.txt: No such file"),
    ("a.txt", "x", ["--holdout", "0.1"], "unknown argument '--holdout'; did you mean --held-out?"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(tmp_path, capfd, name, data, more, message):
    with pytest.raises((UserError, SystemExit)) as end:
        prepared(tmp_path, name, data, *more)
    said = (str(end.value) if isinstance(end.value, UserError) else capfd.readouterr().err).rstrip("\n")
    assert message in said and "\n" not in said


def test_more_pieces_than_a_text_has_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("few words\n")
    command = ["--inputs", str(tmp_path / "a.txt"), "--output", str(tmp_path / "v"), "--pieces", "5000"]
    with pytest.raises(UserError, match=r"--pieces 5000: this text is enough for \d+ at most; give more text"):
        train_vocabulary.main(command)


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_a_vocabulary_of_no_text_is_told(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=r"a.txt: there is no text to learn pieces from"):
        train_vocabulary.main(["--inputs", str(tmp_path / "a.txt"), "--output", str(tmp_path / "v")])


@pytest.mark.parametrize("tool", [train_vocabulary, prepare_corpus, pretrain, export_checkpoint])
def test_help_shows_every_default(tool):
    parser = tool.make_parser()
    entries = {entry.split()[0]: " ".join(entry.split()) for entry in parser.format_help().split("\n  --")[1:]}
    said = {flag: entry for flag, entry in entries.items() if "(default: " in entry}
    with_default = {action.option_strings[0][2:]: action.default for action in parser._actions if action.default
                    and action.default != "==SUPPRESS=="}
    assert with_default and set(with_default) <= set(said)
    assert all(str(default) in said[flag] for flag, default in with_default.items())


def test_a_training_has_a_line_by_time_not_by_steps():
    now = iter([0.0, 30.0, 30.1, 39.9, 40.0, 41.0, 1000.0])
    lines = Lines(110, 32, clock=lambda: next(now))
    assert [lines.after(step, 1.5) for step in range(101, 107)] == [
        "step 101 of 110: loss 1.500, 1 tokens/s, 4 min 30 s left", None, None,
        "step 104 of 110: loss 1.500, 10 tokens/s, 20 s left", None,
        "step 106 of 110: loss 1.500, 0 tokens/s, 32 min 00 s left"]
    now = iter([0.0, 1.0, 2.0])
    lines = Lines(110, 32, clock=lambda: next(now))
    lines.after(101, 1.5)
    assert lines.after(102, 1.5, {"zh": 2.0, "zh [MASK]": 3.0}) == (
        "step 102 of 110: loss 1.500, 32 tokens/s, 8.0 s left; held out: zh 2.000, zh [MASK] 3.000")
