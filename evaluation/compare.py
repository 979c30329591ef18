"""python -m evaluation compare RUN_A RUN_B: what has changed between two runs over the same items, and how surely.

Every figure's difference has a paired bootstrap interval. Where an item is either right or wrong, McNemar's exact test
says whether the items that flipped did so more in one direction than chance would have it, and Holm's correction keeps
many tasks from making one of them look changed. With several prompts for the same items, an item counts once, for the
run that has it right under more of the prompts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """What `compare` has found. record: as --json writes it; flipped: (task, file, item in A, in B, is right in B)."""

    record: dict
    flipped: list[tuple[str, str, dict, dict, bool]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="output folder of a run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="output folder of the run to compare with it")
    parser.add_argument("--common", action="store_true",
                        help="where the runs differ in tasks, data or number of items, take what is the same")
    parser.add_argument("--own-code", action="store_true",
                        help="import the code that task files outside this repository name for their metrics")
    parser.add_argument("--show-flips", type=int, default=0, metavar="N",
                        help="list the first N items of every task that one run has right and the other wrong")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, with all indices, to FILE")


def main(arguments: argparse.Namespace) -> int:
    """0: compared, whatever came of it; 2: a mistake, with one line on standard error."""
    try:
        if arguments.show_flips < 0:
            raise UserError(f"--show-flips {arguments.show_flips}: must be 0 or more")
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.absolute().parent}")
        found = compare(arguments.run_a, arguments.run_b, arguments.common, arguments.own_code)
        if arguments.json is not None:
            _write(arguments.json, found.record)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from evaluation.compare_table import comparison_table, flip_lines

    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    sys.stdout.write(comparison_table(found.record, width, is_terminal))
    sys.stdout.writelines(f"{line}\n" for line in flip_lines(found.flipped, arguments.show_flips))
    return 0


def compare(folder_a: str | Path, folder_b: str | Path, common: bool = False,
            own_code: bool = False) -> Comparison:
    """own_code: import what the runs' own task files name. Raises UserError for folders that are no finished runs, or
    not of the same tasks and data."""
    from evaluation.pairing import Pairing, what_differs
    from evaluation.recorded import RecordedRun
    from evaluation.statistics import holm

    runs = [RecordedRun(folder, own_code) for folder in (folder_a, folder_b)]
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
    from evaluation.metrics import statistics_of

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
        _test_once(groups[group])
        if not pairing.common:
            _check_recorded(pairing, task, group, groups[group])
    return {"groups": groups, "flips": flips}


def _is_decided(metric, pairs: Sequence) -> bool:
    """Whether every item is either right or wrong, or is left out in both runs: what McNemar's test is about.

    pairs: statistics of run A and of run B.
    """
    import numpy as np

    one, other = pairs
    return metric.interval == "wilson" and one.shape[1] == 2 and bool(
        np.isin(np.concatenate([one, other]), (0.0, 1.0)).all() and (one[:, 1] == other[:, 1]).all()
        and (one[:, 0] <= one[:, 1]).all() and (other[:, 0] <= other[:, 1]).all())


def _difference(metric, pairs: Sequence, weights: Sequence[float], files: Sequence[str]) -> dict:
    from evaluation.statistics import average, paired_bootstrap

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
    import numpy as np

    from evaluation.statistics import blocks_of

    ahead = [other[:, 0] - one[:, 0] for one, other in pairs]
    balance = np.concatenate([np.sum([ahead[place] for place in block], axis=0) for block in blocks_of(ahead, files)])
    return int((balance < 0).sum()), int((balance > 0).sum())


def _test_once(metrics: dict[str, dict]) -> None:
    """McNemar's test for the group's first figure of right and wrong; others of the kind say the same."""
    from evaluation.statistics import mcnemar_exact

    for values in metrics.values():
        if "only_a" in values:
            only_a, only_b = values["only_a"], values["only_b"]
            values["mcnemar"] = {"p": mcnemar_exact(only_a, only_b)}
            return


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


def _write(path: Path, record: dict) -> None:
    from runtime.files import replacing

    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None
