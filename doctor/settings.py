"""What the scripts would run: CONFIG, CHECKPOINT_PATH, MP_SIZE and the rest of the environment, as they read it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from doctor.finding import Finding, error
from runtime.files import REPOSITORY

DEFAULT_CONFIG = "configs/model_glm_small.sh"
# Every variable of the environment that is shown or passed on; others may hold secrets.
NAMES = ("CONFIG", "CHECKPOINT_PATH", "MP_SIZE", "DATA_PATH", "HOST_FILE_PATH", "MASTER_ADDR", "MASTER_PORT",
         "SSH_PORT", "NODE_RANK", "GLM_KERNEL_CACHE")
READ = r"""
set -euo pipefail
exec 3>&1 1>&2
REPOSITORY="$1"
source "$1/scripts/read_config.sh" "$2"
printf '%s\0' "$CHECKPOINT_PATH" "$MP_SIZE" ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} >&3
"""


@dataclass(frozen=True)
class Settings:
    """config: the file that was read. checkpoint, degree: as it and the environment say, "" and 1 where they do not.
    arguments: its MODEL_ARGS."""

    config: str
    checkpoint: str = ""
    degree: int = 1
    arguments: tuple[str, ...] = ()


def read(environment: Mapping[str, str], where: str, root: Path = REPOSITORY) -> tuple[Settings, list[Finding]]:
    """The configuration that the scripts would use from this working directory, and what is wrong with it."""
    config = environment.get("CONFIG") or DEFAULT_CONFIG
    file = next((path for path in (Path(config), root / config) if path.is_file()), None)
    if file is None:
        known = " ".join(sorted(path.relative_to(root).as_posix() for path in root.glob("configs/model_*.sh")))
        return Settings(config), [error("config", where, f"CONFIG={config}: no such file (there are: {known})",
                                        f"export CONFIG={DEFAULT_CONFIG}")]
    command = ["bash", "-c", READ, "bash", str(root), str(file.absolute())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20,
                              env={**os.environ, **environment}, stdin=subprocess.DEVNULL)
        code, words, said = done.returncode, done.stdout.split("\0")[:-1], done.stderr
    except (OSError, subprocess.TimeoutExpired) as failure:
        code, words, said = 1, [], str(failure)
    if code or len(words) < 2:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return Settings(str(file)), [error("config-script", where, f"CONFIG={file} cannot be read by bash: "
                                           f"{lines[-1] if lines else f'exit code {code}'}",
                                           f"bash -n {shlex.quote(str(file))}, and compare with {DEFAULT_CONFIG}")]
    checkpoint, degree, *arguments = words
    findings = []
    if not re.fullmatch(r"[1-9]\d*", degree):
        findings.append(error("mp-size", where, f"MP_SIZE={degree}: must be the number of devices that the model is "
                              "spread over, 1 or more", "export MP_SIZE=1"))
        degree = "1"
    return Settings(str(file), checkpoint, int(degree), tuple(arguments)), findings


def shown(environment: Mapping[str, str]) -> dict[str, str]:
    """Our own variables, and none else."""
    return {name: environment[name] for name in NAMES if name in environment}
