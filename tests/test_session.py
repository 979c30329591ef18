"""Sessions: answers as they come, commands, Ctrl-C; alone, through a pipe and on a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from generation import BeamParams, SamplingParams, fill_blanks
from generation.blanks import split
from generation.params import Options
from generation.session import PLAIN, Detokenizer, Session, coloured
from kernels.cache import cache_folder
from tests.faults import SECONDS
from tests.golden_data import SHAPE, TOKENIZER, TP1
from tests.test_generation_cli import CASES, GREEDY, MODEL, ROOT


@pytest.fixture(scope="module")
def loaded():
    import glm

    return glm.load(TP1, tokenizer_path=TOKENIZER, **SHAPE)


def converse(loaded, *lines: str, colour: bool = False, streams: bool = True, **options) -> tuple[str, list[str]]:
    """What a session writes and notes."""
    waiting, written, notes = list(lines), [], []

    def read():
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    Session(*loaded, Options().changed(**options), read, written.append, notes.append, colour, streams).run()
    return "".join(written), notes


def answer(loaded, number: int, **beams):
    """What the library answers to a golden prompt."""
    params = BeamParams(**beams) if beams else SamplingParams(top_k=1, out_seq_length=80)
    return fill_blanks(*loaded, [CASES[number]["prompt"]], params)[0]


def in_colour(loaded, number: int, beam) -> str:
    return coloured(split(CASES[number]["prompt"], loaded[1]), beam)


@pytest.mark.parametrize("number", [0, 1, 2, 4, 7, 11, 13, 14])
@pytest.mark.parametrize("colour", [True, False])
def test_a_streamed_answer_is_the_library_s(loaded, number, colour):
    beam = answer(loaded, number).beams[0]
    written, notes = converse(loaded, CASES[number]["prompt"], "stop", colour=colour, top_k=1, out_seq_length=80)
    assert written == (in_colour(loaded, number, beam) if colour else beam.text) + "\n"
    assert re.fullmatch(r"(1 token|\d+ tokens), \d+\.\d\d s, \d+\.\d tokens/s(, cut off at the limit)?", notes[-1])


def test_beam_search_and_no_stream_show_the_complete_answer(loaded):
    case, beams = CASES[36], dict(no_repeat_ngram_size=3, out_seq_length=72)
    wanted, options = answer(loaded, 36, **beams), dict(strategy="BeamSearchStrategy", **beams)
    written, _ = converse(loaded, case["prompt"], **options)
    assert written == wanted.text + "\n\n"  # the last newline is Ctrl-D's
    written, _ = converse(loaded, case["prompt"], "stop", print_all_beams=True, colour=True, **options)
    assert written == "".join(
        f"[{number}] {score:.4f}  {in_colour(loaded, 36, beam)}\n" for number, (score, beam) in
        enumerate(zip(case["calls"][-1]["scores"], wanted.beams, strict=True), 1))
    written, _ = converse(loaded, CASES[0]["prompt"], "stop", streams=False, top_k=1, out_seq_length=80)
    assert written == answer(loaded, 0).text + "\n"


def test_commands(loaded):
    written, notes = converse(
        loaded, "/set top_p 0.9", "/set out-seq-length=40", "/set seed none", "/set print_all_beams on", "/show",
        "/set strategy BeamSearchStrategy", "/reset", "/help", "/set top_q 1", "/set top_p much", "/set top_k 1.5",
        "/set top_p", "/foo", "", "a [mask] b", "x \udcff", "/quit", "never read")
    assert written.startswith("top_p = 0.9\nout_seq_length = 40\nseed = none\nprint_all_beams = on\n")
    assert "  top_p = 0.9\n" in written and "  (num_beams = 4)\n" in written
    assert "  top_p = 0.7\n" in written  # after /reset
    assert "/set top_p 0.9" in written
    assert notes == [
        "note: without effect: print_all_beams (only with BeamSearchStrategy and several beams)",
        "error: unknown option 'top_q'; did you mean top_p?",
        "error: top_p 'much': must be a number",
        "error: top_k '1.5': must be a whole number",
        "error: /set needs the name of an option and a value, for example: /set top_p 0.9",
        "error: unknown command /foo; there are /help, /show, /set, /reset and /quit",
        "error: the prompt is empty (/help says what a query may hold)",
        "error: unknown mask [mask], did you mean [MASK]?; allowed: [MASK], [sMASK], [gMASK]",
        "error: text is not valid UTF-8 at character 2: '\\udcff'"]


@pytest.mark.parametrize("colour", [True, False])
def test_stop_texts(loaded, colour):
    """What is streamed never shows the beginning of one; /set knows them, alone or as a list."""
    beam, options = answer(loaded, 0).beams[0], dict(colour=colour, top_k=1, out_seq_length=80)
    blank = beam.blanks[-1]
    stop = blank[len(blank) // 2:][:4]
    cut = fill_blanks(*loaded, [CASES[0]["prompt"]], SamplingParams(top_k=1, out_seq_length=80), stops=[stop, "zzz"])[0]
    assert len(cut.text) < len(beam.text) and cut.finish_reason == "stop"
    shown = (in_colour(loaded, 0, cut.beams[0]) if colour else cut.text) + "\n"
    written, notes = converse(loaded, f"/set stop {json.dumps([stop, 'zzz'])}", CASES[0]["prompt"], "stop", **options)
    assert written == f"stop = {json.dumps([stop, 'zzz'], ensure_ascii=False)}\n{shown}"
    assert "cut off" not in notes[-1]
    assert converse(loaded, CASES[0]["prompt"], "stop", stop=(stop, "zzz"), streams=False, **options)[0] == shown
    told, _ = converse(loaded, "/set stop [DONE]", '/set stop "\\n"', "/set stop none", "/set stop []")
    assert told.splitlines() == ['stop = ["[DONE]"]', 'stop = ["\\n"]', "stop = none", "stop = none", ""]


def test_an_interrupted_answer_keeps_the_session(loaded):
    model, tokenizer = loaded
    written, notes, lines = [], [], ["/set top_k 1", "/set out_seq_length 80", CASES[0]["prompt"], "interrupt me",
                                     CASES[1]["prompt"], "stop"]

    def read():
        line = lines.pop(0)
        if line == "interrupt me":
            raise KeyboardInterrupt
        return line

    def write(text):
        written.append(text)
        if len(notes) == 0 and len(written) == 9:
            raise KeyboardInterrupt

    Session(model, tokenizer, Options(), read, write, notes.append, True).run()
    assert notes[:2] == ["(stopped)", "('stop' or Ctrl-D ends)"]
    shown = "".join(written)
    assert shown.endswith(in_colour(loaded, 1, answer(loaded, 1).beams[0]) + "\n")
    assert shown.count("\x1b[0;32m\x1b[4m") == 1 and shown.count(PLAIN + PLAIN) == 1  # nothing stays underlined


def test_help_and_options_fit_on_80_columns(loaded):
    written, _ = converse(loaded, "/help", "/show", "stop")
    lines = written.splitlines()
    assert any("/set NAME VALUE" in line for line in lines) and max(map(len, lines)) <= 80


def test_half_characters_are_never_shown(loaded):
    tokenizer = loaded[1]
    ids = tokenizer.encode("a\N{GRINNING FACE}b天")
    stream = Detokenizer(tokenizer)
    parts = [stream.add(token) for token in ids]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids)
    assert "\N{GRINNING FACE}" in "".join(parts)
    assert not any("\ufffd" in part for part in parts)
    stream = Detokenizer(tokenizer)
    assert [stream.add(token) for token in ids[:-2] if token > 23087][:3] == ["", "", ""]
    assert stream.finish() != "" or ids  # an unfinished character appears as U+FFFD in the end


def test_a_session_through_a_pipe(loaded):
    """No codes, answers alone on standard output, invalid UTF-8 survives."""
    text = CASES[1]["prompt"].encode() + b"\nbad \xff\n" + CASES[2]["prompt"].encode() + b"\n"
    done = subprocess.run([sys.executable, "-m", "generation", *MODEL, *GREEDY], input=text, capture_output=True,
                          cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = [answer(loaded, number).text for number in (1, 2)]
    assert done.stdout.decode() == "\n".join([*answers, "", ""])
    errors = done.stderr.decode().splitlines()
    assert len(errors) == 3 and errors[1].startswith("error: text is not valid UTF-8")


def test_a_session_on_a_terminal(loaded, tmp_path):
    """Colour, Ctrl-C in an answer and at the query, history, Ctrl-D."""
    shown = in_colour(loaded, 2, answer(loaded, 2).beams[0])
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.environ.setdefault("GLM_KERNEL_CACHE", str(cache_folder()))  # compiling takes long on a busy machine
        os.environ.update(HOME=str(tmp_path), GLM_HISTORY=str(tmp_path / "history"), TERM="dumb",
                          PYTHONIOENCODING="utf-8")
        os.environ.pop("NO_COLOR", None)
        os.execv(sys.executable, [sys.executable, "-m", "generation", *MODEL, "--top-k", "1"])
    try:
        screen = Screen(terminal)
        screen.wait_for(">>> ")
        screen.type("/set out_seq_length 80\n")
        screen.wait_for("out_seq_length = 80")
        screen.type(CASES[2]["prompt"] + "\n")
        screen.wait_for(shown)
        screen.wait_for(" tokens/s\x1b[0m")
        screen.wait_for(">>> ")
        # readline overlooks a signal between showing the query and waiting for keys
        screen.type("\x03")
        while not screen.shows("('stop' or Ctrl-D ends)", seconds=5):
            screen.type("\x03")
        screen.type("/set out_seq_length none\n")
        screen.wait_for("out_seq_length = none")
        is_stopped = False
        while not is_stopped:
            screen.type(CASES[8]["prompt"] + "\n")  # a long answer
            screen.wait_for("\x1b[4m")
            screen.type("\x03")
            is_stopped = screen.wait_for("(stopped)", "('stop' or Ctrl-D ends)") == "(stopped)"  # it may end before
            screen.wait_for(">>> ")
        screen.type("\x04")
        assert os.waitstatus_to_exitcode(screen.wait_for_end(process)) == 0
        assert CASES[2]["prompt"] in (tmp_path / "history").read_text(encoding="utf-8")
        assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["history"]  # nothing else in the user's home
    finally:
        os.close(terminal)
        try:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


class Screen:
    """What a program has written to a terminal."""

    def __init__(self, terminal: int):
        self.terminal, self.text = terminal, b""

    def type(self, text: str):
        os.write(self.terminal, text.encode())

    def shows(self, *texts: str, seconds: float) -> str | None:
        """Read until one of them has appeared, and forget what came up to its end; None: the time was over."""
        end = time.monotonic() + seconds
        while not (found := [text for text in texts if text.encode() in self.text]):
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            self.text += os.read(self.terminal, 4096).replace(b"\r\n", b"\n")
        self.text = self.text.partition(found[0].encode())[2]
        return found[0]

    def wait_for(self, *texts: str) -> str:
        found = self.shows(*texts, seconds=SECONDS)
        assert found, f"{texts} did not appear; there is {self.text.decode(errors='replace')!r}"
        return found

    def wait_for_end(self, process: int) -> int:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return status
            if select.select([self.terminal], [], [], 0.05)[0]:
                try:
                    os.read(self.terminal, 4096)
                except OSError:  # the other side is closed
                    time.sleep(0.05)
        raise AssertionError("the program did not end")
