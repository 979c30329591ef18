"""From what a client asks for to rows for the engine: prompts become contexts, texts become blanks to fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from generation.blanks import MASK_PATTERN, Filling, Result, split
from generation.chatting import context_of
from generation.chatting import row_of as chat_row
from generation.conversation import ChatFormat, Question, question, read_messages
from generation.fill import row_of
from generation.groups import Row
from generation.sampling import Score, rules
from generation.texts import Names, Text
from glm.prompt_form import Context, PromptForm, left_to_right
from runtime.errors import UserError
from serving.choices import Answer, Blanks, Entry, entry_of
from serving.errors import ApiError, bad
from serving.jobs import Job, Scored
from serving.requests import Chat, Completion, Fill


@dataclass(frozen=True)
class Served:
    """The model as the routes see it."""

    name: str
    created: int  # seconds since 1970
    fingerprint: str
    tokenizer: object
    names: Names
    most: int  # tokens of a sequence
    vocabulary: int
    form: PromptForm  # what stands around a prompt, with the masks that the vocabulary has
    chat_format: ChatFormat | None
    chat_name: str | None
    is_for_chats: bool = False  # the model was trained for them, and its tokenizer spells their answers
    parent: str | None = None  # of a model with an adapter on it, the name of the one without

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(map(self.tokenizer.command, self.form.ends))

    @property
    def never(self) -> tuple[int, ...]:
        """Ids that are not generated."""
        return tuple(map(self.tokenizer.command, self.form.never))


@dataclass(frozen=True)
class Prompt:
    """One prompt of a completion, ready to be generated behind."""

    text: str  # as it was sent; of ids, what they decode to
    ids: tuple[int, ...]  # its own, as /tokenize gives them
    filling: Filling | None  # of a text with a blank; None: the ids are read from left to right


def completion_job(asked: Completion, served: Served) -> tuple[Job, list[Prompt]]:
    """Raises ApiError for prompts without room, or with masks that make it unclear what is filled."""
    causal = asked.unidirectional or (asked.echo and asked.alternatives is not None)
    prompts = [_prompt(prompt, asked, served, causal) for prompt in asked.prompts]
    choices = [] if asked.decoding.max_tokens == 0 else [
        _answer(prompt, asked, served, number) for prompt in prompts for number in range(asked.choices)]
    scored = [] if not (asked.echo and asked.alternatives is not None) else [
        Scored(_readable(prompt, served), asked.alternatives) for prompt in prompts]
    return Job(choices, scored), prompts


def _prompt(prompt: str | tuple[int, ...], asked: Completion, served: Served, causal: bool) -> Prompt:
    tokenizer = served.tokenizer
    if not isinstance(prompt, str):
        text, ids = served.names.first(prompt), prompt
    else:
        text = prompt
        ids = tuple(token for stretch in _stretches(prompt, tokenizer) for token in stretch)
    if causal:
        if isinstance(prompt, str) and MASK_PATTERN.search(prompt):
            raise bad("prompt", "a prompt that is read from left to right must hold no mask")
        return Prompt(text, ids, None)
    params = asked.decoding.params()
    try:
        return Prompt(text, ids, Filling(_blank(prompt, asked, served), params, asked.decoding.seed, served.most,
                                         served.ends, served.never))
    except UserError as error:
        raise bad("prompt", str(error)) from None


def _stretches(text: str, tokenizer) -> list[list[int]]:
    """Ids of a text whose masks are masks."""
    found = []
    for piece, mask in zip(MASK_PATTERN.split(text), [*MASK_PATTERN.findall(text), None], strict=True):
        found.append(tokenizer.encode(piece))
        found.append([] if mask is None else [tokenizer.command(mask)])
    return found


def _blank(prompt: str | tuple[int, ...], asked: Completion, served: Served):
    """The prompt cut at its only blank (generation.blanks.Prompt)."""
    if not isinstance(prompt, str):
        cut = split(asked.mask or "", served.tokenizer, served.form)
        begin = cut.stretches[0]
        return replace(cut, stretches=((*begin, *prompt), *cut.stretches[1:]))
    is_given = asked.suffix is None and MASK_PATTERN.search(prompt)
    mask = asked.mask or (served.form.masks[-1] if asked.suffix is None else "[MASK]")
    if served.form.is_causal and not is_given and asked.suffix is None and asked.mask is None:
        return split(prompt, served.tokenizer, served.form)
    text = prompt if is_given else f"{prompt}{mask}{asked.suffix or ''}"
    kind = served.form.kind_of(text)
    if text.count(kind) != 1:
        raise bad("prompt", f"the prompt has {text.count(kind)} blanks {kind}, and a completion fills one; /v1/fill "
                            "fills them all")
    if (asked.mask or kind) != kind:
        raise bad("mask", f"the prompt's own mask {kind} is filled before {asked.mask}; use /v1/fill, or leave mask "
                          "out")
    return split(text, served.tokenizer, served.form)


def _answer(prompt: Prompt, asked: Completion, served: Served, number: int) -> Answer:
    seed = asked.decoding.seed + number
    if prompt.filling is not None:
        row = _fitting(replace(prompt.filling, seed=seed))
        before = prompt.filling.prompt.typed[0] if prompt.filling.prompt.typed[0] else prompt.text
    else:
        row, before = _causal(prompt, asked, served, seed), prompt.text
    row = replace(row, alternatives=asked.alternatives)
    text = Text(served.names, served.ends, before, asked.stops)
    return Answer(row, text, served.names, asked.streaming.is_on, bool(asked.stops), len(before))


def _fitting(filling: Filling) -> Row:
    """Raises ApiError where the model has no room for one token."""
    try:
        return row_of(filling)
    except UserError as error:
        raise bad("prompt", str(error), "context_length_exceeded") from None


def causal_context(ids: Sequence[int], served: Served) -> Context:
    """The ids behind what the family puts in front, which ends with sop; ids that bring theirs get no second one."""
    before = tuple(map(served.tokenizer.command, served.form.in_front()))
    return left_to_right(before, ids[1:] if ids[:1] == before[-1:] else ids, served.form.counts_on)


def _readable(prompt: Prompt, served: Served) -> Context:
    """The prompt as it is read from left to right. Raises ApiError for one that is longer than the model takes."""
    context = causal_context(prompt.ids, served)
    if len(context.ids) > served.most:
        raise bad("prompt", f"the prompt has {len(prompt.ids)} tokens, {len(context.ids)} with those that are added; "
                            f"the model takes {served.most}", "context_length_exceeded")
    return context


def prompt_entries(prompt: Prompt, scores: Sequence[Score], served: Served) -> list[Entry]:
    """The prompt's own tokens with their log-probabilities; the first has none."""
    names, place, entries = served.names, 0, []
    known = [(None, []), *scores[len(scores) - len(prompt.ids) + 1:]] if prompt.ids else []
    for number, (token, (value, alternatives)) in enumerate(zip(prompt.ids, known, strict=True)):
        name = names.token(token)
        entries.append(entry_of(names, token, name, value, alternatives, min(place, len(prompt.text))))
        place += len(names.first([token]) if number == 0 else names.behind([token]))
    return entries


