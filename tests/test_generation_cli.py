"""python -m generation: arguments, files in and out, sessions; on golden's checkpoint."""

import io
import json
import os
import re
import sys
from pathlib import Path
from time import strftime

import pytest

import commands.generate as command
import glm
from generation import BeamParams, SamplingParams, fill_blanks
from generation.prompt_file import read_prompts
from generation.records import Results, file_names, timed_path
from runtime.errors import UserError
from runtime.files import safe_name
from tests.golden_data import GOLDEN, SHAPE, TOKENIZER, TP1
from tests.parallel_helper import run_ranks

ROOT = Path(__file__).resolve().parent.parent
CASES = [json.loads(line) for line in (GOLDEN / "generation.jsonl").read_text(encoding="utf-8").splitlines()]
MODEL = ["--load", str(TP1), "--tokenizer-path", str(TOKENIZER / "ice_text.model"), "--fp32", "--device", "cpu",
         *(f"--{name}={value}" for name, value in SHAPE.items())]
GREEDY = ["--top-k", "1", "--out-seq-length", "80"]


@pytest.fixture(scope="module")
def answer():
    """What the library answers to a golden prompt: greedily, as GREEDY says, or by beam search."""
    loaded = glm.load(TP1, tokenizer_path=TOKENIZER, **SHAPE)

    def answered(case: dict, **beams):
        params = BeamParams(**beams) if beams else SamplingParams(top_k=1, out_seq_length=80)
        return fill_blanks(*loaded, [case["prompt"]], params)[0]

    return answered


def run_file(folder: Path, text: str | bytes, *arguments: str) -> int:
    source = folder / "prompts.txt"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    return command.main([*MODEL, "--input-source", str(source), "--output-path", str(folder / "out"), *arguments])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()]


# Files


@pytest.mark.parametrize("answers, said", [(None, False), ("", False), ('{"index": 0}\n', True)])
def test_there_is_something_to_go_on_with_once_something_is_answered(tmp_path, monkeypatch, capsys, answers, said):
    def fails(*_):
        if answers is not None:
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "results.jsonl").write_text(answers, encoding="utf-8")
        raise OSError(5, "Input/output error", "shard")

    monkeypatch.setattr(command, "loaded", fails)
    assert run_file(tmp_path, "a\n") == 2
    then = f"; --resume goes on from here: {tmp_path / 'out'}" if said else ""
    assert capsys.readouterr().err.splitlines()[-1] == f"error: shard: Input/output error{then}"


def test_a_file_of_prompts(tmp_path, capsys, answer):
    prompts = [case["prompt"] for case in CASES[:4]]
    assert run_file(tmp_path, "\n".join(prompts) + "\n", *GREEDY) == 0
    assert capsys.readouterr().out == f"4 of 4 prompts answered, 0 failed: {tmp_path / 'out' / 'results.jsonl'}\n"
    for index, (record, case) in enumerate(zip(records(tmp_path), CASES, strict=False)):
        assert record == {
            "index": index, "prompt": case["prompt"], "text": answer(case).text, "blanks": answer(case).blanks,
            "beams": [{"text": answer(case).text, "blanks": answer(case).blanks, "score": None}],
            "finish_reason": record["finish_reason"]}
        name = "-".join(re.findall(r"[^\W_]+", case["prompt"][:20])) + r"_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.txt"
        (path,) = [path for path in (tmp_path / "out").iterdir() if re.fullmatch(name, path.name)]
        assert path.read_text(encoding="utf-8") == answer(case).text + "\n"
    settings = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert settings["facts"]["top_k"] == 1 and settings["facts"]["checkpoint_iteration"] == "49300"
    assert settings["counts"] == {"prompts": 4, "answered": 4, "failed": 0, "resumed": 0}


@pytest.mark.parametrize("prompt, name", [
    ("Once upon a time there was", "Once-upon-a-time-the_2026-11-28_02-49-02.txt"),
    ("The sky is [MASK].", "The-sky-is-MASK_2026-11-28_02-49-02.txt"),
    ("话说宝玉听了，[sMASK]", "话说宝玉听了-sMASK_2026-11-28_02-49-02.txt"),
    ("../../etc; rm -rf $HOME", "etc-rm-rf-H_2026-11-28_02-49-02.txt"),
    ("[gMASK]", "gMASK_2026-11-28_02-49-02.txt"),
    ("...\N{GRINNING FACE}\ud800", "prompt_2026-11-28_02-49-02.txt"),
])
def test_names_of_prompts_without_id(tmp_path, monkeypatch, prompt, name):
    """Nothing that a shell would have to be told to take as it is; the whole date; no file is replaced."""
    now = (2026, 11, 28, 2, 49, 2, 5, 332, 0)
    monkeypatch.setattr("generation.records.time.strftime", lambda form: strftime(form, now))
    assert timed_path(tmp_path, prompt) == tmp_path / name
    (tmp_path / name).touch()
    assert timed_path(tmp_path, prompt) == tmp_path / name.replace(".txt", "-2.txt")


