"""A finished run as its output folder records it: results.json, the items of samples/, and the metrics they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from glm.errors import UserError

RESULTS = "results.json"
SCHEMA = 1


class RecordedRun:
    """results: the mapping of results.json. Items are read file by file, when they are asked for."""

    def __init__(self, folder: str | Path):
        """Raises UserError for a folder that holds no finished run."""
        from evaluation.results import sample_folders

        self.folder = Path(folder)
        self.results = _results(self.folder)
        self.tasks: dict[str, dict] = self.results["tasks"]
        self._sample_folders = sample_folders(list(self.tasks))

    @property
    def done(self) -> dict[str, dict]:
        """The tasks that have figures; the others had no data."""
        return {name: task for name, task in self.tasks.items() if task.get("status") == "done"}

    def items(self, task: str, file: str) -> list[dict]:
        """The items of one data file, in order. Raises UserError for samples that are missing, cut off or no items."""
        from evaluation.results import sample_path

        path = sample_path(self.folder, self._sample_folders[task], file)
        try:
            lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; evaluating again with the same --output writes it") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not valid UTF-8 at byte {error.start + 1}") from None
        items = []
        for number, line in enumerate(lines if lines != [""] else [], 1):
            try:
                items.append(json.loads(line))
            except ValueError:
                raise UserError(f"{path}:{number}: not valid JSON") from None
            if not isinstance(items[-1], dict) or not isinstance(items[-1].get("index"), int):
                raise UserError(f"{path}:{number}: not an item (a JSON object with its `index`)")
        if not items:
            raise UserError(f"{path}: holds no item")
        return items

    def metrics(self, task: str, items: Sequence[Mapping]) -> dict:
        """The metrics of a file's items, by name. Raises UserError where the task's module or metric is not there."""
        return _task(self.tasks[task]).metrics(items)

    def groups(self, task: str) -> dict[str, list[str]]:
        """Relative paths of the files that each group reports."""
        entry = self.tasks[task]
        by_group: dict[str, list[str]] = {}
        for file, values in entry["files"].items():
            by_group.setdefault(values["group"], []).append(file)
        if set(by_group) == set(entry["groups"]):
            return by_group
        return _task(entry).groups(by_group)  # a class with groups of groups, such as an overall figure


def _task(entry: Mapping):
    """The task as far as its metrics and groups go: they need no tokenizer, so the constructor is not called."""
    from evaluation.config import TaskType
    from evaluation.tasks import task_class

    config = SimpleNamespace(**{"module": None, "options": {}} | dict(entry["config"]))
    config.type, config.source = TaskType(config.type), Path(entry["file"])
    cls = task_class(config)
    task = cls.__new__(cls)
    task.config, task.tokenizer = config, None
    return task


def _results(folder: Path) -> dict:
    path = folder / RESULTS
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the --output folder of a run")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {RESULTS}: not the output of a run, or of one that has not ended; the same "
                        "command goes on with it") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON") from None
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
        raise UserError(f"{path}: not the results of an evaluation (no `tasks`)")
    if results.get("schema") != SCHEMA:
        raise UserError(f"{path}: has schema {results.get('schema')!r}; this program reads schema {SCHEMA}")
    return results
