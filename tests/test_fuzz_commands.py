"""Any words behind a command: it does what it says, or ends with exit code 2 and a line for each mistake.

The commands run in this process up to where a model would be loaded, a doctor would measure, or weights be converted.
"""

import contextlib
import io

import pytest
from hypothesis import strategies as st

import commands.doctor as doctor
import commands.evaluate as evaluation
import commands.generate as generation
import commands.main as models
import commands.quantization as quantization
from commands import compare
from commands import convert as convert_tp
from commands.evaluate import parser as evaluation_parser
from commands.plan import parser as plan_parser
from runtime.arguments import CommandParser
from runtime.errors import UserError
from tests.fuzzing import fuzz, names, only_user_errors, texts
from tests.recorded_runs import MadeTask, choice_item, write_run
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_tasks import write_tasks
from tests.tried import TRIAL
from tools import prepare_data

REACHED = "the model would be loaded now"


def stop(*_, **__):
    raise UserError(REACHED)


def quantization_parser():
    """Its flags as its own parser has them, which is not to be had apart from its answer."""
    found = CommandParser(prog="report")
    for flag in ("--text", "--tasks", "--data-path", "--output", "--device", "--tokenizer-path", "--model"):
        found.add_argument(flag)
    for flag in ("--limit", "--group-sizes", "--window", "--tokens"):
        found.add_argument(flag, type=int)
    return found


# command: (main, the words before all others, words that it needs, its parser)
COMMANDS = {
    "generation": (generation.main, [], ["--load", "checkpoint"], generation.parser()),
    "evaluation": (evaluation.main, [], ["tasks", "--data-path", "data"], evaluation_parser()),
    "evaluation compare": (evaluation.main, ["compare"], ["one", "other"], compare.parser()),
    "glm plan": (models.main, ["plan"], [], plan_parser()),
    "glm doctor": (lambda argv: doctor.parse(argv[1:]) and 0, ["doctor"], [], doctor.make_parser()),
    "quantization report": (quantization.main, ["report"], ["checkpoint"], quantization_parser()),
    "convert_tp": (convert_tp.main, [], ["--input-folder", "checkpoint", "--output-folder", "made", "--target-tp", "2"],
                   convert_tp.make_parser()),
    "verify_checkpoint": (convert_tp.verify, [], ["checkpoint"], convert_tp.make_verify_parser()),
    "prepare_data": (prepare_data.main, [], ["--raw", "data", "--output", "made"], prepare_data.make_parser()),
}
FILES = [
    "prompts.txt", "latin1.txt", "empty", "checkpoint", "tasks", "tasks/choices.yaml", "data", "one", "other",
    "nowhere", "hostfile", "loop", ".", "checkpoint/latest", "checkpoint/49300", "tasks/*.yaml", "a.json",
]
VALUES = [
    "0", "1", "2", "-1", "3.5", "nan", "inf", "-inf", "1e400", "none", "cpu", "cuda", "cuda:0", "cuda:9999999999999999",
    "cpu:1", "meta", "glm-130b", "glm-small", "GLM", "BeamSearchStrategy", "half", "interactive", "H100", "8", "4",
    "128", "2147483648", "1,2,3", "-", "--", "٣",
]
VALUES += ["9" * 30, "9" * 5000, "", " ", "x" * 300, "x/" * 3000, "\udcff\udc80", "\x1b[31m", "a\nb"]
argv_texts = texts.filter(lambda text: "\0" not in text and all(not "\ud800" <= c <= "\udc7f" for c in text))
safe_names = names.filter(lambda name: "\0" not in name and name not in ("//", "/etc/passwd", "\ud800"))
values = st.one_of(st.sampled_from(FILES), st.sampled_from(FILES), st.sampled_from(VALUES), argv_texts, safe_names)


def harmless(word):
    """Not below the root of the file system, where an answer could be written over something."""
    return not word.rpartition("=")[2].lstrip("-").startswith(("/", "~"))


def sum_of(parts):
    return [word for part in parts for word in part]