def test_beams_and_ids(tmp_path, answer):
    cases = [CASES[33], CASES[36]]
    text = "".join(f"{name}\t{case['prompt']}\n" for name, case in zip(("first", "../b"), cases, strict=True))
    assert run_file(tmp_path, text, "--with_id", "--sampling-strategy", "BeamSearchStrategy", "--num_beams=4",
                    "--no-repeat-ngram-size", "3", "--length-penalty", "1.0", "--out-seq-length", "72") == 0
    for record, case, name in zip(records(tmp_path), cases, ("first", "../b"), strict=True):
        assert record["id"] == name
        beams = answer(case, no_repeat_ngram_size=3, out_seq_length=72).beams
        assert [beam["text"] for beam in record["beams"]] == [beam.text for beam in beams]
        assert [beam["blanks"] for beam in record["beams"]] == [beam.blanks for beam in beams]
        assert [beam["score"] for beam in record["beams"]] == pytest.approx(case["calls"][-1]["scores"], abs=1e-3)
        text = (tmp_path / "out" / f"{safe_name(name)}.txt").read_text(encoding="utf-8")
        assert text == "".join(f"{beam.text}\n" for beam in beams)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prompts.txt"]


def test_faulty_lines_get_one_message_each_and_the_others_answers(tmp_path, capsys):
    long = CASES[75]["prompt"]
    text = b"word\n\nI like [XMASK]\nbad \xff\n" + long.encode() + b"\n" + CASES[73]["prompt"].encode() + b"\nword"
    assert run_file(tmp_path, text, "--top-k", "1", "--out-seq-length", "64") == 2
    source = tmp_path / "prompts.txt"
    messages = capsys.readouterr().err.splitlines()
    for number, message in (
        (2, "the prompt is empty"),
        (3, "unknown mask [XMASK], did you mean [MASK]?; allowed: [MASK], [sMASK], [gMASK]"),
        (4, "not valid UTF-8 at byte 5 of the line"),
        (5, "text too long: the prompt has 721 tokens, the model takes 512 at most (max_sequence_length)"),
        (6, "no room for an answer: prompt and sop have 110 tokens, out_seq_length is 64; raise it (to 512 at most) or "
            "shorten the prompt"),
    ):
        assert f"error: {source}:{number}: {message}" in messages
        assert records(tmp_path)[number - 1]["error"] == message
        assert records(tmp_path)[number - 1]["finish_reason"] == "error"
    assert sum(message.startswith("error: ") for message in messages) == 5
    answers = [record["text"] for record in records(tmp_path) if "error" not in record]
    assert len(answers) == 2 and answers[0] == answers[1] != ""


def test_earlier_results_are_not_overwritten_by_accident(tmp_path, capsys):
    assert run_file(tmp_path, "word", *GREEDY) == 0
    before = records(tmp_path)
    assert run_file(tmp_path, "other", *GREEDY) == 2
    assert "results.jsonl is there already; --resume goes on with it, --overwrite replaces" in capsys.readouterr().err
    assert records(tmp_path) == before
    assert run_file(tmp_path, "other", *GREEDY, "--overwrite") == 0
    assert [record["prompt"] for record in records(tmp_path)] == ["other"]


def test_resume_skips_what_is_done_and_mends_a_torn_line(tmp_path, capsys):
    prompts = ["word", "a [MASK] b", "a much too long prompt " * 20, "today", "song"]
    text = "\n".join(prompts)
    assert run_file(tmp_path, text, *GREEDY) == 2
    whole = records(tmp_path)
    path = tmp_path / "out" / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # killed: two answers out of order, and half a line
    kept = json.dumps(whole[0] | {"text": "kept"}) + "\n"
    path.write_text(lines[3] + kept + lines[1][:40], encoding="utf-8")
    assert run_file(tmp_path, text, *GREEDY, "--resume") == 2
    assert "2 of 5 prompts answered, 2 there already, 1 failed" in capsys.readouterr().out
    assert [record["text"] for record in records(tmp_path)] == ["kept", *(record["text"] for record in whole[1:])]
    # another prompt in a line is answered anew
    assert run_file(tmp_path, text.replace("word", "new"), *GREEDY, "--resume") == 2
    assert records(tmp_path)[0]["prompt"] == "new"


def test_resume_with_other_settings_is_refused(tmp_path, capsys):
    assert run_file(tmp_path, "word", *GREEDY) == 0
    assert run_file(tmp_path, "word", "--top-k", "1", "--out-seq-length", "70", "--resume") == 2
    assert "settings.json: the earlier run had out_seq_length 80, this one has 70" in capsys.readouterr().err
    assert run_file(tmp_path, "word", *GREEDY, "--resume", "--batch-size", "1") == 0


