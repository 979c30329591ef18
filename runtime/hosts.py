"""The hosts of a run over several machines: the hostfile, how the model fits on them, whether they can be reached.

Standard library only: hosts are checked before anything heavy is imported.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError
from runtime.reading import SMALL, NoSuchFile, read_text
from runtime.show import counted

_LINE = re.compile(r"([\w.@:-]+)\s+slots=(\d{1,6})\s*(#.*)?")
MOST_SLOTS = 1024  # of a host: more than any machine has devices; a process is started for each
CONNECT_SECONDS = 5  # to open a connection
ANSWER_SECONDS = 20  # for everything that a host is asked


@dataclass(frozen=True)
class Host:
    """One machine."""

    name: str
    slots: int  # processes on it, one per device


def read_hostfile(path: Path) -> list[Host]:
    """The hosts of a file with a line `NAME slots=N` for each; `#` begins a comment. Raises UserError."""
    where = f"HOST_FILE_PATH={path}"
    try:
        text = read_text(path, SMALL, where)
    except NoSuchFile:
        raise UserError(f"{where}: no such file; it has a line for every host, such as: worker-1 slots=8") from None
    hosts, lines = [], {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or line.startswith("-"):
            raise UserError(f"{path}:{number}: {line[:80]!r} is not a host; write its name and its number of devices: "
                            f"worker-1 slots=8")
        name, slots = match[1], int(match[2])
        if name in lines:
            raise UserError(f"{path}:{number}: host {name} is there already, in line {lines[name]}; name it once, "
                            f"with all its slots")
        if slots == 0:
            raise UserError(f"{path}:{number}: host {name} has 0 slots; give it at least 1, or leave it out")
        if slots > MOST_SLOTS:
            raise UserError(f"{path}:{number}: host {name} has {slots} slots; at most {MOST_SLOTS}, one for "
                            "each device")
        lines[name] = number
        hosts.append(Host(name, slots))
    if not hosts:
        raise UserError(f"{path} names no host; it has a line for each, such as: worker-1 slots=8")
    return hosts


def port_of(name: str, default: int = 0) -> int:
    """A port from the environment's variable of this name. Raises UserError where it is none."""
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise UserError(f"{name}={value}: must be a port, 1 to 65535")
    return int(value)


def is_here_alone(hosts: Sequence[Host]) -> bool:
    """Whether the only host is this machine, so that nothing has to be reached over ssh."""
    name = socket.gethostname()
    return len(hosts) == 1 and hosts[0].name in ("localhost", "127.0.0.1", name, name.partition(".")[0])


def check_layout(hosts: Sequence[Host], model_parallel_size: int, path: Path) -> None:
    """Raises UserError unless every tensor-parallel group has its ranks on one host."""
    first, degree = hosts[0], model_parallel_size
    for host in hosts:
        if host.slots != first.slots:  # DeepSpeed derives a process's device from equal numbers
            raise UserError(f"{path}: host {host.name} has {host.slots} slots, {first.name} has {first.slots}; every "
                            f"host must have as many (use the smallest number)")
    world = len(hosts) * first.slots
    if world % degree:
        raise UserError(f"{path}: {counted(len(hosts), 'host')} with {counted(first.slots, 'slot')} are "
                        f"{counted(world, 'process', 'es')}, no multiple of MP_SIZE={degree}; change the slots or "
                        f"MP_SIZE")
    if first.slots % degree:
        raise UserError(f"{path}: MP_SIZE={degree} does not fit inside a host with {counted(first.slots, 'slot')}: the "
                        f"processes of a tensor-parallel group must share a host; MP_SIZE must divide {first.slots}")


def ssh_command(host: Host, command: str, options: Sequence[str] = ()) -> list[str]:
    """The arguments that run a shell command on a host without asking a question. options: for ssh, as below."""
    return ["ssh", "-n", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", *options, host.name, command]


def unreachable(hosts: Sequence[Host], options: Sequence[str] = (), needed: Mapping[str, str] | None = None,
                run: Callable = subprocess.run) -> list[str]:
    """One line for every host that does not answer over ssh, or where something is missing; all are asked at once.

    options: for ssh, such as ["-p", "2222"]. needed: {what: its path}, which must exist on every host.
    run: stands for subprocess.run in tests.
    """
    def ask(host: Host) -> str | None:
        question = " ".join(f"test -e {shlex.quote(path)} || echo {shlex.quote(what)};"
                            for what, path in (needed or {}).items())
        try:
            done = run(ssh_command(host, f"{question} true", options), capture_output=True, text=True,
                       errors="replace", timeout=ANSWER_SECONDS)
        except FileNotFoundError:
            return "there is no program ssh on this machine; install an OpenSSH client"
        except subprocess.TimeoutExpired:
            return f"host {host.name} cannot be reached over ssh: no answer within {ANSWER_SECONDS} s"
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            why = said[-1] if said else f"ssh ended with exit code {done.returncode}"
            return (f"host {host.name} cannot be reached over ssh: {why}; this must work without a question: "
                    f"{shlex.join(['ssh', *options, host.name, 'true'])}")
        missing = [f"{what} {needed[what]}" for what in done.stdout.splitlines() if what in (needed or {})]
        if missing:
            return f"host {host.name} lacks {', '.join(missing)}; everything must be at the same path on every host"
        return None

    with ThreadPoolExecutor(max_workers=min(len(hosts), 64)) as pool:
        answers = list(pool.map(ask, hosts))
    return list(dict.fromkeys(answer for answer in answers if answer is not None))
