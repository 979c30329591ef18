"""One thing that is wrong, in one line: what, on which host or rank, and the command that mends it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from doctor.catalogue import FINDINGS
from runtime.files import REPOSITORY

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """code: its name in docs/doctor.md. level: "error" (a run fails, or is wrong) or "warning" (it is slower, or may
    fail later). where: the host, or rank and host. mend: what to do, a command wherever there is one."""

    code: str
    level: str
    where: str
    what: str
    mend: str

    def __post_init__(self) -> None:
        if self.code not in FINDINGS:
            raise KeyError(f"{self.code} is not in doctor/catalogue.py")

    def __str__(self) -> str:
        line = f"{self.level}: {self.where}: {self.what}; mend it: {self.mend} [{self.code}]"
        return " ".join(line.split("\n"))


def error(code: str, where: str, what: str, mend: str) -> Finding:
    return Finding(code, ERROR, where, what, mend)


def warning(code: str, where: str, what: str, mend: str) -> Finding:
    return Finding(code, WARNING, where, what, mend)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing is wrong, 1: warnings, 2: errors."""
    levels = {finding.level for finding in findings}
    return 2 if ERROR in levels else 1 if levels else 0


def pip(arguments: str, executable: str = sys.executable) -> str:
    """The command that installs something for an interpreter."""
    return f"{shlex.quote(executable)} -m pip {arguments}"


def requirements(executable: str = sys.executable) -> str:
    """The command that installs what requirements.txt names."""
    return pip(f"install -r {shlex.quote(str(REPOSITORY / 'requirements.txt'))}", executable)
