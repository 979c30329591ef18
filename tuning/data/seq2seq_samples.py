"""Sequences of seq2seq tasks: what of a text fits into a source, where the mask stands, and the answer behind it.

A source is cut or padded to its length, and its padding is seen (`sep` counts it) unless --mask-pad-token hides it. The
target's tokens have the position of the mask in the source and count 1, 2, ... in the second channel. Families other
than the GLM repository's pad nothing, and have masks and positions of their own (tuning.data.form).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tuning.data.blanks import MASK, blanks_row, padded, with_blanks
from tuning.data.form import SampleForm
from tuning.data.sample import Example, Ids, Row
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

BLANKS = ("blank", "extraction")
WINDOWS = ("squad", "squad_v1")
NOTHING = "N/A"  # what a window without the answer answers


class Made(NamedTuple):
    row: Row
    cut: tuple[int, int]  # tokens that source and target lost
    target: str | None = None  # what the answer is compared with; None: the example's reference


class _Source(NamedTuple):
    ids: list[int]  # no more than a source may have
    target: str  # the text to be written
    cut: int  # tokens that it lost


def made_of(example: Example, settings: Settings, tokenizer: Tokenizer, chance: random.Random) -> list[Made]:
    """One row, or one for each window of an article; in the test split it ends with sop. chance: draws blanks.

    ValueError where no row can be made.
    """
    if settings.data.task in BLANKS:
        return [_blanks(example, settings, tokenizer, chance)]
    if settings.data.task in WINDOWS:
        return list(_windows(example, settings, tokenizer))
    return [_answered(_source(example, settings, tokenizer), settings, tokenizer)]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, special_tokens=True)


def mask_of(settings: Settings) -> str:
    """The command that stands for what is to be written."""
    return settings.form.masks[settings.tokenizer.task_mask and settings.data.task not in ("cmrc", *BLANKS)]


def _source(example: Example, settings: Settings, tokenizer: Tokenizer) -> _Source:
    task, most = settings.data.task, settings.data.src_seq_length
    begin, mask = _begin(settings, tokenizer), tokenizer.command(mask_of(settings))
    if task in ("squad_generation", "cmrc"):
        make = _question_wanted if task == "squad_generation" else _answer_wanted
        return make(example, begin, mask, most, tokenizer)
    if task == "customization":
        ids = ids_of(tokenizer, example.text_a)
        cut = max(len(ids) - (most - 3), 0)
        return _Source(_ended([*begin, *ids[cut:], mask], settings, tokenizer), example.text_b, cut)
    ids = [*begin, mask, *ids_of(tokenizer, " Content:"), *ids_of(tokenizer, f" {example.text_a}")]
    return _Source(ids[:most], example.text_b, max(len(ids) - most, 0))


def _begin(settings: Settings, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.command(name) for name in settings.form.begin]


def _ended(source: list[int], settings: Settings, tokenizer: Tokenizer) -> list[int]:
    """With the family's end behind the mask at its end, if it has one there."""
    form = settings.form
    return source if mask_of(settings) in form.no_end_after else [*source, tokenizer.command(form.end)]


