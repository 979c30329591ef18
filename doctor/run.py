"""The doctor's visit: reads what the scripts would run, gathers facts here and on other hosts, and judges them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from doctor import devices, hosts, machine, model, packages, probe
from doctor.allreduce import Outcome
from doctor.finding import Finding, error
from doctor.hosts import join
from evaluation.store import hash_code
from runtime.errors import UserError
from runtime.files import REPOSITORY
from runtime.hosts import check_layout, is_here_alone, read_hostfile
from runtime.program import child_environment

# errors with which the processes cannot be started
HINDRANCES = {"torch-import", "gpu-count", "gpu-hidden", "torch-without-cuda", "driver", "driver-old", "probe"}
RANK_BYTES = 0.4e9  # of a process that joins
DEFAULT_CONFIG = "configs/model_glm_small.sh"
# every variable of the environment that is shown; others may hold secrets
VARIABLES = ("CONFIG", "CHECKPOINT_PATH", "MP_SIZE", "DATA_PATH", "HOST_FILE_PATH", "MASTER_ADDR", "MASTER_PORT",
         "SSH_PORT", "NODE_RANK", "GLM_KERNEL_CACHE")
READ_CONFIG = r"""
set -euo pipefail
exec 3>&1 1>&2
REPOSITORY="$1"
source "$1/scripts/read_config.sh" "$2"
printf '%s\0' "$CHECKPOINT_PATH" "$MP_SIZE" ${MODEL_ARGS[@]+"${MODEL_ARGS[@]}"} >&3
"""


@dataclass(frozen=True)
class Settings:
    """What the scripts would run, as CONFIG and the rest of the environment say."""

    config: str  # the file that was read
    checkpoint: str = ""  # "": not said
    degree: int = 1  # tensor-parallel ranks
    arguments: tuple[str, ...] = ()  # its MODEL_ARGS


def read_settings(environment: Mapping[str, str], where: str,
                  root: Path = REPOSITORY) -> tuple[Settings, list[Finding]]:
    """The configuration that the scripts would use from this working directory, and what is wrong with it."""
    config = environment.get("CONFIG") or DEFAULT_CONFIG
    file = next((path for path in (Path(config), root / config) if path.is_file()), None)
    if file is None:
        known = " ".join(sorted(path.relative_to(root).as_posix() for path in root.glob("configs/model_*.sh")))
        return Settings(config), [error("config", where, f"CONFIG={config}: no such file (there are: {known})",
                                        f"export CONFIG={DEFAULT_CONFIG}")]
    command = ["bash", "-c", READ_CONFIG, "bash", str(root), str(file.absolute())]
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


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The toolkit's own variables and no others."""
    return {name: environment[name] for name in VARIABLES if name in environment}


@dataclass(frozen=True)
class Visit:
    """What is to be looked at."""

    arguments: argparse.Namespace  # of the command line, with CONFIG's before them
    words: Sequence[str]  # those that say which model and data, as they were written, for other processes
    degree: int = 1  # tensor-parallel ranks
    processes: int = 1  # of the run on this host
    world: int = 1  # processes on all hosts
    needs_port: bool = False  # several hosts meet here
    port: int = 29500  # of that place
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Facts:
    """Of one host."""

    host: str
    packages: packages.Packages
    machine: machine.Machine
    stages: probe.Stages  # what the probe tried
    data: model.Data | None
    shortage: model.Shortage | None
    free_beside_checkpoint: int  # bytes
    code: str  # hash of the sources

    def common(self) -> dict:
        """What the hosts of a run must have in common."""
        return hosts.essentials(self.stages, self.packages.versions or {}, self.packages.executable,
                                self.packages.python, self.code)


def gather(visit: Visit) -> Facts:
    """Everything about this host, the slow things at once."""
    arguments = visit.arguments
    short = model.memory_shortage(arguments, visit.degree, visit.processes)  # before the others take some of it
    with ThreadPoolExecutor() as pool:
        ranks = f"{visit.degree},{visit.processes},{visit.world}"
        stages = pool.submit(probe.ask, ["--ranks", ranks, *visit.words])
        installed = pool.submit(packages.look)
        code = pool.submit(hash_code)
        host = machine.look(visit.environment, visit.port)
        has_yaml = find_spec("yaml") is not None  # else check_requirements says so
        found = model.look_for_data(arguments.paths, arguments.data_path) if has_yaml or not arguments.paths else None
        folder = arguments.load.parent
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        return Facts(socket.gethostname(), installed.result(), host, stages.result(), found, short,
                     free, code.result())


def judge(facts: Facts, visit: Visit) -> list[Finding]:
    """Every finding about one host."""
    where, stages, arguments = facts.host, facts.stages, visit.arguments
    seen = probe.devices_of(stages["torch"]) if "torch" in stages.get("torch", {}) else None
    wanted = devices.Wanted(arguments.device or "", visit.processes)
    uses_gpus = wanted.uses_gpus(seen) if seen else (arguments.device or "").startswith("cuda")

    def found() -> Iterator[Finding]:
        yield from packages.check(facts.packages, where)
        yield from devices.check_imports(stages, not facts.packages.lacking, where)
        if seen:
            yield from devices.check(seen, facts.machine.nvidia, wanted, where)
            yield from devices.check_kernels(stages, seen, facts.machine.builds_kernels, where)
        yield from machine.check(facts.machine, where, visit.processes, visit.world, uses_gpus, visit.needs_port)
        yield from model.check_memory(facts.shortage, where)
        yield from model.check_model(stages, arguments, visit.degree, facts.free_beside_checkpoint, where)
        if facts.data is not None:
            yield from model.check_data(facts.data, "DATA_PATH" in visit.environment, where)

    return list(found())


