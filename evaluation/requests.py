"""What a task asks of the model, as values: log-probabilities of continuations, or generated ids.

truncated: the text lost its beginning, so as not to be longer than the task allows. overlong: the sequence is longer
than the model is made for, since the task allows it.

Multiple choice and language modelling are the same question: a context, and texts to follow it whose tokens are given
log-probabilities (the choices; a window's scored part). Knows no text, no tokenizer and no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from generation.params import BeamParams, SamplingParams

Ids = tuple[int, ...]


@dataclass(frozen=True)
class ScoreRequest:
    """Log-probabilities of some continuations of one context.

    context: ids that all see each other, or what is left of them only if `causal`.
    continuations: the ids to be scored, at least one for each. A continuation sees the context and itself causally,
        never another one, and is fed as [lead] + its ids without the last.
    first_position: position of the lead; the tokens behind it have the same (advance 0) or count up (advance 1).
    """

    context: Ids
    continuations: tuple[Ids, ...]
    lead: int
    first_position: int
    advance: int
    causal: bool = False
    truncated: bool = field(default=False, compare=False)
    overlong: bool = field(default=False, compare=False)
    input_length: int = field(default=0, compare=False)

    @property
    def segments(self) -> tuple[Ids, ...]:
        """What is fed behind the context: a row per continuation, or one lead for all where each is a single token."""
        if all(len(ids) == 1 for ids in self.continuations):
            return ((self.lead,),)
        return tuple((self.lead, *ids[:-1]) for ids in self.continuations)

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return len(self.context) + max(map(len, self.segments))

    @property
    def size(self) -> int:
        """Tokens fed."""
        return len(self.context) + sum(map(len, self.segments))

    @property
    def family(self) -> tuple:
        """Requests share a batch only if their families are equal."""
        return ("score",)

    def content(self) -> list:
        """All that the answer depends on, for the key of a cached answer."""
        return ["score", self.context, self.continuations, self.lead, self.first_position, self.advance, self.causal]


@dataclass(frozen=True)
class GenerateRequest:
    """Ids that follow a context; see generation.fill.generate for the meaning of the fields.

    context: ends with the token that the first generated one follows.
    shared_position: of the last context token and of all generated ones; None: positions count up.
    """

    context: Ids
    params: SamplingParams | BeamParams
    limit: int
    end_tokens: Ids
    shared_position: int | None = None
    unidirectional: bool = False
    invalid_ids: Ids = ()
    forbidden_starts: tuple[Ids, ...] = ()
    truncated: bool = field(default=False, compare=False)
    overlong: bool = field(default=False, compare=False)
    input_length: int = field(default=0, compare=False)

    @property
    def counted_length(self) -> int:
        """What the context counts as in the length penalty: the original pads it to a multiple of 32."""
        return -(-len(self.context) // 32) * 32

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that may come of it."""
        return len(self.context) + self.limit

    @property
    def size(self) -> int:
        """Places that context and answer take up in the cache, over all beams."""
        return (len(self.context) + self.limit) * self.params.num_beams

    @property
    def family(self) -> tuple:
        return ("generate", self.params, self.end_tokens, self.unidirectional, self.invalid_ids, self.forbidden_starts)

    def content(self) -> list:
        return ["generate", type(self.params).__name__, asdict(self.params), self.context, self.limit, self.end_tokens,
                self.shared_position, self.unidirectional, self.invalid_ids, self.forbidden_starts]


Request = ScoreRequest | GenerateRequest