def _question_wanted(example: Example, begin: list[int], mask: int, most: int, tokenizer: Tokenizer) -> _Source:
    """The context, or a window of it around the answer: it begins half its length before."""
    answer = example.meta["answer"]
    context = ids_of(tokenizer, f"{example.text_a} Question:")
    told = ids_of(tokenizer, f" Answer: {answer}")
    room = max(most - len(told) - 2, 0)
    cut = max(len(context) - room, 0)
    if cut:
        place = _place_of(ids_of(tokenizer, f" {answer}"), context)
        start = 0 if place is None else max(place - room // 2, 0)
        context = context[start:start + room]
    return _Source([*begin, *context, mask, *told], example.meta["question"], cut)


def _answer_wanted(example: Example, begin: list[int], mask: int, most: int, tokenizer: Tokenizer) -> _Source:
    asked = ids_of(tokenizer, f"问题：{example.meta['question']}答案：")
    ids = [*begin, *asked, mask, *ids_of(tokenizer, example.text_a)]
    return _Source(ids[:most], example.meta["answer"], max(len(ids) - most, 0))


def _place_of(part: Sequence[int], ids: Sequence[int]) -> int | None:
    """Where `part` first stands in `ids`."""
    if not part:
        return None
    return next((place for place, token in enumerate(ids)
                 if token == part[0] and ids[place:place + len(part)] == part), None)


def _windows(example: Example, settings: Settings, tokenizer: Tokenizer) -> Iterator[Made]:
    """Windows of an article, each half a source behind the one before, until its end; those without the answer have
    the answer N/A, or, with squad_v1, are left out but in the test split."""
    task, split, most = settings.data.task, settings.data.split, settings.data.src_seq_length
    question = [*_begin(settings, tokenizer), *ids_of(tokenizer, f" {example.meta['question']}"),
                tokenizer.command(mask_of(settings)), *ids_of(tokenizer, ".")]
    room, context = most - len(question), ids_of(tokenizer, example.text_a)
    if room < 1:
        raise ValueError(f"the question has {len(question)} tokens, which leaves no room for an article in the {most} "
                         "of --src-seq-length")
    answers = [ids_of(tokenizer, text) for text in (f" {example.meta['answer']}", example.meta["answer"])]
    stride = max(most // 2, 1)
    for start in range(0, max(len(context) - room, 0) + stride, stride):
        window = context[start:start + room]
        is_there = any(_place_of(answer, window) is not None for answer in answers)
        if is_there or split == "test" or task == "squad":
            target = example.meta["answer"] if is_there else NOTHING
            yield _answered(_Source(question + window, target, 0), settings, tokenizer)._replace(target=target)


def _answered(given: _Source, settings: Settings, tokenizer: Tokenizer) -> Made:
    """ValueError where the source was cut before its mask."""
    source, lost = given.ids, 0
    length, mask, form = settings.data.src_seq_length, tokenizer.command(mask_of(settings)), settings.form
    sop, eop, pad = *map(tokenizer.command, ("sop", "eop")), tokenizer.commands.get("pad", 0)
    if mask not in source[:length]:
        raise ValueError(f"the mask lies behind the first {length} tokens, all that --src-seq-length allows")
    if len(source) > length:
        raise ValueError(f"the source has {len(source)} tokens, --src-seq-length allows {length}")
    length = length if form.pads_sources else len(source)
    ids, place, count = padded(source, length, pad), source.index(mask), 1
    answer, scored = [sop], 0
    if settings.data.split != "test":
        count = settings.data.tgt_seq_length
        wanted = [*ids_of(tokenizer, f" {given.target}"), eop]
        lost = max(len(wanted) - count, 0)
        wanted = wanted[:count]
        count = count if form.pads_sources else len(wanted)
        scored = len(wanted)
        wanted = padded(wanted, count, pad)
        answer = [sop, *wanted[:-1]]
    name, has_places = mask_of(settings), not settings.cloze.no_block_position
    places, blocks = _positions(form, name, place, length, count, has_places)
    visible = _visible(len(source), length, count) if settings.seq2seq.mask_pad_token else ()
    row = Row((*ids, *answer), places, blocks, length, (*[0] * length, *wanted) if scored else (),
              _loss_mask(length, scored, count) if scored else (), visible)
    return Made(row, (given.cut, lost))


# What many rows have in common is one value for all of them: it is most of a row, and files have millions.


@functools.lru_cache(maxsize=4096)
def _positions(form: SampleForm, mask: str, place: int, length: int, count: int,
               has_places: bool) -> tuple[Ids, Ids]:
    """Both channels of a source of so many tokens and of `count` tokens from sop on. place: of the mask."""
    return ((*range(length), *form.positions(mask, place, length, count)),
            (*[0] * length, *(range(1, count + 1) if has_places else [1] * count)))


@functools.lru_cache(maxsize=4096)
def _loss_mask(length: int, scored: int, count: int) -> Ids:
    return (0,) * length + (1,) * scored + (0,) * (count - scored)


@functools.lru_cache(maxsize=4096)
def _visible(seen: int, length: int, count: int) -> tuple[str, ...]:
    """For each query: the first `seen` tokens of a source of `length`, and an answer of `count` up to itself."""
    source = "1" * seen + "0" * (length - seen)
    return tuple(source + "1" * step + "0" * (count - step) for step in [0] * length + [*range(1, count + 1)])


def _blanks(example: Example, settings: Settings, tokenizer: Tokenizer, chance: random.Random) -> Made:
    """ValueError where there is no blank to fill, or more of them than answers."""
    task, length, ratio = settings.data.task, settings.data.src_seq_length, settings.seq2seq.blank_maskratio
    source, answers = example.text_a, []
    if settings.data.split != "test":
        if task == "blank":
            source, answers = with_blanks(source, ratio, chance)
        else:
            answers = [f" {answer}" for answer in example.text_b.split("|")]
    ids = ids_of(tokenizer, source)
    cut, ids = max(len(ids) - length, 0), padded(ids, length, tokenizer.command("eos"))
    if settings.data.split != "test":
        total = length + (int(length * ratio) if task == "blank" else settings.data.tgt_seq_length)
        wanted = [ids_of(tokenizer, answer) for answer in answers]
        row = blanks_row(ids, wanted, total, tokenizer, not settings.cloze.no_block_position)
        return Made(row, (cut, max(length + sum(len(each) + 1 for each in wanted) - total, 0)))
    mask = tokenizer.command(MASK)
    if mask not in ids:
        raise ValueError(f"there is no blank in the first {length} tokens, all that --src-seq-length allows")
    row = Row((*ids, tokenizer.command("sop")), (*range(length), ids.index(mask)), (*[0] * length, 1), length)
    return Made(row, (cut, 0))
