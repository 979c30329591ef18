"""The folder of a training from scratch: its state, a log that agrees with it, a plot; and the lines that it prints.

The folder of a tuning is another one (run.py): there is no checkpoint to begin with, the state stays, so that a longer
run may go on from it, and tools/export_checkpoint.py makes a checkpoint of it.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.store import hash_files
from glm.checkpoint import CONFIG_NAME, torch_file
from runtime.errors import UserError
from runtime.files import AppendOnlyFile, replacing, write_torch
from runtime.reading import parse_json, read_json, read_text
from runtime.show import SECONDS_BETWEEN_LINES, duration

STATE = "state.pt"
LOG = "log.jsonl"
DATA = "data.json"  # hashes of the files that the run was begun with
VOCABULARY = "the vocabulary"  # its name among them


class CorpusRun:
    """The folder of a run, as the loop writes it. Its log counts steps from 1.

    rows, width: of a batch, whose tokens the log counts. progress: steps, rows and tokens of the last state or line.
    """

    def __init__(self, folder: Path, rows: int, width: int, clock: Callable[[], float] = time.perf_counter):
        self.folder, self.progress = folder, {"step": 0, "rows": 0, "tokens": 0}
        self._rows, self._width, self._clock, self._then = rows, width, clock, clock()
        self._state = self._read()
        if self._state is not None:
            self.progress = self._state["progress"]

    def _read(self) -> dict[str, Any] | None:
        import torch

        from tuning.muon import moments_by_name

        file = self.folder / STATE
        if not file.is_file():
            return None
        try:
            torch_file.read(file)  # refuses what torch.load must not be given
            state = torch.load(file, map_location="cpu", weights_only=True)
            if "optimizers" in state:  # of a run that an earlier version began
                state["moments"] = moments_by_name(state["model"], state.pop("optimizers"))
            return {name: state[name] for name in ("progress", "model", "moments")}
        except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError,
                pickle.UnpicklingError):
            raise UserError(f"{file} is damaged; delete it to begin again, or give a new --output") from None

    def state(self) -> dict[str, Any] | None:
        """What the loop goes on from; None: nothing was saved."""
        if self._state is None:
            return None
        step = self.progress["step"]
        return {"step": step, "updates": step, "scale": None, "parameters": self._state["model"],
                "moments": self._state["moments"]}

    def wrong_state(self) -> UserError:
        """What to say where the state does not fit the training."""
        return UserError(f"{self.folder / STATE} is of another model or --optimizer; resume with the flags that the "
                         "run began with, or give a new --output")

    def write_parameters(self, decayed: Sequence[str], not_decayed: Sequence[str]) -> None:
        """Which decay follows from --optimizer; nothing is written."""

    def begin_log(self, step: int) -> None:
        """Forgets what was logged for steps that are about to be done again."""
        kept = [entry for entry in read_log(self.folder / LOG) if entry["step"] <= step]
        with replacing(self.folder / LOG) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._then = self._clock()

    def log(self, line: Mapping[str, Any]) -> None:
        """line: of the loop."""
        now = self._clock()
        self.progress = {"step": line["step"] + 1, "rows": self.progress["rows"] + self._rows,
                         "tokens": self.progress["tokens"] + self._rows * self._width}
        entry = self.progress | {
            "loss": round(line["loss"], 5), "norm": round(line["gradient_norm"], 4), "targets": line["targets"],
            "rate": round(line["learning_rate"], 5), "seconds": round(now - self._then, 3)}
        self._then = now
        with contextlib.closing(AppendOnlyFile(self.folder / LOG)) as file:
            file.add((json.dumps(entry | ({"held_out": line["held_out"]} if "held_out" in line else {}))
                      + "\n").encode())

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Everything the next step depends on, written aside, then renamed: a kill leaves the old or the new one."""
        write_torch(self.folder / STATE, {"progress": self.progress, "model": state["parameters"],
                                          "moments": state["moments"]})


def read_log(path: Path) -> list[dict]:
    """The whole lines of a log; a line that a kill cut short is left out."""
    lines = read_text(path).split("\n")[:-1] if path.is_file() else []
    return [parse_json(line, str(path), number) for number, line in enumerate(lines, 1)]


