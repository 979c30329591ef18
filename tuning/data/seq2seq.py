"""Seq2seq tasks: a text is read, another one is written. Sequences, and the scores of what was written.

A source is cut or padded to its length, and its padding is seen (`sep` counts it) unless --mask-pad-token hides it. The
target's tokens have the position of the mask in the source and count 1, 2, ... in the second channel. Families other
than the GLM repository's pad nothing, and have masks and positions of their own (tuning.data.form).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.errors import UserError
from tuning.data.blanks import MASK, blanks_row, padded, with_blanks
from tuning.data.sample import Example, Kind, Row, Sample, Unbuildable
from tuning.data.seq2seq_files import CLEANED, QUESTIONS, read_examples
from tuning.options import Settings
from tuning.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

BLANKS = ("blank", "extraction")
WINDOWS = ("squad", "squad_v1")
TASKS = (*CLEANED, "xsum", "customization", *QUESTIONS, *BLANKS)
EVALUATED = "seq2seq"
NOTHING = "N/A"  # what a window without the answer answers


def examples(settings: Settings) -> list[Example]:
    """What was read from the files; references are spelt as the tokenizer of the settings spells them."""
    return _examples(settings, open_tokenizer(settings.tokenizer))


def _examples(settings: Settings, tokenizer: Tokenizer) -> list[Example]:
    return read_examples(settings, lambda text: tokenizer.detokenize(_ids(tokenizer, text)))


def samples(settings: Settings, tokenizer: Tokenizer) -> list[Sample | Unbuildable]:
    """In the files' order. In the test split a row ends with sop; a question of squad has a sample for each window."""
    if settings.data.task == "blank" and settings.tokenizer.task_mask:
        raise UserError("--task blank: its blanks are [MASK], and with --task-mask a model has others; leave that away")
    if settings.data.task in BLANKS and not settings.form.pads_sources:
        raise UserError(f"--task {settings.data.task}: rows of several blanks are there for the GLM repository's "
                        "models")
    found: list[Sample | Unbuildable] = []
    chance = random.Random(settings.data.seed)
    for example in _examples(settings, tokenizer):
        try:
            if settings.data.task in BLANKS:
                built = [(_blanks(example, settings, tokenizer, chance), example.meta["ref"])]
            elif settings.data.task in WINDOWS:
                built = list(_windows(example, settings, tokenizer))
            else:
                built = [(_row(*_source_and_target(example, settings, tokenizer), settings, tokenizer),
                          example.meta["ref"])]
        except ValueError as error:
            found.append(Unbuildable(example.guid, str(error)))
            continue
        found += [Sample(example.guid, Kind.SEQ2SEQ, (row,), text=_text(tokenizer, row), reference=reference,
                         meta=dict(example.meta)) for row, reference in built]
    if settings.data.task in WINDOWS:  # several samples of one example
        found = [replace(sample, guid=f"{settings.data.split}-{place}") for place, sample in enumerate(found)]
    return found


def metrics(settings: Settings, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
    """Means of ROUGE-1, -2 and -L, from 0 to 1; none of blanks, nor where the files' answers may not be read."""
    from tuning.text_metrics import score_pairs

    if settings.data.task in BLANKS or settings.data.task in ("cmrc", *WINDOWS):
        return {}
    rules = ("cnn_dm" if settings.tokenizer.tokenizer_type == "BertWordPieceTokenizer"
             else "gigaword" if settings.data.task == "gigaword" else "none")
    references = [sample.reference or "" for sample in samples]
    return score_pairs(predictions, references, rules)[1]


def rules_of_answers(settings: Settings) -> str | None:
    """Of tuning.data.texts, for what was written; None: it stays as it is."""
    return "blank" if settings.data.task in BLANKS else None


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, special_tokens=True)


def _text(tokenizer: Tokenizer, row: Row) -> str:
    pad = tokenizer.commands.get("pad")
    return tokenizer.detokenize(token for token in row.input_ids if token != pad)


def mask_of(settings: Settings) -> str:
    """The command that stands for what is to be written."""
    return settings.form.masks[settings.tokenizer.task_mask and settings.data.task not in ("cmrc", *BLANKS)]


