"""How long the rest of a run takes: what its batches cost, and what others of the same task have taken.

Costs are in products of one token: what a batch multiplies and looks at, by its shapes. They need not be right, but for
batches of one task beside one another: every task has a pace of its own, seconds for a cost, that is learned from the
batches that it has answered. So answers that end early count with what they take, and not with what they may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from evaluation.plan import Work
from evaluation.requests import GenerateRequest, Request, shape_of
from glm.config import ModelConfig
from planning.shapes import Format, Setup, embedding, layer_weights

LOOKED_AT = 2.0  # times that attention takes longer than its operations do in products
SCORES = 4.0  # the same of logits, which become log-probabilities
REMEMBERED = 0.9  # of what is known of a task, when a batch is answered: the next ones are more like the last ones
STEP_ROWS = 8  # a decoding step of fewer rows reads the weights all the same
BEGIN, END = 20.0, 60.0  # seconds of a run between which a batch of every task is answered ahead of its turn


class Pace:
    """Of a run, as its first process sees it."""

    def __init__(self, works: Mapping[str, Work], lacking: Mapping[str, Iterable[int]], model: ModelConfig):
        """lacking: of every task, the numbers of the batches that are to be computed."""
        shape = Shape(model)
        self._cost = {name: {number: shape.cost([works[name].requests[index] for index in works[name].batches[number]])
                             for number in numbers} for name, numbers in lacking.items()}
        self._kind = {name: isinstance(work.requests[0], GenerateRequest) for name, work in works.items()}
        self._own = own_batches(works)
        self._taken: dict[str, tuple[float, float]] = {}  # of tasks: cost and seconds of what is answered
        self._now: tuple[str, float] | None = None  # the task of the round that runs, and what its answers so far cost

    def moved(self, name: str, numbers: Sequence[int], share: float) -> None:
        """Of the task's batches, which are being computed, such a share is answered."""
        self._now = name, share * sum(self._cost[name].get(number, 0.0) for number in numbers)

    def answered(self, name: str, numbers: Sequence[int], seconds: float | None) -> None:
        """The task's batches need not be computed any more. seconds: that it took; None: another task's answers do."""
        self._now = None
        cost = sum(self._cost[name].pop(number, 0.0) for number in numbers)
        if seconds is not None and cost:
            before, so_far = self._taken.get(name, (0.0, 0.0))
            self._taken[name] = REMEMBERED * before + cost, REMEMBERED * so_far + seconds

    def left(self) -> float:
        """Seconds."""
        done = 0.0 if self._now is None else self._of(self._now[0]) * self._now[1]
        return sum(self._of(name) * sum(costs.values()) for name, costs in self._cost.items()) - done

    def unknown(self, seconds: float, count: int) -> tuple[str, list[int]] | None:
        """After so many seconds of the run, the dearest task that has answered nothing, and at most `count` of its
        batches, to be answered ahead of its turn; None: there is none, or it is not the time for it."""
        waiting = {name: sorted(costs.keys() & self._own[name]) for name, costs in self._cost.items()
                   if name not in self._taken}
        if not any(waiting.values()) or not BEGIN <= seconds < END:
            return None
        name = max(filter(waiting.get, waiting), key=lambda name: sum(self._cost[name].values()))
        numbers = waiting[name]
        middle = (len(numbers) - 1) // 2  # neither of the largest nor of the smallest
        return name, numbers[middle:middle + count]

    def _of(self, name: str) -> float:
        """The task's pace, or that of its like, or that of all: seconds for a cost."""
        alike = [other for other in self._taken if self._kind[other] == self._kind[name]]
        names = [name] if name in self._taken else alike or list(self._taken)
        cost, seconds = (sum(values) for values in zip((0.0, 0.0), *(self._taken[each] for each in names), strict=True))
        return seconds / cost if cost else 0.0


def own_batches(works: Mapping[str, Work]) -> dict[str, set[int]]:
    """Of every task the numbers of the batches whose questions no other batch asks. The first answer to a question
    counts for all, and may differ in its last bits from batch to batch: others keep their order, or results would
    depend on how fast a machine is."""
    asked = {name: [{work.hashes[index] for index in batch} for batch in work.batches] for name, work in works.items()}
    counts = Counter(question for batches in asked.values() for batch in batches for question in batch)
    return {name: {number for number, batch in enumerate(batches) if all(counts[question] == 1 for question in batch)}
            for name, batches in asked.items()}


def is_over(seconds: float) -> bool:
    """Whether nothing is answered ahead of its turn any more."""
    return seconds >= END


class Shape:
    """Of the model, in products of a token's."""

    def __init__(self, model: ModelConfig):
        setup = Setup(model, Format("fp32"))
        products = model.num_layers * layer_weights(setup)
        self.seen = LOOKED_AT * 2 * model.num_layers * setup.heads_width / products  # for a place that a token sees
        self.head = embedding(setup).count / products  # for a token's logits

    def cost(self, batch: Sequence[Request]) -> float:
        rows = len(batch)
        if not isinstance(batch[0], GenerateRequest):
            rows, width = shape_of(batch)
            scored = sum(len(ids) for request in batch for ids in request.segments)
            return rows * width * (1 + self.seen * width) + SCORES * self.head * scored
        width = max(len(request.context) for request in batch)
        steps, rows_of_step = max(request.limit for request in batch), rows * batch[0].params.num_beams
        step = max(rows_of_step, STEP_ROWS) * (1 + self.head) + rows_of_step * self.seen * width
        return rows * width * (1 + self.seen * width) + steps * step
