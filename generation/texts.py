"""The text that generated tokens add, token by token: whole characters only, cut at stop texts; and tokens' names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

INCOMPLETE = "\ufffd"  # what a tokenizer shows for bytes that are no whole character (yet)
LONGEST_CHARACTER = 4  # bytes of UTF-8


def cut(text: str, stops: Sequence[str], begin: int = 0) -> str:
    """A text up to the first stop text that begins at or behind the place `begin`; all of it where there is none."""
    places = [place for stop in stops if (place := text.find(stop, begin)) >= 0]
    return text[:min(places)] if places else text


def begun_stop(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop text."""
    return max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)


class Names:
    """How tokens are shown, each by itself and in a text."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.commands = {token: f"[{name.strip('[]<>')}]" for name, token in tokenizer.commands.items()
                         if not name.startswith("<")}  # <t>, <blank_2> ... stand for text

    def behind(self, ids: Sequence[int]) -> str:
        """The text of ids behind other text, with the blank that the first stands for; commands as [name]."""
        parts, stretch = [], []
        for token in ids:
            if (name := self.commands.get(token)) is None:
                stretch.append(token)
                continue
            parts += [self._plain(stretch), name]
            stretch = []
        return "".join(parts) + self._plain(stretch)

    def first(self, ids: Sequence[int]) -> str:
        """The text of ids with nothing in front of it."""
        text = self.behind(ids)
        return text[1:] if text.startswith(" ") else text

    def token(self, token: int) -> str:
        """One token's name: its text, `bytes:\\xe4` for a byte, [name] for a command."""
        text = self.behind([token])
        if INCOMPLETE not in text:
            return text
        byte = token - (self.tokenizer.num_tokens - 256)
        return f"bytes:\\x{byte:02x}" if 0 <= byte < 256 else text

    def distinct(self, tokens: Sequence[int], chosen: int, chosen_name: str) -> list[str]:
        """Names of a token's alternatives, no two alike."""
        taken, names = {chosen_name}, []
        for token in tokens:
            name = chosen_name if token == chosen else self.token(token)
            if token != chosen and name in taken:
                name = f"{name}#{token}"
            taken.add(name)
            names.append(name)
        return names

    def _plain(self, ids: list[int]) -> str:
        return self.tokenizer.decode_behind(ids) if ids else ""


class Text:
    """The text of one answer while it is made.

    before: the text that it follows, at whose end a blank makes the answer's own superfluous. stops: texts that end it.
    shape: what is shown of a text, and whether that is all of it; what it has shown of a part it shows of the whole.
    spell: the text of all ids, where they are not to be spelt one after another.
    """

    def __init__(self, names: Names, ends: Collection[int], before: str, stops: Sequence[str] = (),
                 shape: Callable[[str, bool], str] = lambda text, _: text,
                 spell: Callable[[Sequence[int]], str] | None = None):
        self._names, self._ends, self._stops, self._shape, self._spell = names, ends, stops, shape, spell
        self._has_blank = not before or before[-1] == " "
        self._longest = max(map(len, stops), default=1)
        self._pending: list[int] = []  # bytes of a character that is not complete; with spell all ids
        self._taken, self._is_finished = 0, False
        self.text = ""
        self.is_stopped = False

    def add(self, token: int) -> int:
        """Where in the text the token begins."""
        place = len(self.text)
        if token not in self._ends and not self.is_stopped:
            self._pending.append(token)
            if self._spell is not None:
                self.text = self._spell(self._pending)
                self._cut_at_stop(0)
                return place
            found = self._names.behind(self._pending)
            if not found.endswith(INCOMPLETE) or len(self._pending) == LONGEST_CHARACTER:
                self._append(found)
        return place

    def finish(self) -> None:
        """No token follows."""
        if self._pending and not self.is_stopped and self._spell is None:
            self._append(self._names.behind(self._pending))
        self._is_finished = True

    def new(self) -> str:
        """What has become certain since the last call."""
        is_all = self.is_stopped or self._is_finished
        held_back = 0 if is_all else begun_stop(self.text, self._stops)
        text = self._shape(self.text[:len(self.text) - held_back], is_all)[self._taken:]
        self._taken += len(text)
        return text

    @property
    def shown(self) -> int:
        """Characters that `new` has given out."""
        return self._taken

    def _append(self, found: str) -> None:
        self._pending = []
        if not self.text and self._has_blank and found.startswith(" "):
            found, self._has_blank = found[1:], False
        begin = max(0, len(self.text) - self._longest + 1)
        self.text += found
        self._cut_at_stop(begin)

    def _cut_at_stop(self, begin: int) -> None:
        whole, self.text = self.text, cut(self.text, self._stops, begin)
        self.is_stopped = len(self.text) < len(whole)
