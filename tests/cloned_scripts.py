"""A copy of the shell scripts, and an interpreter for them that only writes down how it was called."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Stands for every Python: the one on PATH and, copied by "-m venv", the one of .venv.
INTERPRETER = r"""#!/bin/bash
printf '%s\n' "$0 $*" >>"$STUB_LOG"
case "$*" in
    *check_requirements.py*) # complete: yes, every Python; .venv, the one there; else none
        [[ $STUB_COMPLETE == yes || $STUB_COMPLETE == .venv && $0 == */.venv/* ]] && exit
        echo "torch==2.13.0"
        exit 1 ;;
    "-c import sys"*) echo "${STUB_VERSION:-3.11.4}" ;;
    "-c import ensurepip"*) exit "${STUB_NO_VENV:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip "*)
        [[ -z $PIP_CONSTRAINT ]] || printf 'constraints: %s\n' "$PWD/$PIP_CONSTRAINT" >>"$STUB_LOG"
        echo "Collecting torch==2.13.0"
        sleep "${STUB_SECONDS:-0}"
        [[ -z $STUB_PIP_FAILS ]] || { echo "ERROR: No matching distribution found for torch==2.13.0"; exit 1; } ;;
    *) printf 'argument: %s\n' "$@" ;;
esac
"""


class Clone:
    """A copy of the scripts, in a folder with a blank in its name, and a PATH whose every Python is the one above."""

    def __init__(self, folder: Path):
        self.root = folder / "a clone"
        for name in ("scripts", "configs", ".ci"):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ("requirements.txt", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "checkpoints" / "glm-small").mkdir(parents=True)
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("python3", "python", "python3.12", "python3.11", "python3.10"):
            (self.programs / name).write_text(INTERPRETER)
            (self.programs / name).chmod(0o755)
        self.log = folder / "calls.log"
        self.log.touch()
        self.venv = self.root / ".venv"

    def environment(self, **values):
        path = f"{self.programs}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.elsewhere), "STUB_LOG": str(self.log), **values}

    def start(self, program, *arguments, **environment):
        command = ["bash", str(self.root / "scripts" / program), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        values = self.environment(**environment)
        return subprocess.Popen(command, cwd=self.elsewhere, env=values, start_new_session=True, **pipes)

    def run(self, program, *arguments, **environment):
        process = self.start(program, *arguments, **environment)
        process.out, process.err = process.communicate(timeout=600)
        return process

    def calls(self, what):
        return [line for line in self.log.read_text().splitlines() if what in line]
