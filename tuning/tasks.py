"""Which tasks there are, and which module of tuning/data makes their samples.

Such a module has

    TASKS                                         names, in lower case
    examples(settings) -> list[Example]           what was read from the files, of the split that is asked for
    samples(settings, tokenizer) -> list[Sample | Unbuildable]        in the data set's order
    metrics(settings, samples, predictions) -> dict[str, float]       predictions: indices, or texts of seq2seq

and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from runtime.errors import UserError
from runtime.show import nearest

MODULES: tuple[str, ...] = ("seq2seq",)  # of tuning/data


def module_of(task: str | None) -> ModuleType:
    """UserError, with the nearest name, for a task that there is not."""
    known: list[str] = []
    for name in MODULES:
        module = import_module(f"tuning.data.{name}")
        if task in module.TASKS:
            return module
        known += module.TASKS
    if task is None:
        raise UserError(f"no task was named; --task takes {', '.join(sorted(known))}")
    close = nearest(task, known)
    raise UserError(f"--task {task}: there is no such task; "
                    + (f"did you mean {close}?" if close else f"there are {', '.join(sorted(known))}"))
