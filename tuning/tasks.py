"""Which tasks there are, and which module of tuning/data makes their samples.

Such a module has

    TASKS                                         names, in lower case
    SUFFIXES, if it has any                       of files, each of which is a task
    examples(settings) -> list[Example]           what was read from the files, of the split that is asked for
    samples(settings, tokenizer) -> list[Sample | Unbuildable]        in the data set's order
    facts(settings, samples) -> dict[str, Any], if it counts them     rows that were shortened, empty texts ...
    metrics(settings, samples, predictions) -> dict[str, float]       predictions: indices, or texts of seq2seq

and imports no torch. Two are made of something else than a data set's rows: `chat` of rows of ids, for a checkpoint,
and `pretrain` of documents (tuning/data/pretrain.py).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from runtime.errors import UserError
from runtime.show import nearest
from tuning.options import Settings
from tuning.tokenizers import open_for

if TYPE_CHECKING:
    from tuning.data.sample import Sample, Unbuildable

MODULES: tuple[str, ...] = ("cloze", "seq2seq", "language")  # of tuning/data
CHAT, PRETRAIN = "chat", "pretrain"


def module_of(task: str | None) -> ModuleType:
    """UserError, with the nearest name, for a task that there is not."""
    known = [CHAT, PRETRAIN]
    for name in MODULES:
        module = import_module(f"tuning.data.{name}")
        if task in module.TASKS or (task and task.endswith(getattr(module, "SUFFIXES", ()))):
            return module
        known += module.TASKS
    if task is None:
        raise UserError(f"no task was named; --task takes {', '.join(sorted(known))}")
    if task in (CHAT, PRETRAIN):
        raise UserError(f"--task {task}: this is not done with {task}")
    close = nearest(task, known)
    raise UserError(f"--task {task}: there is no such task; "
                    + (f"did you mean {close}?" if close else f"there are {', '.join(sorted(known))}"))


def kind_of(task: str | None) -> str:
    """`chat`, or the module of tuning/data that makes the task's samples. UserError for a task that there is not."""
    return CHAT if task == CHAT else module_of(task).__name__.rpartition(".")[2]


def samples_of(settings: Settings, load: Path | None = None) -> list[Sample | Unbuildable]:
    """The samples of any task but `pretrain`, in the data set's order. load: the checkpoint, where there is one."""
    if settings.data.task == CHAT:
        from tuning.data import chat, chat_files

        if settings.streams.tokenized is None and chat_files.file_of(settings) is not None:
            return chat_files.samples(settings, open_for(settings, load), load)
        return chat.samples_of(settings.streams.tokenized, load)
    return module_of(settings.data.task).samples(settings, open_for(settings, load))
