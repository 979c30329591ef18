"""Showing an answer, whole or while it is made: the prompt's own text, and what fills its blanks, marked by colour."""

from __future__ import annotations

from collections.abc import Callable

from generation.blanks import Beam, Prompt
from generation.joining import Filled, filled, joined, joint

UNDERLINE, GREEN, PLAIN = "\x1b[4m", "\x1b[0;32m", "\x1b[0m"
_INCOMPLETE = "\ufffd"  # what the tokenizer shows for bytes that are no whole character (yet)


def marks(prompt: Prompt) -> tuple[str, str]:
    """Terminal codes before and after a filled blank."""
    return (UNDERLINE, PLAIN) if prompt.kind == "[gMASK]" else (GREEN + UNDERLINE, PLAIN + PLAIN)


def coloured(prompt: Prompt, beam: Beam, tokenizer) -> str:
    """A beam's text with its blanks marked."""
    return joined(prompt.typed, [filled(ids, tokenizer) for ids in beam.blank_ids], *marks(prompt))


class Detokenizer:
    """Turns the tokens of a blank into text piece by piece; a character of several byte tokens appears when it is
    whole."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""
        self.is_new_word = False

    def add(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        return self._new(_INCOMPLETE)

    def finish(self) -> str:
        """What was held back and is not going to be completed."""
        return self._new("")

    def _new(self, held_back: str) -> str:
        found = filled(self._ids, self._tokenizer)
        self.is_new_word, text = found.is_new_word, found.text.rstrip(held_back) if held_back else found.text
        if not text.startswith(self._shown):  # cannot be taken back; happens for no tokenizer we know
            return ""
        new, self._shown = text[len(self._shown):], text
        return new


class AnswerStream:
    """Writes one answer as it comes: text before the first blank, the blank token by token, and so on.

    What has been written in the end is the result's text, with its blanks marked if `colour`.
    """

    def __init__(self, prompt: Prompt, tokenizer, write: Callable[[str], None], colour: bool):
        self._prompt, self._tokenizer, self._write = prompt, tokenizer, write
        self._begin, self._end = marks(prompt) if colour else ("", "")
        self._ends = {tokenizer.command("eop"), tokenizer.command("eos")}
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
            self._blank, self._text, self._is_begun = blank, Detokenizer(self._tokenizer), False
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
