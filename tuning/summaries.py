"""TensorBoard's events of a training: its log's losses, rates, gradients and validations, by the original's names.

The log is the truth. A run that goes on writes the events of all its steps anew, so that none is shown twice.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from tuning.run import read_log

TAGS = {"loss": "Train/train_loss", "learning_rate": "Train/lr", "gradient_norm": "Train/gradient_norm"}
VALIDATION = "Train/valid_"  # before a metric's name
_FILES = "events.out.tfevents.*"


class Summaries:
    """The events of the run in a folder, in one file at a time, below `base` in a folder of the run's name."""

    def __init__(self, base: Path, run: Path):
        """UserError where tensorboardX is missing, or the folder holds events of another run."""
        try:
            import tensorboardX
        except ImportError:
            raise UserError("--summary-dir needs the package tensorboardX: pip install tensorboardX") from None
        self.run, self.folder = run, base / run.resolve().name
        self._open = tensorboardX.SummaryWriter
        self._writer: Any = None
        self._suffix = f".{hashlib.sha256(str(run.resolve()).encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        if foreign := [path.name for path in self.folder.glob(_FILES) if not path.name.endswith(self._suffix)]:
            raise UserError(f"{self.folder} holds {foreign[0]}, which is not of the run in {run}: TensorBoard would "
                            "show both as one; name another --summary-dir, or delete it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--summary-dir {self.folder}: {error.strerror}") from None

    def add(self, line: Mapping[str, Any]) -> None:
        """line: of the log, which holds it already."""
        if self._writer is None:
            self.begin()
        else:
            self._write(line)

    def begin(self) -> None:
        """Writes all that the log holds; nothing where that is done."""
        if self._writer is not None:
            return
        for path in self.folder.glob(_FILES):
            path.unlink()
        self._writer = self._open(str(self.folder), filename_suffix=self._suffix)
        for line in read_log(self.run):
            self._write(line)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        for tag, value in scalars(line):
            self._writer.add_scalar(tag, value, line["step"])


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a line of the log has for TensorBoard: tags and values."""
    named = [(tag, line.get(name)) for name, tag in TAGS.items()]
    named += [(f"{VALIDATION}{name}", value) for name, value in line.get("validation", {}).items()]
    return ((tag, value) for tag, value in named if value is not None and math.isfinite(value))