def _source_and_target(example: Example, settings: Settings, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The ids of a source, no longer than it may be, and the text to be written."""
    task, most = settings.data.task, settings.data.src_seq_length
    begin, mask = _begin(settings, tokenizer), tokenizer.command(mask_of(settings))
    if task in ("squad_generation", "cmrc"):
        make = _question_wanted if task == "squad_generation" else _answer_wanted
        return make(example, begin, mask, most, tokenizer)
    if task == "customization":
        ids = _ids(tokenizer, example.text_a)
        return _ended([*begin, *ids[max(len(ids) - (most - 3), 0):], mask], settings, tokenizer), example.text_b
    return [*begin, mask, *_ids(tokenizer, " Content:"), *_ids(tokenizer, f" {example.text_a}")][:most], example.text_b


def _begin(settings: Settings, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.command(name) for name in settings.form.begin]


def _ended(source: list[int], settings: Settings, tokenizer: Tokenizer) -> list[int]:
    """With the family's end behind the mask at its end, if it has one there."""
    form = settings.form
    return source if mask_of(settings) in form.no_end_after else [*source, tokenizer.command(form.end)]


def _question_wanted(example: Example, begin: list[int], mask: int, most: int,
                     tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The context, or a window of it around the answer: it begins half its length before."""
    answer = example.meta["answer"]
    context = _ids(tokenizer, f"{example.text_a} Question:")
    told = _ids(tokenizer, f" Answer: {answer}")
    room = max(most - len(told) - 2, 0)
    if len(context) > room:
        place = _place_of(_ids(tokenizer, f" {answer}"), context)
        start = 0 if place is None else max(place - room // 2, 0)
        context = context[start:start + room]
    return [*begin, *context, mask, *told], example.meta["question"]


def _answer_wanted(example: Example, begin: list[int], mask: int, most: int,
                   tokenizer: Tokenizer) -> tuple[list[int], str]:
    asked = _ids(tokenizer, f"问题：{example.meta['question']}答案：")
    return [*begin, *asked, mask, *_ids(tokenizer, example.text_a)][:most], example.meta["answer"]


def _place_of(part: Sequence[int], ids: Sequence[int]) -> int | None:
    """Where `part` first stands in `ids`."""
    if not part:
        return None
    return next((place for place, token in enumerate(ids)
                 if token == part[0] and ids[place:place + len(part)] == part), None)


def _windows(example: Example, settings: Settings, tokenizer: Tokenizer) -> Iterator[tuple[Row, str]]:
    """Windows of an article, each half a source behind the one before, until its end; those without the answer have
    the answer N/A, or, with squad_v1, are left out but in the test split."""
    task, split, most = settings.data.task, settings.data.split, settings.data.src_seq_length
    question = [*_begin(settings, tokenizer), *_ids(tokenizer, f" {example.meta['question']}"),
                tokenizer.command(mask_of(settings)), *_ids(tokenizer, ".")]
    room, context = most - len(question), _ids(tokenizer, example.text_a)
    if room < 1:
        raise ValueError(f"the question has {len(question)} tokens, which leaves no room for an article in the {most} "
                         "of --src-seq-length")
    answers = [_ids(tokenizer, text) for text in (f" {example.meta['answer']}", example.meta["answer"])]
    stride = max(most // 2, 1)
    for start in range(0, max(len(context) - room, 0) + stride, stride):
        window = context[start:start + room]
        is_there = any(_place_of(answer, window) is not None for answer in answers)
        if is_there or split == "test" or task == "squad":
            target = example.meta["answer"] if is_there else NOTHING
            yield _row(question + window, target, settings, tokenizer), target


def _row(source: list[int], target: str, settings: Settings, tokenizer: Tokenizer) -> Row:
    """ValueError where the source was cut before its mask."""
    length, mask, form = settings.data.src_seq_length, tokenizer.command(mask_of(settings)), settings.form
    sop, eop, pad = *map(tokenizer.command, ("sop", "eop")), tokenizer.commands.get("pad", 0)
    if mask not in source[:length]:
        raise ValueError(f"the mask lies behind the first {length} tokens, all that --src-seq-length allows")
    if len(source) > length:
        raise ValueError(f"the source has {len(source)} tokens, --src-seq-length allows {length}")
    length = length if form.pads_sources else len(source)
    ids, place, count = padded(source, length, pad), source.index(mask), 1
    answer, loss_mask = [sop], []
    if settings.data.split != "test":
        count = settings.data.tgt_seq_length
        wanted = [*_ids(tokenizer, f" {target}"), eop][:count]
        count = count if form.pads_sources else len(wanted)
        loss_mask = [0] * length + [1] * len(wanted) + [0] * (count - len(wanted))
        wanted = padded(wanted, count, pad)
        answer = [sop, *wanted[:-1]]
    blocks = [1] * count if settings.cloze.no_block_position else range(1, count + 1)
    visible: tuple[str, ...] = ()
    if settings.seq2seq.mask_pad_token:
        seen = "1" * len(source) + "0" * (length - len(source))
        visible = tuple(seen + "1" * step + "0" * (count - step) for step in [0] * length + [*range(1, count + 1)])
    places = (*range(length), *form.positions(mask_of(settings), place, length, count))
    return Row((*ids, *answer), places, (*[0] * length, *blocks), length, (*[0] * length, *wanted) if loss_mask else (),
               tuple(loss_mask), visible)


def _blanks(example: Example, settings: Settings, tokenizer: Tokenizer, chance: random.Random) -> Row:
    """ValueError where there is no blank to fill, or more of them than answers."""
    task, length, ratio = settings.data.task, settings.data.src_seq_length, settings.seq2seq.blank_maskratio
    source, answers = example.text_a, []
    if settings.data.split != "test":
        if task == "blank":
            source, answers = with_blanks(source, ratio, chance)
        else:
            answers = [f" {answer}" for answer in example.text_b.split("|")]
    ids = padded(_ids(tokenizer, source), length, tokenizer.command("eos"))
    if settings.data.split != "test":
        total = length + (int(length * ratio) if task == "blank" else settings.data.tgt_seq_length)
        return blanks_row(ids, [_ids(tokenizer, answer) for answer in answers], total, tokenizer,
                          not settings.cloze.no_block_position)
    mask = tokenizer.command(MASK)
    if mask not in ids:
        raise ValueError(f"there is no blank in the first {length} tokens, all that --src-seq-length allows")
    return Row((*ids, tokenizer.command("sop")), (*range(length), ids.index(mask)), (*[0] * length, 1), length)
