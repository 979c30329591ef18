"""What two runs have in common: the same tasks, files and items, by their hashes and indices."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.recorded import RecordedRun
from runtime.errors import UserError

_NAMED = 6  # differences that a message names, of however many there are


@dataclass(frozen=True)
class PairedFile:
    """The items of one data file that both runs scored: ones[i] and others[i] answer the same row. rows: what the file
    counts for in an average: its rows, of which an item may take several."""

    file: str
    ones: list[dict]
    others: list[dict]
    rows: float


class Pairing:
    """Which tasks and files of two runs can be compared. left_out: what cannot, a line each."""

    def __init__(self, one: RecordedRun, other: RecordedRun, common: bool = False):
        """Raises UserError naming what differs, or, with `common`, only where nothing is left."""
        self.one, self.other, self.common = one, other, common
        self.left_out: list[str] = []
        self.files: dict[str, list[str]] = {}
        for task in dict.fromkeys([*one.done, *other.done]):
            self._pair_files(task)
        self._refuse_differences()
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

    def _refuse_differences(self) -> None:
        if self.left_out and not self.common:
            raise UserError(f"the runs are not of the same tasks and data ({self._differences()}); --common compares "
                            "what is the same")

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


def what_differs(one: RecordedRun, other: RecordedRun) -> list[tuple[str, str, str]]:
    """(name, value in one, value in other) of settings, versions and hashes that the runs do not share."""
    flat = [dict(_flat(run.results)) for run in (one, other)]
    names = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(name) != flat[1].get(name)]
    return [(name, flat[0].get(name, "-"), flat[1].get(name, "-")) for name in names]


def _flat(results: dict) -> list[tuple[str, str]]:
    return [pair for part in ("checkpoint", "tokenizer", "settings", "versions", "code")
            for pair in _pairs(part, results.get(part))]


def _pairs(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in _pairs(f"{name} {key}", each)]
    text = "none" if value is None else str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return [(name, text[:12] if is_hash else text)]
