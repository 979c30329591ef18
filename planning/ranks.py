"""Layers that are timed on ranks of their own: as many processes of this machine as share the model, which wait for one
another and for the cores. What they lose by it no process alone can tell.

Attention waits for nobody: all heads on all cores take as long in one process as on several ranks, so one times it.

Every rank runs `python -m planning trial SETUP`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from glm.config import ModelConfig
from planning.shapes import Format, Setup
from planning.trial import Curve, Trial, attention, trial
from runtime.errors import UserError
from runtime.files import REPOSITORY
from runtime.resources import cores

COMMAND = "trial"


def on_ranks(setup: Setup) -> Trial:
    """Raises UserError where the ranks fail."""
    if setup.degree == 1:
        return trial(setup)
    command = [sys.executable, str(REPOSITORY / "scripts" / "launch.py"), str(setup.degree), "planning", COMMAND,
               json.dumps(asdict(setup))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing says why"]
        raise UserError(f"{setup.degree} ranks could not be timed here: {lines[-1].removeprefix('error: ')}")
    seen, pair = attention(replace(setup, degree=1))
    idle = cores() / min(cores(), setup.degree * max(1, cores() // setup.degree))  # threads of a rank: a whole number
    return replace(read(json.loads(done.stdout.splitlines()[-1])), seen=seen.times(idle), pair=idle * pair)


def of_rank(words: str) -> str | None:
    """What a rank prints: the first one its times, the others nothing."""
    from runtime import parallel

    values = json.loads(words)
    formats = {name: values[name] and Format(**values[name]) for name in ("run", "file")}
    found = trial(Setup(**values | formats | {"config": ModelConfig(**values["config"])}))
    is_first = parallel.is_first_process()
    parallel.stop()
    return json.dumps(asdict(found)) if is_first else None


def read(values: Mapping[str, Any]) -> Trial:
    return Trial(**{field.name: Curve(tuple(map(tuple, value["points"]))) if isinstance(value, Mapping) else value
                    for field in fields(Trial) for value in (values[field.name],)})
