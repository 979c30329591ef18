"""From a row's text to the sequence that its answer follows: what a family puts around it, and where its blank is.

Left of | is the context, whose tokens see each other, right of it the blank, read from left to right; a causal context
is read so, too. The last token before ... is the one that the answer's first token follows.

               mask                        gMASK                         unidirectional
    GLM-130B   text [MASK] | sop ...       text [gMASK] | sop ...        [gMASK] sop text ...  (causal)
    GLM        CLS text [MASK] eos | sop   CLS text [gMASK] eos | sop    CLS [gMASK] | sop text ...
    ChatGLM    text [gMASK] | sop ...      the same                      [gMASK] | sop text ...
    ChatGLM2   [gMASK] sop text ...  (causal), in all cases
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.config import TaskConfig, TaskType
from generation.blanks import MASK_PATTERN
from generation.conversation import FORMATS
from glm.prompt_form import Context, left_to_right
from runtime.errors import UserError


class Contexts:
    """How the texts of a task's rows are put to a model of a family."""

    def __init__(self, config: TaskConfig, tokenizer):
        self._config, self._form, self._tokenizer = config, config.form, tokenizer
        wanted = self._form.task_masks[config.use_task_mask]
        known = [mask for mask in (wanted, *self._form.masks[::-1]) if mask in tokenizer.commands]
        self.mask_name = known[0] if known else wanted
        self.mask, self.sop = tokenizer.command(self.mask_name), tokenizer.command("sop")
        names = (self.mask_name, *(self._form.masks if self._form.marks_tasks else ()))
        self._masks = {tokenizer.command(name): name for name in names if name in tokenizer.commands}
        self._begin = tuple(map(tokenizer.command, self._form.begin)) if self._form.marks_tasks else ()
        self._end = self._form.end if self._form.marks_tasks and not self._form.is_causal else None
        self.ends, self.never = (tuple(map(tokenizer.command, names)) for names in (self._form.ends, self._form.never))

    @property
    def around(self) -> int:
        """How many tokens may stand around a text beside its mask and sop, and a place that GLM-130B's tasks keep free.
        """
        has_end = self._end is not None and not self._config.unidirectional
        return 0 if self._form.is_causal else max(0, len(self._begin) + has_end - 1)

    @property
    def begun(self) -> int:
        """How many of them stand in front of a text that goes on in its blank."""
        return len(self._begin) if not self._form.is_causal else 0

    def encode(self, text: str) -> list[int]:
        """A text's own ids; its masks are masks where the family's tasks have them. For a chat the text is a question.
        """
        if self._config.chat_format is not None:
            return self._tokenizer.encode(FORMATS[self._config.chat_format].prompt((), text))
        masks = MASK_PATTERN.findall(text) if self._form.marks_tasks and not self._form.is_causal else []
        if not masks:
            return self._tokenizer.encode(text)
        stretches = self._tokenizer.encode_stretches(MASK_PATTERN.split(text))
        return [token for ids, mask in zip(stretches, [*masks, None], strict=True)
                for token in (*ids, *(() if mask is None else (self._tokenizer.command(mask),)))]

    def of_text(self, text: Sequence[int]) -> Context:
        """Of a whole text: its first mask is filled; where there is none, one is put behind it."""
        if self._form.is_causal:
            return self._from_left_to_right(text)
        if not self._config.unidirectional:
            return self.with_mask(text)
        if inside := self._first_mask(text):
            raise UserError(f"a unidirectional task cannot fill a {self._masks[text[inside[0]]]} inside the text")
        return self._from_left_to_right(text)

    def with_mask(self, text: Sequence[int], is_closed: bool = False) -> Context:
        """The same, its tokens seeing each other. is_closed: the family's end stands behind any mask."""
        inside = self._first_mask(text)
        ids = (*self._begin, *text, *(() if inside else (self.mask,)))
        place = len(self._begin) + (inside[0] if inside else len(text))
        if self._end and (is_closed or self._masks.get(ids[-1]) not in self._form.no_end_after):
            ids = (*ids, self._tokenizer.command(self._end))
        if self._masks[ids[place]] in self._form.advancing:
            return Context((*ids, self.sop), len(ids), 1)
        return Context((*ids, self.sop), place, int(self._counts_on and not inside))

    def _first_mask(self, text: Sequence[int]) -> list[int]:
        """Its place, in a list of at most one."""
        return [place for place, token in enumerate(text) if token in self._masks][:1]

    @property
    def _counts_on(self) -> bool:
        """Whether the task asks for positions that count on behind a [MASK], which only GLM-130B was trained to see."""
        is_asked = self._config.use_multitask_encoding and self._config.type is TaskType.MULTICHOICE
        return is_asked and bool(self._form.advancing)

    def of_beginning(self, prompt: Sequence[int]) -> Context:
        """Of the beginning of a text that goes on in the blank: its mask and sop stand behind it, nothing else."""
        if self._form.is_causal:
            return self._from_left_to_right(prompt)
        ids = (*self._begin, *prompt, self.mask)
        if self._form.advancing:
            return Context((*ids, self.sop), len(ids), 1, causal=self._config.unidirectional)
        return Context((*ids, self.sop), len(ids) - 1, 0)

    def _from_left_to_right(self, text: Sequence[int]) -> Context:
        before = map(self._tokenizer.command, self._form.in_front(self.mask_name))
        return left_to_right(tuple(before), text, self._form.counts_on)