def test_resume_refuses_a_file_that_is_no_results_file(tmp_path, capsys):
    assert run_file(tmp_path, "word", *GREEDY) == 0
    (tmp_path / "out" / "results.jsonl").write_text("nonsense\n" + json.dumps({"index": 0}) + "\n")
    assert run_file(tmp_path, "word", *GREEDY, "--resume") == 2
    assert "results.jsonl:1: not a line of results" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["--input-source", "nowhere.txt"], "--input-source nowhere.txt: No such file or directory; name a file"),
    ([__file__], f"unknown argument '{__file__}'; did you mean --input-source {__file__}?"),
    (["--top-q", "1"], "unknown argument '--top-q'; did you mean --top-"),
    (["--top-p", "2"], "top_p 2.0: must lie between 0 and 1"),
    (["--temperature", "warm"], "argument --temperature: invalid float value: 'warm'"),
    (["--num-beams", "0"], "num_beams 0: must be a whole number of at least 1"),
    (["--sampling-strategy", "Beam"], "argument --sampling-strategy: invalid choice: 'Beam'"),
    (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
    (["--load", "nowhere"], "--load nowhere: no such folder; name the one that holds the checkpoint's file 'latest'"),
    (["--resume", "--overwrite"], "argument --overwrite: not allowed with argument --resume"),
])
def test_mistakes_in_the_arguments(arguments, message, capsys):
    try:
        code = command.main([*MODEL, *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_an_output_path_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run_file(tmp_path, "word", *GREEDY) == 2
    assert f"error: --output-path {tmp_path / 'out'}: File exists" in capsys.readouterr().err


def test_reading_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\ttwo\nc\tthree\td\nno tab\nc\tagain\n\n")
    assert [line.text for line in read_prompts(path)][:2] == ["one", "\ttwo"]
    lines = read_prompts(path, with_id=True)
    assert [(line.number, line.id, line.text) for line in lines if line.error is None] == [(3, "c", "three\td")]
    assert [line.error for line in lines if line.error] == [
        *["no id: with --with-id a line is an id, a tab and the prompt"] * 3, "the id 'c' stands in line 3 too",
        "the prompt is empty"]
    path.write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        read_prompts(path)


def test_ids_that_look_alike_as_names_get_different_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a/b\tx\na_b\ty\n")
    assert file_names(read_prompts(path, with_id=True)) == ["a_b.txt", "a_b-2.txt"]


def test_a_full_disk_is_a_clear_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_text("x\ny\n")
    result = type("R", (), {"text": "", "blanks": [], "beams": [], "finish_reason": "stop", "error": None})
    write = os.write

    def full(file, data):
        if len(data) > 30:
            return write(file, data[:30])
        raise OSError(28, os.strerror(28))

    with Results(tmp_path / "out", read_prompts(path)) as results:
        results.open({})
        results.add(0, result)
        before = results.path.read_bytes()
        monkeypatch.setattr(os, "write", full)
        message = "results.jsonl: No space left on device; what is answered is kept: mend it and go on with --resume"
        with pytest.raises(UserError, match=message):
            results.add(1, result)
    assert results.path.read_bytes() == before


# Tensor parallel


def on_each_rank(folder: str, checkpoint: str, number: int):
    """One rank of a run over a file, and of fill_blanks with a seed that only the first rank draws."""
    import torch

    from runtime import parallel

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    arguments = [*MODEL, "--load", checkpoint, "--model-parallel-size", str(world)]
    output = sys.stdout = io.StringIO()
    code = command.main([*arguments, *GREEDY, "--input-source", f"{folder}/prompts.txt", "--output-path",
                         f"{folder}/out"])
    parsed = command.parser().parse_args(arguments)
    model, tokenizer = command.load_model(parsed)
    sampled = fill_blanks(model, tokenizer, ["word", "a [MASK]"], SamplingParams(max_gen_length=8))
    return code, output.getvalue(), [result.text for result in sampled], parallel.size()


def test_two_ranks(tmp_path, answer):
    """The first rank reads and writes; all draw the same tokens."""
    import torch

    from glm.checkpoint import shard_name
    from tests.golden_data import split_state, whole_state

    checkpoint = tmp_path / "tp2"
    (checkpoint / "1").mkdir(parents=True)
    (checkpoint / "latest").write_text("1")
    for rank, state in enumerate(split_state(whole_state(), 2)):
        torch.save({"module": state}, checkpoint / "1" / shard_name(rank))
    (tmp_path / "prompts.txt").write_text(CASES[1]["prompt"] + "\n\n" + CASES[4]["prompt"], encoding="utf-8")
    (tmp_path / "meeting").mkdir()
    first, second = run_ranks(on_each_rank, 2, tmp_path / "meeting", str(tmp_path), str(checkpoint), 0)
    assert first[0] == second[0] == 2  # one line is empty
    assert first[1].startswith("2 of 3 prompts answered") and second[1] == ""
    assert first[2] == second[2]
    assert first[3] == 2
    found = records(tmp_path)
    assert [found[0]["text"], found[2]["text"]] == [answer(CASES[1]).text, answer(CASES[4]).text]
