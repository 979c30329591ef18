"""A chat model's reply to a list of messages.

    reply = chat(model, tokenizer, [{"role": "user", "content": "你好"}], on_text=print)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from generation.batch import Batch, Row
from generation.conversation import FORMATS, ChatFormat, Question, question, read_messages
from generation.params import BeamParams, SamplingParams, checked_stops
from generation.sampling import rules
from generation.texts import Names, Text, cut
from glm.prompt_form import PromptForm
from runtime import parallel
from runtime.errors import NonFinite, UserError


@dataclass(frozen=True)
class Reply:
    """A chat model's answer."""

    text: str
    input_ids: list[int] = field(repr=False)  # the prompt as the model saw it
    output_ids: list[int] = field(repr=False)  # what it generated, end token included
    finish_reason: str  # "stop": it ended by itself; "length": it was cut off
    rounds_left_out: int = 0  # oldest rounds of the history that did not fit


def chat(model, tokenizer, messages: Sequence[Mapping[str, str]], params: SamplingParams | BeamParams | None = None,
         *, stops: Sequence[str] = (), on_text: Callable[[str], None] | None = None) -> Reply:
    """The reply to messages of `role` (system, user, assistant) and `content`, the last one the user's.

    params: by default those that the model was published with; out_seq_length counts prompt and answer. Oldest rounds
    that do not fit are left out. stops: texts; the reply ends before the first that comes. on_text: is given the text
    as it comes, in pieces that joined are the reply's text; not under beam search. Raises UserError for messages in
    another order, and for a model that is none for chats.
    """
    form = format_of(model)
    params = form.sampling if params is None else params
    if params.seed is None:
        params = replace(params, seed=parallel.broadcast_object(secrets.randbits(53)))
    asked = question(read_messages(messages), form, lambda text: context_of(text, form, tokenizer),
                     model.config.max_sequence_length, params)
    row = row_of(asked, form, model.config.prompt_form, tokenizer, params)
    ends, stops = row.rules.end_tokens, checked_stops(stops)
    said = Text(Names(tokenizer), ends, "", stops, form.shown, tokenizer.detokenize)

    def is_over(token: int) -> bool:
        said.add(token)
        if on_text is not None and (new := said.new()):
            on_text(new)
        return said.is_stopped

    ids = _answered(model, row, is_over if on_text is not None or stops else lambda _: False)
    whole = decoded(ids, ends, tokenizer)
    kept = cut(whole, stops)
    text = form.reply(kept)
    if on_text is not None:
        on_text(text[said.shown:])
    return Reply(text, list(asked.context), ids, "stop" if ids[-1] in ends or kept != whole else "length",
                 asked.rounds_left_out)


def format_of(model) -> ChatFormat:
    family = model.config.family
    if family not in FORMATS:
        raise UserError(f"a model of the family {family} has no chat format; it fills blanks and writes on "
                        "(fill_blanks, scripts/generate.sh). Families for chats: " + ", ".join(FORMATS))
    return FORMATS[family]


def context_of(text: str, form: ChatFormat, tokenizer) -> list[int]:
    """A prompt's ids with the commands that the answer stands behind."""
    commands = [tokenizer.command("[gMASK]"), tokenizer.command("sop")]
    ids = tokenizer.encode(text)
    return [*commands, *ids] if form.is_causal else [*ids, *commands]


def row_of(asked: Question, form: ChatFormat, known: PromptForm, tokenizer,
           params: SamplingParams | BeamParams) -> Row:
    """What a batch is asked for the reply. known: the form of the model's other prompts."""
    ends = rules([tokenizer.command(name) for name in known.ends])
    shared = None if form.is_causal or "[gMASK]" in known.advancing else len(asked.context) - 2
    return Row(asked.context, params, asked.limit, ends, shared, form.is_causal, seed=(params.seed, 0, *asked.context))


def decoded(ids: Sequence[int], ends: Sequence[int], tokenizer) -> str:
    return tokenizer.detokenize([token for token in ids if token not in ends])


def _answered(model, row: Row, is_over: Callable[[int], bool]) -> list[int]:
    """The generated ids. is_over: is given each token but the last; under beam search none."""
    batch, ids = Batch(model, row.width, row.places), []
    batch.add([row])
    while events := batch.step():
        (event,) = events
        if event.is_broken:
            raise NonFinite([0], [event.answers[0][0]])
        if event.answers is not None:
            return list(event.answers[0][0])
        if event.token is not None:
            ids.append(event.token)
            if is_over(event.token):
                return ids
    raise AssertionError("a batch that is not empty has events")