def check_same_data(folder: Path, corpus: Path, vocabulary: Path, index: Mapping[str, dict]) -> None:
    """The run in the folder goes on with the very files that it began with; it notes them when it begins.

    index: of the corpus. Raises UserError naming the files that differ, those that no run has made, or a vocabulary
    that the corpus was not encoded with.
    """
    found = [name for name in (LOG, CONFIG_NAME) if (folder / name).exists()]
    if found and not any((folder / name).exists() for name in (DATA, STATE)):
        raise UserError(f"--output {folder} holds {', '.join(found)}, but no training run ({DATA}); name "
                        "another --output")
    paths = {VOCABULARY: vocabulary} | {
        name + suffix: corpus / f"{name}{suffix}.npy" for name in sorted(index) for suffix in ("", ".heldout")}
    facts = dict(zip(paths, hash_files(list(paths.values())), strict=True))
    foreign = [name for name, each in index.items() if each.get("vocabulary", facts[VOCABULARY]) != facts[VOCABULARY]]
    if foreign:
        raise UserError(f"--vocabulary {vocabulary}: {foreign[0]} of {corpus} was encoded with another one; name that, "
                        "or make the corpus again with tools/prepare_corpus.py")
    file = folder / DATA
    if (folder / STATE).is_file() and file.is_file():
        try:
            before = read_json(file)
        except UserError:
            before = {}
        changed = [name for name in {**before, **facts} if before.get(name) != facts.get(name)]
        if changed:
            raise UserError(f"{', '.join(changed[:3])}{' ...' * (len(changed) > 3)}: not what the run in {folder} "
                            f"began with; put the old data back, or give a new --output, or delete {file} to go on "
                            "with the new data")
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def check_vocabulary(folder: Path, vocabulary: Path) -> None:
    """UserError where it is not the one that the run was begun with, as far as the run has noted that."""
    file = folder / DATA
    noted = read_json(file) if file.is_file() else {}
    if isinstance(noted, dict) and noted.get(VOCABULARY, (found := hash_files([vocabulary])[0])) != found:
        raise UserError(f"--vocabulary {vocabulary} is not the one that the run in {folder} was trained with")


def plot_log(log: Path, picture: Path) -> None:
    """Training loss and held-out loss per language over the tokens seen (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = read_log(log)
    training = [entry for entry in entries if "loss" in entry]
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.plot([entry["tokens"] / 1e6 for entry in training], [entry["loss"] for entry in training],
              linewidth=0.5, alpha=0.6, label="training")
    held_out = [entry for entry in entries if "held_out" in entry]
    for name in held_out[-1]["held_out"] if held_out else ():
        points = [entry for entry in held_out if name in entry["held_out"]]
        axes.plot([entry["tokens"] / 1e6 for entry in points], [entry["held_out"][name] for entry in points],
                  marker=".", label=f"held out: {name}")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


class Lines:
    """The lines of a training, printed by time, since a step takes milliseconds or minutes.

    steps: when the run ends. tokens: of a step; None: they differ.
    """

    def __init__(self, steps: int, tokens: int | None = None, clock: Callable[[], float] = time.monotonic):
        self._last: int | None = None  # the step of the last line
        self._steps, self._tokens, self._clock = steps, tokens, clock
        self._then = clock()

    def after(self, step: int, loss: float, held_out: Mapping[str, float] | None = None) -> str | None:
        """The line that is due after a step, or None: after the first one, which shows how long the others will take,
        after every one with losses of held-out text (by name), else when time has passed."""
        now = self._clock()
        if not held_out and self._last is not None and now - self._then < SECONDS_BETWEEN_LINES:
            return None
        speed = (1 if self._last is None else step - self._last) / max(now - self._then, 1e-9)
        self._last, self._then = step, now
        also = "".join(f", {name} {value:.3f}" for name, value in (held_out or {}).items())
        pace = f"{speed * self._tokens:,.0f} tokens/s" if self._tokens else f"{1 / speed:.2f} s a step"
        return (f"step {step} of {self._steps}: loss {loss:.3f}, {pace}, "
                f"{duration((self._steps - step) / speed)} left"
                + (f"; held out: {also[2:]}" if also else ""))