@dataclass(frozen=True)
class Report:
    """What a visit comes to."""

    findings: list[Finding]
    facts: dict[str, object]  # of every host, by its name; of this one alone as they are
    all_reduce: Outcome | None = None  # None: there is one rank, or they were not joined
    not_joined: str = ""  # why they were not


def alone(visit: Visit) -> Report:
    """This host only, without joining ranks."""
    facts = gather(visit)
    return Report(judge(facts, visit), {**asdict(facts), "common": facts.common()})


def one_host(visit: Visit) -> Report:
    """This host, and where the model is spread over several processes, these joined."""
    report = alone(visit)
    outcome, reason = None, ""
    if visit.degree > 1:
        reason = next((f"{one.code}, see below" for one in report.findings
                       if one.level == "error" and one.code in HINDRANCES), "")
        if not reason and report.facts["machine"]["free_memory"] < visit.degree * RANK_BYTES:
            reason = f"too little memory is free for {visit.degree} processes"
    if visit.degree > 1 and not reason:
        launcher = [sys.executable, str(REPOSITORY / "scripts" / "launch.py"), str(visit.degree)]
        outcome, found = join(launcher, visit.arguments.rank_seconds, visit.environment,
                              [report.facts["host"]] * visit.degree)
        report.findings.extend(found)
    return Report(report.findings, report.facts, outcome, reason)


def several_hosts(visit: Visit, path: Path) -> Report:
    """Every host of a hostfile; where ssh is not needed (NODE_RANK, or no other host), this one and the joining."""
    here = socket.gethostname()
    environment = visit.environment
    try:
        names = read_hostfile(path)
        check_layout(names, visit.degree, path)
    except UserError as fault:
        return Report([error("hostfile", here, str(fault), f"edit {path} (docs/several-machines.md)")], {})
    slots, world = names[0].slots, len(names) * names[0].slots
    places = [host.name for host in names for _ in range(slots)]
    launcher = [sys.executable, str(REPOSITORY / "scripts" / "launch_hosts.py"), str(path), str(visit.degree)]
    patience = visit.arguments.rank_seconds
    if node := environment.get("NODE_RANK") or ("0" if is_here_alone(names) else ""):
        found = alone(_on_host(visit, slots, world, node == "0"))
        outcome, more = join(launcher, patience, environment, places, node == "0")
        return Report(found.findings + more, found.facts, outcome)
    ssh = ["-p", environment["SSH_PORT"]] if environment.get("SSH_PORT") else []
    findings = [] if shutil.which("pdsh") else [
        error("pdsh", here, "pdsh, which DeepSpeed starts processes on other hosts with, is not installed",
              "sudo apt install pdsh, or give the command on every host with NODE_RANK and MASTER_ADDR")]
    if here not in places:  # the launcher's own interpreter
        findings += packages.check(packages.look(), here)
    answering, missed = hosts.reach(names, ssh, needed_paths(visit))
    findings += missed
    with ThreadPoolExecutor(max_workers=max(1, min(len(answering), 64))) as pool:
        jobs = {host: pool.submit(hosts.ask, host, ssh, _words_for(visit, slots, world, host is names[0]),
                                  _passed_on(environment)) for host in answering}
        reports = {host.name: job.result() for host, job in jobs.items()}
    for _, found in reports.values():
        findings += found
    facts = {name: seen for name, (seen, _) in reports.items() if seen}
    findings += hosts.compare({name: seen["common"] for name, seen in facts.items()},
                              visit.arguments.precision is not None)
    if not shutil.which("pdsh") or len(facts) < len(names):
        return Report(findings, facts, not_joined="not every host can be reached, see below")
    outcome, found = join(launcher, patience, environment, places)
    return Report(findings + found, facts, outcome)


def needed_paths(visit: Visit) -> dict[str, str]:
    """What must exist on every host, by the names that the launcher has for them."""
    needed = {"the Python interpreter": sys.executable, "the working directory": os.getcwd(),
              "REPOSITORY": str(REPOSITORY), "CHECKPOINT_PATH": str(visit.arguments.load.absolute())}
    if visit.arguments.paths or "DATA_PATH" in visit.environment:
        needed["DATA_PATH"] = str(visit.arguments.data_path.absolute())
    return needed


def _on_host(visit: Visit, slots: int, world: int, is_first: bool) -> Visit:
    return Visit(visit.arguments, visit.words, visit.degree, slots, world, is_first, visit.port, visit.environment)


def _words_for(visit: Visit, slots: int, world: int, is_first: bool) -> list[str]:
    return ["--ranks", f"{visit.degree},{slots},{world}", *(["--first"] if is_first else []), *visit.words]


def _passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that a host heeds, or that decide which libraries it finds; DATA_PATH: that the data was named."""
    names = ("PYTHONPATH", "MASTER_PORT", "GLM_KERNEL_CACHE", "DATA_PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
    return child_environment({name: environment[name] for name in names if environment.get(name)})
