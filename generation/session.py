"""A session: queries in, answers out as they are made, and commands that show and change the options.

On a terminal what fills a blank is marked by colour.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence

from generation.blanks import Beam, Filled, Prompt, fault, filled, joined, joint, note_on_left_over
from generation.fill import begin, fill
from generation.params import OWN, Options, SamplingParams, values_of, without_effect
from generation.texts import INCOMPLETE, begun_stop, cut
from runtime import parallel
from runtime.errors import UserError
from runtime.show import counted

QUERY = "Query ('stop' ends, /help) >>> "
HELP = """\
A query is a text with [MASK] (a short span), [sMASK] (a sentence) or [gMASK]
(free text at the end); without any, the text is continued. Commands:
  /show                  the options and their values
  /set NAME VALUE        change one, such as /set top_p 0.9, /set seed none,
                         /set strategy BeamSearchStrategy, /set stop ["\\n", "."]
  /reset                 the options as they were at the start
  /help                  this text
  stop, /quit, Ctrl-D    end; Ctrl-C stops an answer"""
UNDERLINE, GREEN, PLAIN = "\x1b[4m", "\x1b[0;32m", "\x1b[0m"


class Session:
    """A user's options and how to reach the user.

    read(): gives the next line; raises EOFError at the end. write(text): shows text at once. note(text): shows a line
    about an answer (errors, time taken). colour: whether terminal codes are written.
    streams: whether sampled tokens are shown as they come; beam search shows its answer when it is complete.
    """

    help = HELP

    def __init__(self, model, tokenizer, options: Options, read: Callable[[], str], write: Callable[[str], None],
                 note: Callable[[str], None], colour: bool, streams: bool = True):
        self.model, self.tokenizer, self.form = model, tokenizer, model.config.prompt_form.within(tokenizer.commands)
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
            self.write(self.help + "\n")
        elif name == "/show":
            self.write(shown(self.options))
        elif name == "/reset":
            self.options = self.first_options
            self.write(shown(self.options))
        elif name == "/set" and len(words) == 2:
            self.options = self.options.with_text(*words)
            option = words[0].strip("-").replace("-", "_")
            self.write(f"{option} = {_text(self.options.values()[option])}\n")
            if line := without_effect(self.options, [option], self.model.config.max_sequence_length):
                self.note(f"note: {line}")
        elif name == "/set":
            raise UserError("/set needs the name of an option and a value, for example: /set top_p 0.9")
        else:
            raise UserError(f"unknown command {name}; there are /help, /show, /set, /reset and /quit")

    def answer(self, text: str) -> None:
        if wrong := fault(text):
            raise UserError(f"{wrong} (/help says what a query may hold)" if "empty" in wrong else wrong)
        if (line := note_on_left_over(text, self.form)) and not self.is_told_of_kinds:
            self.is_told_of_kinds = True
            self.note(f"note: {line}")
        params = self.options.params
        if params.seed is None:
            params = dataclasses.replace(params, seed=secrets.randbits(53))
        filling = parallel.broadcast_object(begin(text, self.model, self.tokenizer, params, self.options.stop))
        prompt = filling.prompt
        stream = AnswerStream(prompt, self.tokenizer, self.write, self.colour, filling.ends, filling.stops)
        start = time.monotonic()
        try:
            ((_, result),) = fill(self.model, self.tokenizer, {0: filling}, lambda _, blank, token: stream.add(
                blank, token if self.streams else None))
        except KeyboardInterrupt:
            stream.stop()
            raise
        seconds = time.monotonic() - start
        if result.error is not None:
            raise UserError(result.error)
        if self.streams and isinstance(params, SamplingParams):
            stream.finish()
            self.write("\n")
        else:
            beams = result.beams if self.options.print_all_beams else result.beams[:1]
            self.write(lines_of([(coloured(prompt, beam) if self.colour else beam.text, beam.score)
                                 for beam in beams]))
        tokens = counted(stream.num_tokens, "token")
        self.note(f"{tokens}, {seconds:.2f} s, {stream.num_tokens / seconds:.1f} tokens/s"
                  + (", cut off at the limit" if result.finish_reason == "length" else ""))


def follow(model, tokenizer) -> None:
    """What the other tensor-parallel ranks do during a session: the same, silently."""
    while (filling := parallel.broadcast_object(None)) is not None:
        list(fill(model, tokenizer, {0: filling}))


def lines_of(beams: list[tuple[str, float | None]]) -> str:
    """Texts with their scores, a line each; of one alone the text."""
    if len(beams) == 1:
        return f"{beams[0][0]}\n"
    return "".join(f"[{number}] {score:.4f}  {text}\n" for number, (text, score) in enumerate(beams, 1))


def shown(options: Options) -> str:
    """The options, a line each; those that the present strategy does not use in brackets."""
    used = {*values_of(options.params), *OWN}
    rows = [(name, _text(value)) for name, value in options.values().items()]
    return "".join(f"  {name} = {value}\n" if name in used else f"  ({name} = {value})\n" for name, value in rows)


def _text(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False)
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def line_editing(is_terminal: bool):
    """Editing and a history, where the input is a terminal; nothing elsewhere.

    The history outlives the session only in a file that the user names (GLM_HISTORY), and only the user may read it:
    queries may be private.
    """
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


def marks(prompt: Prompt) -> tuple[str, str]:
    """Terminal codes before and after a filled blank."""
    return (UNDERLINE, PLAIN) if prompt.advances else (GREEN + UNDERLINE, PLAIN + PLAIN)


def coloured(prompt: Prompt, beam: Beam) -> str:
    """A beam's text with its blanks marked."""
    return joined(prompt.typed, beam.filled, *marks(prompt))