def fitting(action):
    """Words for an argument that are of its kind, if not allowed for that."""
    if action.nargs == 0:
        return st.just([])
    kinds = {int: st.integers(-1, 300).map(str), float: st.floats(-1, 5).map(str)}
    known = st.sampled_from([*FILES, "cpu", "cuda", "glm-small", "quiz"])
    word = st.sampled_from(list(map(str, action.choices))) if action.choices else kinds.get(action.type, known)
    return word.map(lambda one: [one])


def words_of(parser):
    """Words of the command line: mostly flags with values of their kind, sometimes anything."""
    good = st.sampled_from([action for action in parser._actions if action.dest != "help"]).flatmap(
        lambda action: st.tuples(st.sampled_from(action.option_strings or [""]), fitting(action)).map(
            lambda both: [*filter(None, both[:1]), *both[1]]))
    flags = [flag for action in parser._actions for flag in action.option_strings]
    flag = st.one_of(st.sampled_from(flags), st.sampled_from(flags).map(lambda name: name.replace("-", "_")),
                     st.sampled_from(flags).map(lambda name: name[:-1]), argv_texts.map(lambda text: f"--{text}"))
    word = st.one_of(good, good, good, good, st.tuples(flag, values).map(list), flag.map(lambda one: [one]),
                     st.tuples(flag, values).map(lambda both: [f"{both[0]}={both[1]}"]), values.map(lambda one: [one]))
    return st.lists(word, max_size=5).map(lambda parts: [each for part in parts for each in part if harmless(each)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One with prompts, tasks, data, a checkpoint and two runs, some folders deep."""
    folder = write_tasks(tmp_path_factory.mktemp("commands") / "a" / "b" / "c" / "d")
    (folder / "prompts.txt").write_text("a [MASK] b\n\n[mask]\n", encoding="utf-8")
    (folder / "latin1.txt").write_bytes(b"caf\xe9\n")
    (folder / "empty").touch()
    (folder / "hostfile").write_text("worker-1 slots=2\n", encoding="utf-8")
    (folder / "loop").symlink_to("loop")
    tiny_checkpoint(folder / "checkpoint", 1)
    for name in ("one", "other"):
        write_run(folder / name, [MadeTask("quiz", "mul", {"dev.jsonl": [choice_item(0, 0), choice_item(1, 1)]})])
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_any_words_behind_a_command(folder, monkeypatch, command):
    main, first, needed, parser = COMMANDS[command]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("evaluation.statistics.RESAMPLES", 20)
    monkeypatch.setattr("planning.machine.bandwidth", lambda *_: 1e10)  # what takes its time
    monkeypatch.setattr("planning.machine.matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr("planning.machine.disk_rate", lambda *_: 1e9)
    monkeypatch.setattr("planning.machine.on_ranks", lambda *_: TRIAL)
    for name in ("commands.generate.load_model", "commands.evaluate.load_model", "tools.converting.convert.convert",
                 "tools.quantizing.measure.measure", "tools.preparing.writing.prepare"):  # fmt: skip
        monkeypatch.setattr(name, stop)

    @fuzz(40, words=st.tuples(st.sampled_from([[], needed, needed, needed]), words_of(parser)).map(sum_of))
    def run(words):
        said, complaint = io.StringIO(), io.StringIO()
        with (
            only_user_errors(f"command lines: {command}"),
            contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint),
        ):
            try:
                code = main([*first, *words])
            except SystemExit as end:
                code = end.code or 0
        lines = complaint.getvalue()
        assert code in (0, 1, 2)
        assert "Traceback" not in lines + said.getvalue()
        if code == 2:
            found = [line for line in lines.splitlines() if line.strip()]
            assert found and all(line.startswith(("error: ", "warning: ", "note: ")) for line in found), lines
            assert sum(line.startswith("error: ") for line in found) >= 1

    run()


def test_the_stubs_are_reached(folder, monkeypatch, capsys):
    """What is right is not refused before the model would be loaded."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("commands.generate.load_model", stop)
    assert generation.main(["--input-source", "prompts.txt", "--output-path", "answers", "--seed", "1"]) == 2
    assert REACHED in capsys.readouterr().err
