"""From an example to what a model is given: a cloze question with its answers, or the texts for a classification head.

A sequence is [ENC], the parts of the pattern, [eos], and behind `sep` the answer from sop on. In families other than
the GLM repository's something else stands around a pattern (tuning.data.form).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError, shown
from tuning.data.form import SampleForm
from tuning.data.nlu_tasks import NluTask
from tuning.data.patterns import PROMPT_ID, PROMPTS, Pattern, Piece, pieces, spread
from tuning.data.sample import Example, Ids, Kind, Row, Sample, Unbuildable
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

_TEXTS_KEPT = 1 << 15  # whose ids are remembered: passages stand in many rows, and parts of a pattern in all
Encode = Callable[[str], Ids]


class Unfit(Exception):
    """A row that no sample can be made of."""


@dataclass(frozen=True)
class Commands:
    """The ids that stand around texts."""

    begin: Ids
    end: Ids
    ends_after_mask: bool  # `end` stands behind a mask at the end of a context, too
    mask: int
    sop: int
    answer_end: Ids  # of an answer of several tokens, as far as it is scored
    sep: int

    @staticmethod
    def of(tokenizer: Tokenizer, form: SampleForm) -> Commands:
        command, mask = tokenizer.command, form.masks[0]
        has = tokenizer.commands
        return Commands(tuple(map(command, form.begin)), (command(form.end),) if form.end in has else (),
                        mask not in form.no_end_after, command(mask), command("sop"),
                        (command("eop"),) if form.scores_end else (),
                        sep=next(has[name] for name in ("sep", "eos", "eop") if name in has))


@dataclass(frozen=True)
class Context:
    """What all queries of a row see."""

    ids: Ids  # with PROMPT_ID in the places of prompt tokens
    cut: tuple[int, int]  # tokens that were taken from the segments a and b


@dataclass(frozen=True)
class Builder:
    """All that the samples of a task have in common."""

    task: NluTask
    settings: Settings
    commands: Commands
    encode: Encode
    pattern: Pattern | None  # None: for a classification head
    verbalizer_ids: Ids  # where a label is one token

    @staticmethod
    def of(task: NluTask, settings: Settings, tokenizer: Tokenizer) -> Builder:
        """UserError for a pattern that there is not, one without places for prompts, and verbalizers of several
        tokens."""
        cloze = settings.cloze

        @lru_cache(_TEXTS_KEPT)
        def encode(text: str) -> Ids:
            return tuple(tokenizer.encode(text, special_tokens=True))

        if not cloze.cloze_eval:
            return Builder(task, settings, Commands.of(tokenizer, settings.form), encode, None, ())
        if cloze.pattern_id >= len(task.patterns):
            raise UserError(f"--pattern-id {cloze.pattern_id}: {task.name} has the patterns 0 to "
                            f"{len(task.patterns) - 1}")
        pattern = task.patterns[cloze.pattern_id]
        is_single = not task.has_choices and not cloze.multi_token
        ids = _verbalizer_ids(task, pattern, encode, cloze.pattern_id) if is_single else ()
        return Builder(task, settings, Commands.of(tokenizer, settings.form), encode, pattern, ids)

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """At the very beginning, and in the pattern's places."""
        prompt = self.settings.prompt
        return (prompt.prefix_prompt, prompt.num_prompt_tokens) if prompt.continuous_prompt else (0, 0)

    def sample(self, example: Example) -> Sample | Unbuildable:
        fields = {**example.meta, "text_a": example.text_a}
        if example.text_b is not None:
            fields["text_b"] = example.text_b
        try:
            choices = self._choices(example, fields)
            self._check_label(example, choices)
            if self.pattern is None:
                return self._head(example, fields, choices)
            return self._cloze(example, fields, choices)
        except Unfit as error:
            return Unbuildable(example.guid, str(error))
        except KeyError as error:
            raise UserError(f"{example.guid}: the task needs {error}, which this row has not") from None
        except TypeError as error:
            raise UserError(f"{example.guid}: {error}") from None

    def _choices(self, example: Example, fields: Mapping[str, Any]) -> list[str]:
        choices = self.task.choices
        if not isinstance(choices, str):
            return [template.fill(fields) for template in choices]
        found = fields.get(choices)
        if not isinstance(found, (list, tuple)) or not found or not all(isinstance(each, str) for each in found):
            raise UserError(f"{example.guid}: {choices!r} is {shown(found)}; it must be a list of texts")
        return list(found)

    def _check_label(self, example: Example, choices: Sequence[str]) -> None:
        """Readers of known tasks take labels from elsewhere, or have some that mean nothing."""
        label = self._label(example)
        if choices and self.task.reader == "rows" and label is not None and label >= len(choices):
            raise UserError(f"{example.guid}: the label is choice {label} (from 0), and there are {len(choices)}")

    def _label(self, example: Example) -> int | None:
        """None: the row has none."""
        if example.label is None:
            return None
        if not self.task.labels:
            return int(example.label)
        is_training = self.pattern is not None and self.settings.data.split == "train"
        if is_training and self.task.reader == "wsc" and self.settings.cloze.wsc_negative:
            return 0  # the first candidate
        return self.task.labels.index(str(example.label))

    def _cloze(self, example: Example, fields: Mapping[str, Any], choices: list[str]) -> Sample:
        cloze, label = self.settings.cloze, self._label(example)
        _, prompts = self.prompt_tokens
        pattern = self.pattern.of(fields | {PROMPTS: prompts} if prompts else fields)
        if prompts and not pattern.prompts:
            raise UserError(f"--num-prompt-tokens {prompts}: pattern {cloze.pattern_id} of {self.task.name} has no "
                            "places for prompt tokens; --prefix-prompt puts them at the beginning")
        if self.verbalizer_ids:
            context = self._context(pattern, fields, 0)
            row = self._row(context.ids, (self.commands.sop,), (), self._blank(context.ids), True)
            return self._done(example, Kind.VERBALIZER, [row], label, [context], verbalizer_ids=self.verbalizer_ids)
        if self.task.has_choices:
            filled = [fields | {"choice": choice} for choice in choices]
            answers = [pattern.answer.fill(each) for each in filled]
        else:
            answers = [pattern.verbalizers[each] for each in self.task.labels]
            filled = [fields] * len(answers)
        rows, contexts, segments = [], [], []
        for number, (each, answer) in enumerate(zip(filled, answers, strict=True)):
            ids = (*self.encode(answer), *self.commands.answer_end)
            context = self._context(pattern, each, len(ids))
            answer_rows = self._rows(context.ids, ids)
            rows += answer_rows
            contexts.append(context)
            segments += [number] * len(answer_rows)
        if self.task.is_generative and not cloze.wsc_negative:
            return self._done(example, Kind.GENERATIVE, rows, 1 if label is None and not self.task.labels else label,
                              contexts)
        return self._done(example, Kind.CHOICES, rows, label, contexts, has_choices=True,
                          segment_id=tuple(segments) if cloze.segment_length else ())

    def _rows(self, context: Ids, answer: Ids) -> list[Row]:
        """One; or one for each piece of the answer, whose context has the earlier pieces before its blank."""
        cloze, blank = self.settings.cloze, self._blank(context)
        length = cloze.segment_length if not self.task.is_generative or cloze.wsc_negative else 0
        length = length or len(answer)
        if not answer:
            raise Unfit("a choice is empty, and the family's answers have no end that could be scored")
        rows = []
        for begin in range(0, len(answer), length):
            piece = answer[begin:begin + length]
            so_far = (*context[:blank], *answer[:begin], *context[blank:])
            rows.append(self._row(so_far, (self.commands.sop, *piece[:-1]), piece, blank + begin,
                                  not cloze.no_block_position))
        return rows

    def _context(self, pattern: Pattern, fields: Mapping[str, Any], answer: int) -> Context:
        """answer: how many tokens follow sop."""
        commands = self.commands
        prefix, prompts = self.prompt_tokens
        places = spread(prompts, pattern.prompts)
        in_a = sum(part.is_prompt for part in pattern.a)
        segments = [pieces(parts, fields, self.encode, commands.mask, each)
                    for parts, each in ((pattern.a, places[:in_a]), (pattern.b, places[in_a:]))]
        length = sum(len(piece.ids) for segment in segments for piece in segment) + prefix
        around = len(commands.begin) + len(commands.end)
        room = self.settings.data.seq_length - around - (answer or 1)
        cut = _cut(segments, length - room)
        ids = [*commands.begin, *(PROMPT_ID,) * prefix]
        for segment, tokens in zip(segments, cut, strict=True):
            ids += _shortened(segment, tokens)
        is_closed = commands.ends_after_mask or ids[-1] != commands.mask
        return Context((*ids, *commands.end) if is_closed else tuple(ids), cut)

    def _blank(self, context: Ids) -> int:
        """The place of the last mask: a text may name one, too."""
        return len(context) - 1 - context[::-1].index(self.commands.mask)

    def _row(self, context: Ids, answer: Ids, target: Ids, blank: int, counts: bool) -> Row:
        """answer: from sop on. counts: its tokens have the block positions 1, 2, ...; else all have 1."""
        sep, behind, form = len(context), len(answer), self.settings.form
        places = form.positions(form.masks[0], blank, sep, behind)
        blocks = range(1, behind + 1) if counts else (1,) * behind
        return Row((*context, *answer), (*range(sep), *places), (*(0,) * sep, *blocks), sep,
                   (*(0,) * sep, *target) if target else (), (*(0,) * sep, *(1,) * behind))

    def _head(self, example: Example, fields: Mapping[str, Any], choices: list[str]) -> Sample:
        is_each = self.task.has_choices and not self.task.is_generative
        contexts = [self._head_context(fields | {"choice": choice} if is_each else fields)
                    for choice in (choices if is_each else [""])]
        rows = [Row(context.ids, tuple(range(len(context.ids))), (0,) * len(context.ids), len(context.ids))
                for context in contexts]
        return self._done(example, Kind.HEAD, rows, self._label(example), contexts, has_choices=is_each)

    def _head_context(self, fields: Mapping[str, Any]) -> Context:
        """Two texts, of which too much is cut off the end."""
        commands = self.commands
        a, b = ([token for piece in pieces(self.task.head[name], fields, self.encode, commands.mask, ())
                 for token in piece.ids] for name in ("a", "b"))
        ids = [*commands.begin, *a, *([commands.sep, *b] if self.task.head["b"] else [])]
        kept = ids[:self.settings.data.seq_length - len(commands.end)]
        lost = len(ids) - len(kept)
        return Context((*kept, *commands.end), (max(0, lost - len(b)), min(lost, len(b))))

    def _done(self, example: Example, kind: Kind, rows: list[Row], label: int | None, contexts: Sequence[Context],
              **more: Any) -> Sample:
        """meta: the example, and how many tokens of each segment the row that lost most has lost."""
        cut = max((context.cut for context in contexts), key=sum)
        return Sample(example.guid, kind, tuple(map(_prompted, rows)), label, meta={"example": example, "cut": cut},
                      **more)


