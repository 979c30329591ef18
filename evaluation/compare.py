"""What has changed between two runs over the same items, and how surely; commands/compare.py says what is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.metrics import statistics_of
from evaluation.recorded import PARTS, RecordedRun
from evaluation.scored_rows import ScoredRows, check_same
from evaluation.statistics import average, blocks_of, holm, mcnemar_exact, paired_bootstrap
from runtime.errors import UserError

SCHEMA = 1
_NAMED = 6  # differences that a message names, of however many there are
Run = RecordedRun | ScoredRows


@dataclass(frozen=True)
class PairedFile:
    """The items of one data file that both runs scored."""

    file: str
    ones: list[dict]
    others: list[dict]  # others[i] answers the same row as ones[i]
    rows: float  # what the file counts for in an average: its rows, of which an item may take several


class Pairing:
    """Which tasks and files of two runs can be compared. left_out: what cannot, a line each."""

    def __init__(self, one: Run, other: Run, common: bool = False):
        """Raises UserError naming what differs, or, with `common`, only where nothing is left."""
        self.one, self.other, self.common = one, other, common
        self.left_out: list[str] = []
        self.files: dict[str, list[str]] = {}
        for task in dict.fromkeys([*one.done, *other.done]):
            self._pair_files(task)
        if self.left_out and not common:
            raise UserError(f"the runs are not of the same tasks and data ({self._differences()}); --common compares "
                            "what is the same")
        self.files = {task: files for task, files in self.files.items() if files}
        if not self.files:
            raise UserError(f"{one.folder} and {other.folder} have no data file in common"
                            + (f": {self._differences()}" if self.left_out else ""))

    def _pair_files(self, task: str) -> None:
        if task not in self.one.done or task not in self.other.done:
            has = self.one if task in self.one.done else self.other
            self.left_out.append(f"task {task}: only in {has.folder}")
            return
        entries = [run.done[task] for run in (self.one, self.other)]
        if entries[0].get("sha256") != entries[1].get("sha256"):
            self.left_out.append(f"task {task}: the task files differ ({entries[0]['file']}, {entries[1]['file']})")
            return
        files = [entry["files"] for entry in entries]
        self.files[task] = []
        for file in sorted({*files[0], *files[1]}):
            if file not in files[0] or file not in files[1]:
                has = self.one if file in files[0] else self.other
                self.left_out.append(f"task {task}: {file}: only in {has.folder}")
            elif files[0][file]["sha256"] != files[1][file]["sha256"]:
                self.left_out.append(f"task {task}: {file}: the data differ")
            else:
                counts = [each[file]["n"] for each in files]
                if counts[0] != counts[1]:
                    self.left_out.append(f"task {task}: {file}: {counts[0]} items against {counts[1]}")
                self.files[task].append(file)

    def _differences(self) -> str:
        more = len(self.left_out) - _NAMED
        return "; ".join(self.left_out[:_NAMED]) + (f"; and {more} more" if more > 0 else "")

    def read(self, task: str, file: str) -> PairedFile:
        """The items of a file, paired by their indices."""
        ones, others = ({item["index"]: item for item in run.items(task, file)} for run in (self.one, self.other))
        shared = sorted(set(ones) & set(others))
        if not self.common and not len(shared) == len(ones) == len(others):
            raise UserError(f"task {task}: {file}: the samples are of different items ({len(ones)} in "
                            f"{self.one.folder}, {len(others)} in {self.other.folder}, {len(shared)} in both); "
                            "--common takes these")
        if not shared:
            raise UserError(f"task {task}: {file}: no item is in both samples")
        rows = self.one.done[task]["files"][file]["n"] * len(shared) / len(ones)
        return PairedFile(file, [ones[index] for index in shared], [others[index] for index in shared], rows)

    def groups(self, task: str) -> dict[str, list[str]]:
        """The files that can be compared, by group; groups without any are left out."""
        found = {group: [file for file in files if file in self.files[task]]
                 for group, files in self.one.groups(task).items()}
        return {group: files for group, files in found.items() if files}


@dataclass(frozen=True)
class Comparison:
    """What `compare` has found."""

    record: dict  # as --json writes it
    flipped: list[tuple[str, str, dict, dict, bool]]  # (task, file, item in A, item in B, is it right in B)


def compare(folder_a: str | Path, folder_b: str | Path, common: bool = False,
            own_code: bool = False) -> Comparison:
    """folder_a, folder_b: of runs, or files of scored rows. own_code: import what the runs' own task files name. Raises
    UserError for what is no finished run, and for runs that are not of the same tasks and data."""
    runs = [ScoredRows(path) if Path(path).is_file() else RecordedRun(path, own_code) for path in (folder_a, folder_b)]
    if all(isinstance(run, ScoredRows) for run in runs):
        check_same(*runs)
    pairing = Pairing(*runs, common)
    tasks, flipped = {}, []
    for task in pairing.files:
        tasks[task] = _task_record(pairing, task, flipped)
    tests = [values["mcnemar"] for record in tasks.values() for metrics in record["groups"].values()
             for values in metrics.values() if "mcnemar" in values]
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
    return Comparison({
        "schema": SCHEMA, "a": str(runs[0].folder), "b": str(runs[1].folder), "left_out": pairing.left_out,
        "differs": [{"what": what, "a": one, "b": other} for what, one, other in what_differs(*runs)],
        "tests": len(tests), "tasks": tasks}, flipped)


def _task_record(pairing, task: str, flipped: list) -> dict:
    arrays, metrics, flips, weights = {}, {}, {}, {}
    for file in pairing.files[task]:
        pair = pairing.read(task, file)
        metrics[file] = pairing.one.metrics(task, pair.ones)
        arrays[file] = {name: tuple(statistics_of(metric, items) for items in (pair.ones, pair.others))
                        for name, metric in metrics[file].items()}
        weights[file] = {name: pair.rows if metric.applies is None else sum(map(metric.applies, pair.ones))
                         for name, metric in metrics[file].items()}
        decided = next((name for name, pairs in arrays[file].items() if _is_decided(metrics[file][name], pairs)), None)
        if decided is not None:
            flips[file] = {"metric": decided} | _flips(task, pair, arrays[file][decided], flipped)
    groups = {}
    for group, files in pairing.groups(task).items():
        names = dict.fromkeys(name for file in files for name in arrays[file])
        groups[group] = {}
        for name in names:
            having = [file for file in files if name in arrays[file]]
            groups[group][name] = _difference(metrics[having[0]][name], [arrays[file][name] for file in having],
                                              [weights[file][name] for file in having], having)
        test = next((values for values in groups[group].values() if "only_a" in values), None)
        if test is not None:  # the group's first figure of right and wrong; others of the kind say the same
            test["mcnemar"] = {"p": mcnemar_exact(test["only_a"], test["only_b"])}
        if not pairing.common:
            _check_recorded(pairing, task, group, groups[group])
    return {"groups": groups, "flips": flips}


def _is_decided(metric, pairs: Sequence) -> bool:
    """Whether every item is either right or wrong, or is left out in both runs: what McNemar's test is about.

    pairs: statistics of run A and of run B.
    """
    one, other = pairs
    return metric.interval == "wilson" and one.shape[1] == 2 and bool(
        np.isin(np.concatenate([one, other]), (0.0, 1.0)).all() and (one[:, 1] == other[:, 1]).all()
        and (one[:, 0] <= one[:, 1]).all() and (other[:, 0] <= other[:, 1]).all())


def _difference(metric, pairs: Sequence, weights: Sequence[float], files: Sequence[str]) -> dict:
    found = paired_bootstrap(metric, pairs, weights, files)
    a, b = (average(metric, [pair[run] for pair in pairs], weights) for run in (0, 1))
    values = {"a": a, "b": b, "difference": found.value, "interval": [found.low, found.high],
              "n": round(sum(weights)), "higher_is_better": metric.higher_is_better}
    if all(_is_decided(metric, pair) for pair in pairs):
        only_a, only_b = _discordant(pairs, files)
        values |= {"only_a": only_a, "only_b": only_b}
    return values


def _discordant(pairs: Sequence, files: Sequence[str]) -> tuple[int, int]:
    """Items for which run A, and for which run B, is ahead; prompts for the same items are put together."""
    ahead = [other[:, 0] - one[:, 0] for one, other in pairs]
    balance = np.concatenate([np.sum([ahead[place] for place in block], axis=0) for block in blocks_of(ahead, files)])
    return int((balance < 0).sum()), int((balance > 0).sum())


def _flips(task: str, pair, arrays: tuple, flipped: list) -> dict:
    """Indices that only run A has right (lost) and only run B (gained)."""
    lost, gained = [], []
    for one, other, before, after in zip(pair.ones, pair.others, arrays[0][:, 0], arrays[1][:, 0], strict=True):
        if before != after:
            (gained if after > before else lost).append(one["index"])
            flipped.append((task, pair.file, one, other, bool(after > before)))
    return {"lost": lost, "gained": gained}


def _check_recorded(pairing, task: str, group: str, metrics: dict[str, dict]) -> None:
    """The samples must give the figures of results.json: otherwise they are not of that run."""
    for run, key in ((pairing.one, "a"), (pairing.other, "b")):
        for name, values in metrics.items():
            recorded = run.tasks[task]["groups"].get(group, {}).get(name, {}).get("average")
            if recorded is None or abs(recorded - values[key]) > 1e-4 * max(1.0, abs(recorded)):
                shown = "no figure" if recorded is None else f"{recorded:g}"
                raise UserError(f"{run.folder}: task {task}, group {group}: the samples give {name} {values[key]:g}, "
                                f"results.json has {shown}; they do not belong together, or the metric has changed "
                                "since: evaluate again")


def what_differs(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """(name, value in one, value in other) of settings, versions and hashes that the runs do not share."""
    flat = [{name: value for part in PARTS for name, value in _pairs(part, run.results.get(part))}
            for run in (one, other)]
    names = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(name) != flat[1].get(name)]
    return [(name, flat[0].get(name, "-"), flat[1].get(name, "-")) for name in names]


def _pairs(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in _pairs(f"{name} {key}", each)]
    text = "none" if value is None else str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return [(name, text[:12] if is_hash else text)]
