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
from evaluation.checking import Found
from evaluation.config import TaskConfig
from evaluation.hashing import combined
from evaluation.keeper import Keeper, Settings, describe, sources
from evaluation.results import SCHEMA
from evaluation.rounds import answer, from_first, on_first
from evaluation.work import Work, prepare
from runtime import parallel
from runtime.errors import UserError
from runtime.parallel import agree
from runtime.show import Progress


def run(model, tokenizer, scorer, configs: Sequence[TaskConfig], found: Mapping[str, Found], settings: Settings,
        say: Callable[[str], None]) -> dict | None:
    """Score all tasks and write everything that a run leaves behind.

    found: of evaluation.checking.look. say: prints a line to standard output; called on the first process only.
    Returns what results.json holds, on the first process; None on the others.
    """
    clock = Clock()

    def budget(requests):
        return settings.max_batch_tokens or default_max_tokens(model, requests)

    present = [config for config in configs if found[config.name].reason is None]
    works = agree(lambda: {config.name: prepare(config, tokenizer, found[config.name].rows, settings.limit, budget,
                                                settings.micro_batch_size, model.config.max_sequence_length)
                           for config in present})
    found_here = agree(lambda: sources(tokenizer, settings.checkpoint) if _is_first_of_host() else None)
    agree(lambda: _check_same(parallel.collect(_digests(works, found_here))))
    head = on_first(lambda: describe(model, configs, settings, found_here))
    with contextlib.ExitStack() as stack:
        keeper = on_first(lambda: Keeper(head, works, settings, stack))
        totals = from_first(lambda: keeper.totals())
        kept = sum(len(work.requests) for work in works.values()) - totals[0]
        progress = stack.enter_context(Progress(*totals, kept, shown=parallel.is_first_process()))

        def tell(lines: Sequence[str]) -> None:
            progress.write(lambda: [say(line) for line in lines])

        tasks = {}
        for config in configs:
            if config.name not in works:
                record = on_first(lambda config=config: keeper.missing(config, found[config.name].reason, tell))
            else:
                record = _task(works[config.name], scorer, keeper, progress, tell, clock)
            tasks[config.name] = record
    return on_first(lambda: keeper.finish(tasks, clock.facts(model, settings.command)))


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


def _is_first_of_host() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _digests(works: Mapping[str, Work], found: Mapping[str, Mapping] | None) -> tuple[str, dict[str, str]]:
    """This host's name, and hashes of all that must be the same on all hosts."""
    tasks = {f"the task {name} (task file or data)": combined((digest, "") for digest in work.hashes)
             for name, work in works.items()}
    files = {f"the {name}": values["sha256"] for name, values in (found or {}).items()}
    return platform.node(), tasks | files


def _check_same(everybody: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Copies of the data or the weights that differ between hosts would give a mixture of results."""
    first, wanted = everybody[0]
    for host, digests in everybody[1:]:
        for what, digest in digests.items():
            if digest != wanted.get(what, digest):
                raise UserError(f"{what} on host {host} is not that on host {first}; give all hosts the same files")


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

    def facts(self, model, command: str | None) -> dict:
        import torch

        parameter = next(model.parameters())
        is_cuda = parameter.device.type == "cuda"
        return {
            "schema": SCHEMA, "command": command, "started": self._started,
            "seconds": round(time.monotonic() - self._begin, 3),
            "host": platform.node(), "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "model_parallel_size": parallel.size(), "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(parameter.device) if is_cuda else "cpu",
            "tasks": self._tasks}
