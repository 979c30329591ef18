"""Starts all ranks of a run for one all-reduce, and hears what comes of it, whatever becomes of the ranks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from doctor import allreduce
from doctor.allreduce import Outcome
from doctor.finding import Finding
from doctor.hosts import check_all_reduce
from runtime.files import REPOSITORY

SECONDS = 150.0  # for everything; launchers and ranks have shorter limits of their own
GRACE = 8.0  # for the launcher to end by itself, once the first rank has said what came of it
END_SECONDS = 45.0  # for the launcher to end its processes, on all hosts
READ_SECONDS = 2.0


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    everything: float = SECONDS
    grace: float = GRACE
    end: float = END_SECONDS


def join(launcher: Sequence[str], rank_seconds: float, environment: Mapping[str, str], places: Sequence[str],
         is_first: bool = True, limits: Limits | None = None) -> tuple[Outcome | None, list[Finding]]:
    """All ranks in one all-reduce, started as an evaluation starts them. places: the host of every rank. is_first: the
    first rank, which says what came of it, is started here."""
    path = f"{REPOSITORY}{os.pathsep}{environment.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    code, out, said = _hear([*launcher, "doctor", allreduce.COMMAND, str(rank_seconds)],
                      {**environment, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}, limits or Limits())
    outcomes = allreduce.read(out)
    if not is_first and not outcomes and code == 0:
        return None, []  # the first rank says it, where it was started
    lines = [line.strip().removeprefix("error: ") for line in said.splitlines() if line.strip()]
    return (outcomes[0] if outcomes else None), list(check_all_reduce(outcomes, places, lines[-1] if lines else ""))


def _hear(command: list[str], environment: Mapping[str, str], limits: Limits) -> tuple[int, str, str]:
    """Exit code, standard output and error. A rank that hangs keeps its launcher, which is ended once the first rank
    has spoken."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, errors="replace", env=environment, **pipes)
    texts: list[list[str]] = [[], []]
    readers = [threading.Thread(target=text.extend, args=(stream,), daemon=True)
               for text, stream in zip(texts, (process.stdout, process.stderr), strict=True)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + limits.everything
    is_said = False
    try:
        while process.poll() is None and time.monotonic() < end:
            if not is_said and any(0 in outcome.hosts for outcome in allreduce.read("".join(texts[0]))):
                is_said, end = True, min(end, time.monotonic() + limits.grace)
            time.sleep(0.05)
        if process.poll() is None and not is_said:
            texts[1].append(f"nothing came back within {limits.everything:.0f} s\n")
    finally:
        _end(process, limits.end)
    for reader in readers:
        reader.join(READ_SECONDS)  # a process that was left behind may hold the pipe open
    return process.returncode, "".join(texts[0]), "".join(texts[1])


def _end(process: subprocess.Popen, seconds: float) -> None:
    """It is asked first, so that it can end what it has started on all hosts."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    process.kill()
    process.wait()
