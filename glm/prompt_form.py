"""How a family's models were trained to see a prompt: the masks they fill, what stands around a text, where answers go.

No torch here, and no text: a form names commands, which the tokenizer turns into ids.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")  # of a text with several kinds the first of these is filled


@dataclass(frozen=True)
class PromptForm:
    """Names are those of tokenizers' commands; the defaults are GLM-130B's."""

    masks: tuple[str, ...] = MASKS  # kinds that are filled; the last one is put behind a text without any
    begin: tuple[str, ...] = ()  # in front of the text
    end: str | None = "eos"  # behind the text, but for one that ends with a mask of `no_end_after`
    no_end_after: tuple[str, ...] = MASKS
    advancing: tuple[str, ...] = ("[gMASK]",)  # masks whose answer's positions count on; those of others are the mask's
    ends: tuple[str, ...] = ("eop", "eos")  # any of these ends an answer
    never: tuple[str, ...] = ()  # none of these is generated
    beam_ranking: str = "glm"  # generation.params.RANKINGS
    is_causal: bool = False  # nothing is filled: the text stands behind `begin`, is read from left to right and goes on
    # In evaluation:
    marks_tasks: bool = False  # `begin` and `end` stand around a row's text, too, and masks in it are masks
    task_masks: tuple[str, str] = ("[MASK]", "[gMASK]")  # put behind a row's text, without and with use_task_mask

    def refused(self, text: str) -> str | None:
        """The first mask in a text that is of a kind the family does not fill."""
        return next((mask for mask in MASKS if mask in text and (self.is_causal or mask not in self.masks)), None)

    def kind_of(self, text: str) -> str:
        """The kind of mask that is filled; where there is none, the one that is put behind the text."""
        return next((mask for mask in self.masks if mask in text), self.masks[-1])

    def within(self, commands: Collection[str]) -> PromptForm:
        """With those masks alone that a vocabulary has."""
        return replace(self, masks=tuple(mask for mask in self.masks if mask in commands))

    def in_front(self, mask: str | None = None) -> tuple[str, ...]:
        """Names of what stands in front of a text that is read from left to right. mask: None: the one that is put
        behind a text without any."""
        return self.begin if self.is_causal else (*self.begin, mask or self.masks[-1], "sop")

    @property
    def counts_on(self) -> bool:
        """Whether positions of such a text count up; else it stands in the blank, and all have its mask's."""
        return self.is_causal or bool(self.advancing)


@dataclass(frozen=True)
class Context:
    """A sequence that an answer follows."""

    ids: tuple[int, ...]  # the answer's first token follows the last one
    first: int  # position of the blank's first token
    advance: int  # 0: the blank's tokens have its position, 1: they count up from it
    opened: int = 0  # tokens of the blank that stand before the last of `ids`: it began with them
    causal: bool = False  # every token sees only what is left of it

    @property
    def shared_position(self) -> int | None:
        """Of all the blank's tokens; None: they count up."""
        return None if self.advance or self.causal else self.first


def left_to_right(before: Sequence[int], text: Sequence[int], counts_on: bool) -> Context:
    """Of a text that is read from left to right and goes on. before, counts_on: as a PromptForm has them."""
    ids = (*before, *text)
    if counts_on:
        return Context(ids, len(ids) - 1, 1, causal=True)
    return Context(ids, len(before) - 2, 0, opened=len(text))  # `before` ends with the mask and sop


DEFAULT = PromptForm()
