"""What stands around a sample's text, and which mask its answer fills: what the model's family was trained to see.

    GLM repository    [CLS] text [MASK] text eos | sop answer eop
    GLM-130B                text [MASK] text eos | sop answer       no eos behind a mask at the end
    ChatGLM-6B              text [gMASK]         | sop answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from glm.config import ModelConfig

OF_GLM = "glm"  # the family of the GLM repository's models


@dataclass(frozen=True)
class SampleForm:
    """Names are those of tokenizers' commands; the defaults are the GLM repository's."""

    begin: tuple[str, ...] = ("ENC",)  # in front of a text
    end: str | None = "eos"  # behind it
    no_end_after: tuple[str, ...] = ()  # but not behind a text that ends with one of these masks
    masks: tuple[str, str] = ("[MASK]", "[sMASK]")  # of answers; the second one of texts to be written, with task masks
    advancing: tuple[str, ...] = ()  # masks whose answer's positions count on; those of others are the mask's
    scores_end: bool = True  # that an answer of several tokens ends is part of its score
    pads_sources: bool = True  # to one length, with padding that is seen

    def positions(self, mask: str, place: int, context: int, count: int) -> Sequence[int]:
        """Of an answer's tokens from sop on. place: of its mask in a context of so many tokens."""
        return range(context, context + count) if mask in self.advancing else (place,) * count


GLM_REPOSITORY = SampleForm()


def form_of(config: ModelConfig) -> SampleForm:
    """UserError for a family that fills no masks."""
    if config.family == OF_GLM:
        return GLM_REPOSITORY
    form = config.prompt_form
    if form.is_causal:
        raise UserError(f"a model of the family {config.family} fills no masks, which tuning's tasks are made of; "
                        "those of glm, glm-130b and chatglm do")
    return SampleForm(form.begin, form.end, form.no_end_after, form.task_masks, form.advancing, scores_end=False,
                      pads_sources=False)
