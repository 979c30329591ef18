"""A model's answers to lm-evaluation-harness: log-likelihoods of continuations and of whole texts, and generated texts.

Scores come from evaluation.scorer, generated ids from generation.batch, texts from generation.texts, as in our own
evaluation and server. An answer depends neither on batches nor on the order of the questions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from evaluation.harness_requests import Decoding, Frame, packed, split_pair, windows
from evaluation.requests import Ids, batches_of, default_max_tokens
from evaluation.scorer import Choice, Scorer
from generation.batch import Batch
from generation.batching import batches
from generation.groups import Row
from generation.sampling import rules
from generation.texts import Names, Text
from runtime.errors import NonFinite, UserError
from runtime.mapped import check_unchanged
from runtime.program import is_first_rank
from runtime.show import Progress, counted

KEPT_ENCODINGS = 4096  # of texts: a context is asked with all its continuations, one after another
OnAnswer = Callable[[int, Any], None]


def _nothing(_place: int, _answer: Any) -> None:
    """For those who do not want to hear of answers as they come."""


class Answers:
    """on_answer, of all methods: is called with a question's place and answer as soon as it is there."""

    def __init__(self, model, tokenizer, frame: Frame, max_length: int | None = None, max_gen_toks: int = 256,
                 batch_size: int | None = None):
        """max_length: tokens that the model reads (None: as many as it is made for). max_gen_toks: of an answer, where
        a task does not say. batch_size: most sequences of a batch (None: by memory). Raises UserError for a length that
        the model does not have, or that leaves no room."""
        most = model.config.max_sequence_length
        self.max_length = most if max_length is None else max_length
        if not 2 * frame.size <= self.max_length <= most:
            raise UserError(f"max_length is {self.max_length}; allowed: {2 * frame.size} ... {most}, which the model "
                            "is made for")
        self.model, self.tokenizer, self.frame = model, tokenizer, frame
        self.max_gen_toks, self.batch_size = max_gen_toks, batch_size
        self._scorer, self._names = Scorer(model), Names(tokenizer)
        form = model.config.prompt_form
        self._rules = rules(*(list(map(tokenizer.command, names)) for names in (form.ends, form.never)))

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]], on_answer: OnAnswer = _nothing) -> list[Choice]:
        """Of every (context, continuation): the continuation's log-probability (nats), and whether it is the greedy
        one. The end of a continuation is not scored."""
        encode = lru_cache(KEPT_ENCODINGS)(self.tokenizer.encode)
        answers, asked, places = [Choice(0.0, True)] * len(pairs), [], []
        for place, (context, continuation) in enumerate(pairs):
            before, scored = split_pair(encode, context, continuation)
            if scored:
                asked.append((before, scored))
                places.append(place)
        for number, choice in self._scored(self._fitting(asked)):
            answers[places[number]] = choice
            on_answer(places[number], choice)
        return answers

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Of every text: the log-probability (nats) of all its tokens, each scored once."""
        asked, owners = [], []
        for owner, text in enumerate(texts):
            found = windows(self.tokenizer.encode(text), self.max_length - self.frame.size + 1, self.max_length // 2)
            asked += found
            owners += [owner] * len(found)
        sums = [0.0] * len(texts)
        scores = dict(self._scored(asked))
        for number, owner in enumerate(owners):  # in the text's order: a sum does not depend on batches
            sums[owner] += scores[number].log_prob
        return sums

    def generate(self, questions: Sequence[tuple[str, Mapping[str, Any]]],
                 on_answer: OnAnswer = _nothing) -> list[str]:
        """Of every (context, options of its task): what the model writes behind the context, up to a stop text.

        Drawn answers depend on the seed, the context and how often the same question came before."""
        rows, texts, seen, cut = [], [], Counter(), 0
        for context, options in questions:
            decoding = Decoding.of(options, self.max_gen_toks)
            ids = tuple(self.tokenizer.encode(context))
            fitted = self._cut(ids, self.max_length - self.frame.size - decoding.limit,
                               f"answers of {counted(decoding.limit, 'token')}", "lower max_gen_toks")
            cut += fitted != ids
            question = (context, repr(sorted(options.items(), key=str)))
            seed = (torch.initial_seed() if decoding.seed is None else decoding.seed) + seen[question]
            seen[question] += 1
            rows.append(self._row(fitted, decoding, seed))
            texts.append(Text(self._names, self._rules.end_tokens, context, decoding.stops))
        self._warn_of(cut)
        with Progress(len(rows), shown=is_first_rank(), unit="answers") as progress:
            for batch in batches(range(len(rows)), [row.places for row in rows], self.model, 1, self.batch_size):
                self._decode([rows[place] for place in batch], [texts[place] for place in batch])
                for place in batch:
                    on_answer(place, texts[place].text)
                progress.advance(len(batch))
        return [text.text for text in texts]

    def _fitting(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[Ids, Ids]]:
        """The pairs, contexts without their beginning where that is needed; says how many those are."""
        found = [(self._cut(context, self.frame.room(self.max_length, len(scored)),
                            f"a continuation of {counted(len(scored), 'token')}", "shorten it"), scored)
                 for context, scored in pairs]
        self._warn_of(sum(after != before for (after, _), (before, _) in zip(found, pairs, strict=True)))
        return found

    def _cut(self, context: Ids, room: int, what: str, mend: str) -> Ids:
        """The last tokens of a context that there is room for."""
        if room < 0:
            raise UserError(f"{what} and the {self.frame.size} tokens around a context are more than max_length "
                            f"{self.max_length}; {mend}, or take a model that reads more")
        return context[max(0, len(context) - room):]

    def _warn_of(self, count: int) -> None:
        if count and is_first_rank():
            logging.getLogger(__name__).warning(
                "%s longer than max_length %d: tokens were cut off at the left of the context",
                f"{count} requests were" if count > 1 else "1 request was", self.max_length)

    def _scored(self, pairs: Sequence[tuple[Ids, Ids]]) -> Iterator[tuple[int, Choice]]:
        """A pair's number and what the model makes of it, as they come."""
        requests, owners = packed(self.frame, pairs, self.max_length)
        asking: list[list[tuple[int, int]]] = [[] for _ in requests]
        for number, (request, place) in enumerate(owners):
            asking[request].append((number, place))
        with Progress(len(pairs), shown=is_first_rank(), unit="requests") as progress:
            for batch in batches_of(requests, default_max_tokens(self.model, requests), self.batch_size):
                found = self._scorer.choices([requests[index] for index in batch])
                check_unchanged(self.model)
                for index, choices in zip(batch, found, strict=True):
                    yield from ((number, choices[place]) for number, place in asking[index])
                progress.advance(sum(len(asking[index]) for index in batch))

    def _row(self, ids: Ids, decoding: Decoding, seed: int) -> Row:
        context = self.frame.context(ids)
        return Row(context.ids, decoding.params, decoding.limit, self._rules, context.shared_position, context.causal,
                   context.opened, seed=(seed, 0, *context.ids))

    def _decode(self, rows: Sequence[Row], texts: Sequence[Text]) -> None:
        """Each row's tokens become its text."""
        batch = Batch(self.model, len(rows), max(row.places for row in rows))
        text_of = dict(zip(batch.add(rows), texts, strict=True))
        while events := batch.step():
            for event in events:
                if event.is_broken:
                    raise NonFinite([event.number])
                text_of[event.number].add(event.token)
                if text_of[event.number].is_stopped and event.answers is None:
                    batch.drop(event.number)
        for text in texts:
            text.finish()
        check_unchanged(self.model)