class Detokenizer:
    """Turns the tokens of a blank into text piece by piece; a character of several byte tokens appears when it is
    whole, and what may become a stop text when it has not."""

    def __init__(self, tokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._shown = ""
        self.is_new_word = False

    def add(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        return self._new(is_all=False)

    def finish(self) -> str:
        """What was held back and is not going to be completed."""
        return self._new(is_all=True)

    def _new(self, is_all: bool) -> str:
        found = filled(self._ids, self._tokenizer)
        self.is_new_word, text = found.is_new_word, found.text if is_all else found.text.rstrip(INCOMPLETE)
        whole, text = text, cut(text, self._stops)
        if not is_all and len(text) == len(whole):
            text = text[:len(text) - begun_stop(text, self._stops)]
        if not text.startswith(self._shown):  # cannot be taken back; happens for no tokenizer we know
            return ""
        new, self._shown = text[len(self._shown):], text
        return new


class AnswerStream:
    """Writes one answer as it comes: text before the first blank, the blank token by token, and so on.

    What has been written in the end is the result's text, with its blanks marked if `colour`.
    """

    def __init__(self, prompt: Prompt, tokenizer, write: Callable[[str], None], colour: bool, ends: Collection[int],
                 stops: Sequence[str] = ()):
        """ends, stops: tokens and texts that end a blank."""
        self._stops = stops
        self._prompt, self._tokenizer, self._write, self._ends = prompt, tokenizer, write, ends
        self._begin, self._end = marks(prompt) if colour else ("", "")
        self._blank, self._text, self._is_begun = -1, None, False
        self._before = ""  # what has been written, without codes
        self.num_tokens = 0

    def add(self, blank: int, token: int | None) -> None:
        """The next token of blank number `blank`; None (beam search, which can change its mind) is only counted."""
        self.num_tokens += 1
        if token is None:
            return
        if blank != self._blank:
            self._close()
            self._blank, self._text, self._is_begun = blank, Detokenizer(self._tokenizer, self._stops), False
            self._put(self._prompt.typed[blank])
        if token not in self._ends and (new := self._text.add(token)):
            self._put_in_blank(new)

    def finish(self) -> None:
        """The text behind the last blank."""
        self._close()
        self._put(self._prompt.typed[-1])

    def stop(self) -> None:
        """The answer is given up: leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._text is not None:
            self._put_in_blank(self._text.finish())
            self._write(self._end)
            self._text = None

    def _put_in_blank(self, new: str) -> None:
        if not self._is_begun:
            self._put(joint(self._before, Filled(new, self._text.is_new_word)))
            self._write(self._begin)
            self._is_begun = True
        self._put(new)

    def _put(self, text: str) -> None:
        self._before += text
        self._write(text)
