"""How a family's models were trained to see a prompt: the masks they fill, what stands around a text, where answers go.

No torch here, and no text: a form names commands, which the tokenizer turns into ids.
"""

from __future__ import annotations

from dataclasses import dataclass

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


DEFAULT = PromptForm()