def _prompted(row: Row) -> Row:
    """With the id 0 in the places of prompt tokens."""
    if PROMPT_ID not in row.input_ids:
        return row
    return replace(row, input_ids=tuple(max(0, token) for token in row.input_ids),
                   prompt_positions=tuple(place for place, token in enumerate(row.input_ids) if token == PROMPT_ID))


def _cut(segments: Sequence[Sequence[Piece]], excess: int) -> tuple[int, int]:
    """Tokens that each segment loses: one at a time from a, where a has more to lose than b, else from b."""
    before = [sum(len(piece.ids) for piece in segment if piece.is_shortened) for segment in segments]
    if excess > sum(before):
        raise Unfit(f"{excess} tokens too many for --seq-length, and {sum(before)} may be left out")
    a, b = before
    for _ in range(max(0, excess)):
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return before[0] - a, before[1] - b


def _shortened(segment: Sequence[Piece], tokens: int) -> list[int]:
    """The ids of a segment without the last tokens of what may be shortened."""
    ids: list[int] = []
    for piece in reversed(segment):
        lost = min(tokens, len(piece.ids)) if piece.is_shortened else 0
        tokens -= lost
        ids[:0] = piece.ids[:len(piece.ids) - lost]
    return ids


def _verbalizer_ids(task: NluTask, pattern: Pattern, encode: Encode, number: int) -> Ids:
    """An id for each label."""
    texts = [pattern.verbalizers[label] for label in task.labels]
    for text in texts:
        if len(ids := encode(text)) != 1:
            raise UserError(f"pattern {number} of {task.name}: the verbalizer {text!r} has {len(ids)} tokens with this "
                            "tokenizer, and needs one; --multi-token scores those of several")
    return tuple(encode(text)[0] for text in texts)
