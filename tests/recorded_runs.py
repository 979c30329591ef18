"""Output folders of runs that never were: results.json and samples/ of made-up items, through the real writers."""

import hashlib
from pathlib import Path

from evaluation.config import CONFIGS, TaskType, as_record
from evaluation.metrics import METRICS
from evaluation.output import SAMPLES, sample_names, write_json, write_samples
from evaluation.results import DONE, FileScores, rounded, task_record


def sha(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def choice_item(index, prediction, label=0, choices=2, confidence=1.0, **more):
    log_probs = [-1.0 - confidence * (place != prediction) for place in range(choices)]
    return {"index": index, "input_length": 20 + index, "truncated": False, "prediction": prediction, "label": label,
            "log_probs": log_probs, "choice_lengths": [1] * choices} | more


def text_item(index, prediction, targets, **more):
    return {"index": index, "input_length": 30 + index, "truncated": False, "prediction": prediction,
            "ids": list(range(len(prediction))), "targets": targets, "beams": [list(range(len(prediction)))]} | more


def window_item(index, loss, tokens=100, words=80.0, **more):
    return {"index": index, "input_length": 200, "truncated": False, "loss": loss, "tokens": tokens,
            "words": words} | more


def choice_items(right, label=0):
    """One item for each of `right`: 1 right, 0 wrong."""
    return [choice_item(index, label if good else 1 - label, label) for index, good in enumerate(right)]


class MadeTask:
    """name, type ("mul", "gen", "lm"), files {relative path: items}; groups {group: [files]}, default one "all"."""

    def __init__(self, name, kind, files, groups=None, metrics=None, yaml="", path="data", **settings):
        self.name, self.files, self.yaml = name, files, yaml or f"{name}.yaml"
        self.groups = groups or {"all": list(files)}
        own = {} if metrics is None else {"metrics": metrics}
        patterns = {} if groups is None else {"file_pattern": {group: f"**/{group}*" for group in groups}}
        task_type = TaskType(kind)
        self.config = CONFIGS[task_type](name=name, path=path, source=Path(self.yaml), **own, **patterns, **settings)

    def record(self, data="", limit=None):
        """limit: of the rows, of which each file has one more than its items."""
        metrics = {name: METRICS[name] for name in self.config.metrics}
        scores = {file: FileScores(sha((data, self.name, file)), len(items) + (limit is not None), len(items),
                                   [item["index"] for item in items if item["truncated"]], items, metrics)
                  for file, items in self.files.items()}
        return task_record(self.config, sha(self.yaml), self.groups, scores)


def missing(name):
    config = CONFIGS[TaskType("mul")](name=name, path="data/none", source=Path(f"{name}.yaml"))
    return {"status": "missing", "file": f"{name}.yaml", "sha256": sha(name), "config": as_record(config),
            "reason": "data/none: no such folder", "counts": {"expected": 0, "scored": 0, "truncated": 0}, "groups": {},
            "files": {}}


def write_run(folder, tasks, checkpoint="glm-small", data="", absent=(), **settings):
    """Write the run; data: changes the hashes of all data files."""
    records = {task.name: task.record(data, settings.get("limit")) for task in tasks}
    records |= {name: missing(name) for name in absent}
    assert all(record["status"] == DONE for name, record in records.items() if name not in absent)
    results = {
        "schema": 1, "settings": {"dtype": "fp32", "device": "cpu", "limit": None} | settings,
        "versions": {"torch": "2.13.0", "python": "3.12"},
        "checkpoint": {"path": f"checkpoints/{checkpoint}", "iteration": "1000", "sha256": sha(checkpoint)},
        "tokenizer": {"path": "ice_text.model", "sha256": sha("tokenizer")}, "code": {"sha256": sha("code")},
        "tasks": records}
    samples = sample_names({name: record["files"] for name, record in records.items()})
    for task in tasks:
        for file, items in task.files.items():
            path = folder / SAMPLES / samples[task.name, file]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_samples(path, items)
    write_json(folder / "results.json", rounded(results))
    return folder
