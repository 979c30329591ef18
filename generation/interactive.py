"""A session: queries in, answers out as they are made, and commands that show and change the options."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable

from generation.blanks import split
from generation.effect import without_effect
from generation.infill import fill_blanks
from generation.masks import kind_of, left_over, note_on_left_over
from generation.options import Options
from generation.prompts import fault
from generation.streaming import AnswerStream, coloured
from runtime import parallel
from runtime.errors import UserError
from runtime.show import counted

QUERY = "Query ('stop' ends, /help) >>> "
HELP = """\
A query is a text with [MASK] (a short span), [sMASK] (a sentence) or [gMASK]
(free text at the end); without any, the text is continued. Commands:
  /show                  the options and their values
  /set NAME VALUE        change one, such as /set top_p 0.9, /set seed none or
                         /set strategy BeamSearchStrategy
  /reset                 the options as they were at the start
  /help                  this text
  stop, /quit, Ctrl-D    end; Ctrl-C stops an answer"""


class Session:
    """Everything a session needs; `read`, `write` and `note` are its only ways to the outside.

    read(): the next line, EOFError at the end. write(text): shows text at once; note(text) shows a line that is about
    an answer, not of it (errors, time taken). colour: use terminal codes in what is written.
    streams: show sampled tokens as they come; beam search shows its answer when it is complete in any case.
    """

    def __init__(self, model, tokenizer, options: Options, read: Callable[[], str], write: Callable[[str], None],
                 note: Callable[[str], None], colour: bool, streams: bool = True):
        self.model, self.tokenizer = model, tokenizer
        self.first_options = self.options = options
        self.read, self.write, self.note = read, write, note
        self.colour, self.streams = colour, streams
        self.is_told_of_kinds = False

    def run(self) -> None:
        """Read and answer until the end of the input, "stop" or /quit."""
        while True:
            try:
                line = self.read()
            except EOFError:
                self.write("\n")
                return
            except KeyboardInterrupt:
                self.write("\n")
                self.note("('stop' or Ctrl-D ends)")
                continue
            words = line.strip()
            if words in ("stop", "/quit", "/exit"):
                return
            try:
                if words.startswith("/"):
                    self.command(words)
                else:
                    self.answer(line.rstrip("\r\n"))
            except UserError as error:
                self.note(f"error: {error}")
            except KeyboardInterrupt:
                if parallel.size() > 1:  # the other ranks cannot be stopped in the middle of an answer
                    raise
                self.write("\n")
                self.note("(stopped)")

    def command(self, line: str) -> None:
        name, *words = re.split(r"[\s=]+", line, maxsplit=2)
        if name == "/help":
            self.write(HELP + "\n")
        elif name == "/show":
            self.write(shown(self.options))
        elif name == "/reset":
            self.options = self.first_options
            self.write(shown(self.options))
        elif name == "/set" and len(words) == 2:
            changed = self.options.with_text(*words)
            self.options = changed
            option = words[0].strip("-").replace("-", "_")
            self.write(f"{option} = {_text(getattr(changed, option))}\n")
            if line := without_effect(changed, [option], self.model.config.max_sequence_length):
                self.note(f"note: {line}")
        elif name == "/set":
            raise UserError("/set needs the name of an option and a value, for example: /set top_p 0.9")
        else:
            raise UserError(f"unknown command {name}; there are /help, /show, /set, /reset and /quit")

    def answer(self, text: str) -> None:
        wrong = fault(text)
        if wrong is not None:
            raise UserError(f"{wrong} (/help says what a query may hold)" if "empty" in wrong else wrong)
        if (masks := left_over(text)) and not self.is_told_of_kinds:
            self.is_told_of_kinds = True
            self.note(f"note: {note_on_left_over(masks[0], kind_of(text))}")
        params = self.options.params()
        prompt = split(text, self.tokenizer)
        stream = AnswerStream(prompt, self.tokenizer, self.write, self.colour)
        parallel.broadcast_object((text, params))
        begin = time.monotonic()
        try:
            result = fill_blanks(self.model, self.tokenizer, [text], params, on_step=lambda _, blank, token: stream.add(
                blank, token if self.streams else None))[0]
        except KeyboardInterrupt:
            stream.stop()
            raise
        seconds = time.monotonic() - begin
        if result.error is not None:
            raise UserError(result.error)
        if self.streams and self.options.strategy == "BaseStrategy":
            stream.finish()
            self.write("\n")
        else:
            beams = result.beams if self.options.print_all_beams else result.beams[:1]
            self.write(lines_of([(coloured(prompt, beam, self.tokenizer) if self.colour else beam.text, beam.score)
                                 for beam in beams]))
        tokens = counted(stream.num_tokens, "token")
        self.note(f"{tokens}, {seconds:.2f} s, {stream.num_tokens / seconds:.1f} tokens/s"
                  + (", cut off at the limit" if result.finish_reason == "length" else ""))


def follow(model, tokenizer) -> None:
    """What the other tensor-parallel ranks do during a session: the same, silently."""
    while (request := parallel.broadcast_object(None)) is not None:
        text, params = request
        fill_blanks(model, tokenizer, [text], params)


def lines_of(beams: list[tuple[str, float | None]]) -> str:
    """Texts with their scores, a line each; of one alone the text."""
    if len(beams) == 1:
        return f"{beams[0][0]}\n"
    return "".join(f"[{number}] {score:.4f}  {text}\n" for number, (text, score) in enumerate(beams, 1))


def shown(options: Options) -> str:
    """The options, a line each; those that the present strategy does not use in brackets."""
    used = {field.name for field in dataclasses.fields(options.params())} | {"strategy", "print_all_beams"}
    used |= {"stochastic_beams"} if "stochastic" in used else set()
    rows = [(name, _text(value)) for name, value in dataclasses.asdict(options).items()]
    return "".join(f"  {name} = {value}\n" if name in used else f"  ({name} = {value})\n" for name, value in rows)


def _text(value: object) -> str:
    if value is None:
        return "none"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def line_editing(is_terminal: bool):
    """Editing and a history, where the input is a terminal; nothing elsewhere. The history outlives the session only in
    a file that the user names (GLM_HISTORY), which is then his alone to read: queries may be nobody else's business."""
    try:
        import readline
    except ImportError:  # a Python without it (Windows)
        readline = None
    if readline is None or not is_terminal:
        yield
        return
    path = os.environ.get("GLM_HISTORY")
    with contextlib.suppress(OSError):  # none yet
        readline.read_history_file(path or os.devnull)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        if path:
            with contextlib.suppress(OSError):  # a place that cannot be written is no reason to fail
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                readline.write_history_file(path)
