"""A run: from tasks to answers, from answers to figures, files and the lines on the terminal.

Every process calls `run`; the first one keeps the answers, says the lines and writes the files.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence

from evaluation import terminal
from evaluation.batching import default_max_tokens
from evaluation.config import TaskConfig
from evaluation.keeper import Keeper, Settings, describe
from evaluation.progress import Progress
from evaluation.results import SCHEMA
from evaluation.rounds import answer, from_first, on_first
from evaluation.work import Found, Work, prepare
from glm import parallel
from glm.loading import agree


def run(model, tokenizer, scorer, configs: Sequence[TaskConfig], found: Mapping[str, Found], settings: Settings,
        say: Callable[[str], None]) -> dict | None:
    """Score all tasks and write everything that a run leaves behind.

    found: of evaluation.work.look. say: prints a line to standard output; called on the first process only.
    Returns what results.json holds, on the first process; None on the others.
    """
    clock = Clock()

    def budget(requests):
        return settings.max_batch_tokens or default_max_tokens(model, requests)

    present = [config for config in configs if found[config.name].reason is None]
    works = agree(lambda: {config.name: prepare(config, tokenizer, settings.limit, budget,
                                                settings.micro_batch_size) for config in present})
    head = on_first(lambda: describe(model, tokenizer, configs, settings))
    with contextlib.ExitStack() as stack:
        keeper = on_first(lambda: Keeper(head, works, settings, stack))
        totals = from_first(lambda: keeper.totals())
        progress = stack.enter_context(Progress(*totals, shown=parallel.is_first_process()))

        def tell(lines: Sequence[str]) -> None:
            progress.write(lambda: [say(line) for line in lines])

        tasks = {}
        for config in configs:
            if config.name not in works:
                record = on_first(lambda config=config: keeper.missing(config, found[config.name].reason, tell))
            else:
                record = _task(works[config.name], scorer, keeper, progress, tell, clock)
            tasks[config.name] = record
    return on_first(lambda: keeper.finish(tasks, clock.facts(model)))


def _task(work: Work, scorer, keeper: Keeper | None, progress: Progress, tell, clock: Clock) -> dict | None:
    begin = time.monotonic()
    name = work.config.name
    on_first(lambda: tell(terminal.beginning(work.config)))
    progress.task(name)
    numbers = from_first(lambda: keeper.lacking(work))
    # what another task has answered in the meantime is done without being computed
    progress.skip(*on_first(lambda: keeper.saved(work, numbers)) or (0, 0))
    answer(work, scorer, keeper and keeper.keys[name], keeper and keeper.journal, numbers, progress.advance)
    record = on_first(lambda: keeper.record(work))
    seconds = time.monotonic() - begin
    clock.task(work, numbers, seconds)
    on_first(lambda: tell(terminal.figures(work.config, work.groups, record, seconds)))
    return record


class Clock:
    """Everything about a run that is another the next time: timings.json."""

    def __init__(self):
        self._begin, self._started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._tasks: dict[str, dict] = {}

    def task(self, work: Work, numbers: Sequence[int], seconds: float) -> None:
        computed = sum(len(work.batches[number]) for number in numbers)
        self._tasks[work.config.name] = {
            "seconds": round(seconds, 3), "items": len(work.requests), "computed": computed,
            "items_per_second": round(computed / seconds, 3) if computed else None, "max_batch_tokens": work.max_tokens}

    def facts(self, model) -> dict:
        import torch

        parameter = next(model.parameters())
        is_cuda = parameter.device.type == "cuda"
        return {
            "schema": SCHEMA, "started": self._started, "seconds": round(time.monotonic() - self._begin, 3),
            "host": platform.node(), "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "model_parallel_size": parallel.size(), "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(parameter.device) if is_cuda else "cpu",
            "tasks": self._tasks}
