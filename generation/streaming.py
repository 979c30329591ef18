"""Showing an answer while it is made: the text of tokens as they come, and the prompt's own text around the blanks."""

from __future__ import annotations

from collections.abc import Callable

from generation.infill import Prompt, marks, without_eos

_INCOMPLETE = "\ufffd"  # what the tokenizer shows for bytes that are no whole character (yet)


class Detokenizer:
    """Turns tokens into text piece by piece; a character of several byte tokens appears when it is whole."""

    def __init__(self, detokenize: Callable[[list[int]], str]):
        self._detokenize = detokenize
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        return self._new(self._detokenize(self._ids).rstrip(_INCOMPLETE))

    def finish(self) -> str:
        """What was held back and is not going to be completed."""
        return self._new(self._detokenize(self._ids))

    def _new(self, text: str) -> str:
        if not text.startswith(self._shown):  # cannot be taken back; happens for no tokenizer we know
            return ""
        new, self._shown = text[len(self._shown):], text
        return new


class AnswerStream:
    """Writes one answer as it comes: text before the first blank, the blank token by token, and so on.

    What has been written in the end is infill.styled's text, without its codes unless `colour`.
    """

    def __init__(self, prompt: Prompt, tokenizer, write: Callable[[str], None], colour: bool):
        self._prompt, self._tokenizer, self._write = prompt, tokenizer, write
        self._begin, self._end = marks(prompt) if colour else ("", "")
        self._space = " " if prompt.is_ascii else ""
        self._ends = {tokenizer.command("eop"), tokenizer.command("eos")}
        self._blank, self._text = -1, None
        self.num_tokens = 0

    def add(self, blank: int, token: int | None) -> None:
        """The next token of blank number `blank`; None (beam search, which can change its mind) is only counted."""
        self.num_tokens += 1
        if token is None:
            return
        if blank != self._blank:
            self._close()
            self._blank, self._text = blank, Detokenizer(self._tokenizer.detokenize)
            self._write(self._tokenizer.detokenize(self._prompt.stretches[blank]) + self._space + self._begin)
        if token not in self._ends:
            self._write(self._text.add(token))

    def finish(self) -> None:
        """The text behind the last blank."""
        self._close()
        self._write(self._tokenizer.detokenize(without_eos(self._prompt.stretches[-1], self._tokenizer)))

    def stop(self) -> None:
        """The answer is given up: leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._text is not None:
            self._write(self._text.finish() + self._end + self._space)
            self._text = None