def _causal(prompt: Prompt, asked: Completion, served: Served, seed: int) -> Row:
    context = causal_context(prompt.ids, served)
    length = len(context.ids)
    if length >= served.most:
        raise bad("prompt", f"the prompt has {len(prompt.ids)} tokens; with those that are added the model takes "
                            f"{served.most}, one of the answer included", "context_length_exceeded")
    limit = min(served.most - length, asked.decoding.max_tokens)
    return Row(context.ids, asked.decoding.params(), limit, rules(served.ends, served.never), context.shared_position,
               context.causal, context.opened, seed=(seed, 0, *context.ids))


def fill_job(asked: Fill, served: Served) -> tuple[Job, list[Result | int], int]:
    """The job; for each text its result where it has failed already, else the number of its choice; the tokens of all.

    Raises ApiError where a text that stands alone fails.
    """
    choices, outcome = [], []
    for text in asked.texts:
        try:
            filling = Filling(split(text, served.tokenizer, served.form), asked.decoding.params(), asked.decoding.seed,
                              served.most, served.ends, served.never)
            choice = Blanks(filling, served.tokenizer, asked.streaming.is_on)
        except UserError as error:
            if not asked.is_list:
                raise bad("text", str(error), "context_length_exceeded") from None
            outcome.append(Result(text, text, finish_reason="error", error=str(error)))
            continue
        outcome.append(len(choices))
        choices.append(choice)
    tokens = sum(len(ids) for text in asked.texts for ids in _stretches(text, served.tokenizer))
    return Job(choices), outcome, tokens


def chat_job(asked: Chat, served: Served) -> tuple[Job, int]:
    """The job, and how many ids the formatted prompt has."""
    if served.chat_format is None:
        raise ApiError(400, f"{served.name} is a base model without a chat format; use /v1/completions or /v1/fill",
                       "model_not_chat", "model")
    form, params = served.chat_format, asked.decoding.params()
    try:
        asks = question(read_messages(asked.messages), form, lambda text: context_of(text, form, served.tokenizer),
                        served.most, params)
    except UserError as error:
        code = "context_length_exceeded" if "too long" in str(error) else "invalid_value"
        raise bad("messages", str(error), code) from None
    return Job([_reply(asks, asked, served, number) for number in range(asked.choices)]), len(asks.context)


def _reply(asks: Question, asked: Chat, served: Served, number: int) -> Answer:
    form, decoding = served.chat_format, asked.decoding
    params = replace(decoding.params(), seed=decoding.seed + number)
    row = replace(chat_row(asks, form, served.form, served.tokenizer, params), alternatives=asked.alternatives)
    spell = served.tokenizer.detokenize if served.is_for_chats else None
    text = Text(served.names, served.ends, "", asked.stops, form.shown, spell)
    return Answer(row, text, served.names, asked.streaming.is_on, bool(asked.stops))


