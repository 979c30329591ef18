"""The tokenizers of GLM (110M to 10B, English and Chinese): a text vocabulary and commands of their own.

The commands that the vocabulary lacks have the ids behind it. The Hugging Face port (huggingface.py) and the original
in Megatron's style (megatron.py) read the same files and differ in what stands in ``Rules``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm.tokenizers.commands import Command, CommandStrings, cleaned_up, cut, stripped
from glm.tokenizers.interface import valid_ids, valid_text
from glm.tokenizers.vocabulary import Vocabulary, VocabularyTokenizer


@dataclass(frozen=True)
class Rules:
    """How an original treats text beside its vocabulary."""

    between: str  # what stands between a command and its neighbours in a spelled text
    cleans_up: bool  # a spelled text loses the blanks before full stops and the like
    drops_blank_text: bool  # a text of white space alone has no ids
    special: frozenset[int] = frozenset()  # ids that detokenize(special_tokens=False) leaves out


class GLMTokenizer(VocabularyTokenizer):
    """A text vocabulary, and commands that a text may name."""

    def __init__(self, vocabulary: Vocabulary, commands: Mapping[str, int], strings: Mapping[str, Command],
                 rules: Rules, files: Sequence[Path]):
        """commands: name -> id. strings: of a text that become ids where that is asked for; of several with one id
        the last is shown. files: that the ids depend on."""
        size, named = vocabulary.size, set(commands.values())
        shown = {command.token: string for string, command in strings.items()
                 if command.token >= size or command.token in named}
        super().__init__(vocabulary, commands, shown, max(size - 1, *shown) + 1, files)
        self._rules, self._strings = rules, CommandStrings(strings)
        self._added = {token: string for token, string in shown.items() if token >= size}
        self._mask = next(command for command in strings.values() if command.token == commands["[MASK]"])

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        if self._rules.drops_blank_text and not text.strip():
            return []
        return self._strings.encode(valid_text(text), super().encode) if special_tokens else super().encode(text)

    def encode_stretches(self, stretches: Sequence[str]) -> list[list[int]]:
        return list(map(super().encode, stripped(stretches, [self._mask] * (len(stretches) - 1))))

    def detokenize(self, ids: Iterable[int], special_tokens: bool = True) -> str:
        ids = valid_ids(ids, self.num_tokens)
        if not special_tokens:
            ids = [token for token in ids if token not in self._rules.special]
        text = self._rules.between.join(part if isinstance(part, str) else self.vocabulary.detokenize(part)
                                        for part in cut(ids, self._added, self.vocabulary.size))
        return cleaned_up(text) if self._rules.cleans_up else text
