"""What a task asks of the model, as values: log-probabilities of continuations, or generated ids; and batches of them.

Multiple choice and language modelling are the same question: a context, and texts to follow it whose tokens are given
log-probabilities (the choices; a window's scored part). Knows no text, no tokenizer and no torch.

Requests of like sizes share a batch, under a budget of tokens. Batches are a function of requests and settings alone,
never of ranks, of memory that happens to be free or of what is already answered: after a crash they are the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from generation.batching import CACHE_BYTES, bytes_per_place
from generation.params import BeamParams, SamplingParams
from glm.prompt_form import DEFAULT

Ids = tuple[int, ...]
CPU_TOKENS = 4096  # to score: more keeps no processor busier, and the activations leave its caches
CPU_PLACES = 16384  # to generate: places of the cache, many of which are looked at for every token that is computed
LEAST_TOKENS, MOST_TOKENS = 2048, 65536
MEMORY_SHARE = 0.5  # of what the weights leave of a GPU
# A batch of requests to generate holds more than is answered at once: the next one joins as others leave, so that fewer
# steps are of the last few rows. But it is computed again as a whole where a run was killed, and groups of ranks take
# one each: a task keeps as many as there are groups on eight machines of eight GPUs.
MOST_TIMES, FEWEST_BATCHES = 4, 64
LEAST_SHARED = 64  # tokens that contexts begin with alike; fewer are read once for each
MOST_LENGTH = 3  # of a sequence, in what is shared: attention looks at all of it for every token


@dataclass(frozen=True)
class ScoreRequest:
    """Log-probabilities of some continuations of one context.

    A continuation sees the context and itself causally, never another one, and is fed as [lead] + its ids without the
    last.
    """

    context: Ids  # ids that all see each other, or what is left of them only if `causal`
    continuations: tuple[Ids, ...]  # the ids to be scored, at least one for each
    lead: int
    first_position: int  # of the lead; of the first token of the blank where the context holds some of it
    advance: int  # 0: the tokens behind the lead have its position, 1: they count up from it
    causal: bool = False
    opened: int = 0  # the context's last tokens that belong to the continuations' blank, and are read as theirs
    truncated: bool = field(default=False, compare=False)  # the text lost its beginning, to fit what the task allows
    overlong: bool = field(default=False, compare=False)  # longer than the model is made for, since the task allows it
    input_length: int = field(default=0, compare=False)  # tokens of the text

    @property
    def segments(self) -> tuple[Ids, ...]:
        """What is fed behind the context: a row per continuation, or one lead for all where each is a single token."""
        if all(len(ids) == 1 for ids in self.continuations):
            return ((self.lead,),)
        return tuple((self.lead, *ids[:-1]) for ids in self.continuations)

    @property
    def beginning(self) -> tuple | None:
        """Requests in which it is equal may share the tokens that their contexts begin with: those see none behind
        them, and have the same positions. None: shares none."""
        if len(self.context) < LEAST_SHARED:
            return None
        blank = len(self.context) - self.opened
        seen = 0 if self.causal else blank  # tokens that all see each other
        return (seen, self.opened and (blank, self.first_position, self.advance),
                self.context[:max(seen, LEAST_SHARED)])

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
        return ["score", self.context, self.continuations, self.lead, self.first_position, self.advance, self.causal,
                self.opened]


@dataclass(frozen=True)
class GenerateRequest:
    """Ids that follow a context; see generation.batch.generate for the meaning of the fields."""

    context: Ids  # ends with the token that the first generated one follows
    params: SamplingParams | BeamParams
    limit: int
    end_tokens: Ids
    shared_position: int | None = None  # of the last context token and of all generated ones; None: they count up
    unidirectional: bool = False
    opened: int = 0
    invalid_ids: Ids = ()
    forbidden_starts: tuple[Ids, ...] = ()
    stops: tuple[str, ...] = ()  # texts of which the first to come ends the answer; beams go on, and are cut later
    truncated: bool = field(default=False, compare=False)  # the text lost its beginning, to fit what the task allows
    overlong: bool = field(default=False, compare=False)  # longer than the model is made for, since the task allows it
    input_length: int = field(default=0, compare=False)  # tokens of the text

    @property
    def counted_length(self) -> int:
        """What the context counts as in the length penalty: GLM-130B's original pads it to a multiple of 32."""
        is_padded = getattr(self.params, "ranking", None) in (None, DEFAULT.beam_ranking)
        return -(-len(self.context) // 32) * 32 if is_padded else len(self.context)

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
        return ("generate", self.params, self.end_tokens, self.unidirectional, self.invalid_ids, self.forbidden_starts,
                self.stops)

    def content(self) -> list:
        return ["generate", type(self.params).__name__, asdict(self.params), self.context, self.limit, self.end_tokens,
                self.shared_position, self.unidirectional, self.opened, self.invalid_ids,
                self.forbidden_starts, self.stops]


Request = ScoreRequest | GenerateRequest


def is_request(value: Any) -> bool:
    return isinstance(value, ScoreRequest | GenerateRequest)


def fault_of_request(request: Request, num_tokens: int) -> str | None:
    """What no model can be asked, or None. num_tokens: of the vocabulary."""
    if isinstance(request, ScoreRequest):
        lists = {"context": request.context, **{f"continuations[{place}]": ids
                                                for place, ids in enumerate(request.continuations)}}
        if not request.continuations or type(request.lead) is not int or type(request.first_position) is not int:
            return "must have continuations, and an id and a position to begin with"
    else:
        lists = {"context": request.context}
        if not isinstance(request.params, SamplingParams | BeamParams):
            return "params: must be SamplingParams or BeamParams"
        if type(request.limit) is not int or request.limit < 1:
            return "limit: must be at least 1"
        for name in ("end_tokens", "invalid_ids"):
            if not _are_ids(getattr(request, name), num_tokens):
                return f"{name}: must be a tuple of token ids"
        if not (isinstance(request.forbidden_starts, tuple)
                and all(_are_ids(ids, num_tokens) for ids in request.forbidden_starts)):
            return "forbidden_starts: must be a tuple of tuples of token ids"
    for name, ids in lists.items():
        if not _are_ids(ids, num_tokens) or not ids:
            return f"{name}: must be a tuple of at least one token id, each less than {num_tokens}"
    return None


def _are_ids(ids: Any, num_tokens: int) -> bool:
    return (isinstance(ids, tuple) and set(map(type, ids)) <= {int}
            and (not ids or 0 <= min(ids) <= max(ids) < num_tokens))


def batches_of(requests: Sequence[Request], max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Indices of the requests of every batch; the largest first, so that memory that is short shows at once.

    max_tokens: most places at a time, padding included; a larger request is answered alone.
    max_items: most requests at a time; None: as many as fit.
    """
    families: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        families.setdefault(request.family, []).append(index)
    batches = []
    for members in families.values():
        members.sort(key=lambda index: (-requests[index].size, index))
        if isinstance(requests[members[0]], ScoreRequest):
            batches += [[index for pack in packs for index in pack.members]
                        for packs in _of_packs(requests, members, max_tokens, max_items)]
            continue
        found = list(_cut(requests, members, max_tokens, max_items))
        if (times := len(found) // FEWEST_BATCHES) > 1:
            found = list(_cut(requests, members, max_tokens, max_items, min(times, MOST_TIMES)))
        batches += found
    return batches


@dataclass(frozen=True)
class Pack:
    """Requests that are read as one sequence: what their contexts begin with, and behind it the rest of each."""

    members: tuple[int, ...]
    common: int  # tokens that their contexts begin with; of a single request all of its context
    size: int  # tokens fed


def packs_of(requests: Sequence[ScoreRequest], members: Iterable[int], max_tokens: int | None = None,
             max_items: int | None = None) -> list[Pack]:
    """Requests that follow one another, those that share a beginning together. max_tokens, max_items: most of a pack;
    None: no limit."""
    packs: list[Pack] = []
    before = None  # how the last pack begins
    for index in members:
        request, beginning = requests[index], requests[index].beginning
        if beginning is not None and beginning == before:
            last = packs[-1]
            common = min(last.common, _alike(requests[last.members[0]].context, request.context))
            size = last.size + request.size - common + (last.common - common) * (len(last.members) - 1)
            if (size <= min(MOST_LENGTH * common, max_tokens or size)
                    and len(last.members) < (max_items or len(requests))):
                packs[-1] = Pack((*last.members, index), common, size)
                continue
        packs.append(Pack((index,), len(request.context), request.size))
        before = beginning
    return packs


def shape_of(requests: Sequence[ScoreRequest]) -> tuple[int, int]:
    """Of requests that are scored together: how many sequences they are, and tokens of the longest."""
    packs = packs_of(requests, range(len(requests)))
    return len(packs), max(pack.size for pack in packs)


def _alike(one: Ids, other: Ids) -> int:
    """How many ids both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if one[least:middle] == other[least:middle] else (least, middle - 1)
    return least


def _of_packs(requests: Sequence[ScoreRequest], members: Sequence[int], max_tokens: int,
              max_items: int | None) -> Iterator[list[Pack]]:
    """members: the largest first."""
    alike: dict[Hashable, list[int]] = {}
    for index in members:
        beginning = requests[index].beginning
        alike.setdefault(index if beginning is None else beginning, []).append(index)
    packs = packs_of(requests, (index for group in alike.values() for index in group), max_tokens, max_items)
    packs.sort(key=lambda pack: (-pack.size, pack.members[0]))
    batch: list[Pack] = []  # as they will be read: one that begins as the last one does may grow together with it
    for pack in packs:
        last = batch[-1].members if batch else ()
        grown = [*batch[:-1], *packs_of(requests, (*last, *pack.members))]
        tokens, items = len(grown) * max(each.size for each in grown), sum(len(each.members) for each in grown)
        if batch and (tokens > max_tokens or items > (max_items or len(requests))):
            yield batch
            grown = [pack]
        batch = grown
    yield batch


def _cut(requests: Sequence[Request], members: Sequence[int], max_tokens: int, max_items: int | None,
         times: int = 1) -> Iterator[list[int]]:
    """members: indices, the largest request's first. times: how many times a batch is what is answered at once."""
    begin = 0
    while begin < len(members):
        end = begin + times * at_once(requests[members[begin]], max_tokens, max_items)
        yield list(members[begin:end])
        begin = end


def at_once(largest: Request, max_tokens: int, max_items: int | None) -> int:
    """How many requests to generate are answered at a time, by the largest of their batch, which is the first."""
    fitting = max(1, max_tokens // largest.size)
    return fitting if max_items is None else min(fitting, max_items)


def default_max_tokens(model, requests: Sequence[Request]) -> int:
    """A budget for such requests to this model on its device: what keeps it busy and certainly fits."""
    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return cpu_tokens(requests, bytes_per_place(model))
    import torch

    total = torch.cuda.get_device_properties(parameter.device).total_memory
    return gpu_tokens(model.config, parameter.element_size(), bytes_per_place(model), total, model.weight_bytes())


def cpu_tokens(requests: Sequence[Request], per_place: int) -> int:
    """per_place: bytes of one token's keys and values."""
    is_scoring = all(isinstance(request, ScoreRequest) for request in requests)
    return CPU_TOKENS if is_scoring else min(CPU_PLACES, CACHE_BYTES // per_place)


def gpu_tokens(config, element: int, per_place: int, total: float, weights: float) -> int:
    """For a GPU of `total` bytes with so many of weights. element: bytes of an activation; per_place: of one token's
    keys and values."""
    activations = (8 * config.hidden_size + 6 * config.inner_hidden_size) * element  # of one layer
    fitting = (total - weights) * MEMORY_SHARE / (per_place + activations)
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, fitting // 1024 * 1024)))
