"""Several hosts, reached over ssh, looked at by the doctor there, compared with one another; and all ranks, started for
one all-reduce (doctor/allreduce.py) that has an outcome even where they crash or hang."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from doctor.allreduce import COMMAND, Outcome, read_outcomes
from doctor.finding import Finding, error, requirements, warning
from doctor.packages import ONLY_FOR_TESTS
from runtime.files import REPOSITORY
from runtime.hosts import Host, ssh_command, unreachable
from runtime.program import child_environment

ANSWER_SECONDS = 150  # for a doctor on another host
SLOW = 0.1  # GB/s: an Ethernet of 1 Gbit/s gives a little more
Facts = Mapping[str, object]


def reach(hosts: Sequence[Host], ssh: Sequence[str], needed: Mapping[str, str],
          run: Callable = subprocess.run) -> tuple[list[Host], list[Finding]]:
    """The hosts that answer and have every path in `needed`, and a finding for each of the others."""
    with ThreadPoolExecutor(max_workers=min(len(hosts), 64)) as pool:
        answers = list(pool.map(lambda host: unreachable([host], ssh, needed, run), hosts))
    found = []
    for host, lines in zip(hosts, answers, strict=True):
        for line in lines:
            if "no program ssh" in line:
                found.append(error("ssh", host.name, "there is no program ssh here, so no other host can be reached",
                                   "sudo apt install openssh-client"))
            elif f"host {host.name} lacks " in line:
                found.append(error("host-paths", host.name, line.partition(";")[0],
                                   f"rsync -aR PATH {host.name}:/ (every path is the same on all hosts)"))
            else:
                what, _, command = line.partition("; this must work without a question: ")
                command = command or shlex.join(["ssh", *ssh, host.name, "true"])
                found.append(error("host-unreachable", host.name, what,
                                   f"ssh-copy-id {host.name}, until this works without a question: {command}"))
    return [host for host, lines in zip(hosts, answers, strict=True) if not lines], found


def ask(host: Host, ssh: Sequence[str], words: Sequence[str], environment: Mapping[str, str],
        run: Callable = subprocess.run) -> tuple[Facts, list[Finding]]:
    """The doctor's facts and findings on a host, under the hostfile's name for it."""
    values = {"PYTHONSAFEPATH": "1", **environment}
    there = (f"cd {shlex.quote(os.getcwd())} && env {shlex.join(f'{name}={value}' for name, value in values.items())} "
             f"{shlex.join([sys.executable, '-m', 'doctor', '--alone', '--json', *words])}")
    try:
        done = run(ssh_command(host, there, ssh), capture_output=True, text=True, errors="replace",
                   timeout=ANSWER_SECONDS)
        report = json.loads(done.stdout)
        findings = [Finding(**{**one, "where": host.name}) for one in report["findings"]]
        return report["facts"], findings
    except subprocess.TimeoutExpired:
        why = f"no answer within {ANSWER_SECONDS} s"
    except (ValueError, KeyError, TypeError):
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = said[-1] if said else f"exit code {done.returncode}, and no report"
    return {}, [error("host-doctor", host.name, f"the doctor does not run there: {why}",
                      shlex.join(["ssh", *ssh, host.name, f"{sys.executable} -m pip --version"]))]


def compare(facts: Mapping[str, Facts], precision_is_said: bool) -> Iterator[Finding]:
    """Differences of each host from the first. facts: of every host that answered, in the hostfile's order.
    precision_is_said: by a flag, so that no host chooses by itself."""
    if len(facts) < 2:
        return
    (first, expected), *others = facts.items()
    for host, found in others:
        different = [f"{name} {found['versions'].get(name) or 'missing'} ({first}: {version})"
                     for name, version in expected["versions"].items()
                     if found["versions"].get(name) != version and name not in ONLY_FOR_TESTS]
        if different:
            yield error("host-versions", host, f"other versions than on {first}: {', '.join(different)}",
                        f"ssh {host} {requirements(str(found.get('executable') or sys.executable))}, or the versions "
                        f"of {first}")
        for key, code, what, mend in (
                ("code", "host-code", "this repository's code is", f"rsync -a --exclude .venv {REPOSITORY}/ "
                                                                   f"{host}:{REPOSITORY}/"),
                ("checkpoint", "host-checkpoint", "the checkpoint (iteration, names and sizes of the shards) is",
                 f"rsync -a {expected.get('folder')}/ {host}:{expected.get('folder')}/"),
                ("vocabulary", "host-vocabulary", "the tokenizer's vocabulary is",
                 f"rsync -a {expected.get('vocabulary_file')} {host}:{expected.get('vocabulary_file')}")):
            if expected.get(key) and found.get(key) and found[key] != expected[key]:
                yield error(code, host, f"{what} not that of {first}", mend)
        if not precision_is_said and found.get("precision") != expected.get("precision"):
            yield error("host-precision", host, f"runs would compute in {found.get('precision')}, on {first} in "
                        f"{expected.get('precision')}: the processors differ", "say --bf16, --fp16 or --fp32 "
                        "(MODEL_ARGS in CONFIG)")
        if found.get("gpus") != expected.get("gpus"):
            yield warning("host-gpus", host, f"GPUs: {found.get('gpus') or 'none'}; on {first}: "
                          f"{expected.get('gpus') or 'none'}; the slowest host holds up all others", "leave "
                          f"{host} out of the hostfile")


def essentials(stages: Mapping[str, Mapping], versions: Mapping[str, str], executable: str, python: str,
               code: str) -> dict:
    """What hosts must have in common, for `compare`."""
    torch, shards = stages.get("torch", {}), stages.get("shards", {})
    names = [gpu["name"] for gpu in torch.get("gpus", ())]
    return {
        "versions": {"Python": ".".join(python.split(".")[:2]), **versions}, "executable": executable, "code": code,
        "precision": torch.get("precision"), "folder": shards.get("folder"),
        "gpus": ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
        "checkpoint": f"{shards['iteration']} {shards['sizes']}" if "sizes" in shards else None,
        "vocabulary": stages.get("vocabulary", {}).get("sha256"),
        "vocabulary_file": stages.get("vocabulary", {}).get("file"),
    }


@dataclass(frozen=True)
class Limits:
    """Seconds for joining ranks; launchers and ranks have shorter limits of their own."""

    everything: float = 150.0
    grace: float = 8.0  # for the launcher to end by itself, once the first rank has said what came of it
    end: float = 45.0  # for the launcher to end its processes, on all hosts


def join(launcher: Sequence[str], rank_seconds: float, environment: Mapping[str, str], places: Sequence[str],
         is_first: bool = True, limits: Limits | None = None) -> tuple[Outcome | None, list[Finding]]:
    """All ranks in one all-reduce, started as an evaluation starts them. places: the host of every rank. is_first: the
    first rank, which tells the outcome, is started here."""
    command = [*launcher, "doctor", COMMAND, str(rank_seconds)]
    code, out, said = _hear(command, child_environment(environment), limits or Limits())
    outcomes = read_outcomes(out)
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
            if not is_said and any(0 in outcome.hosts for outcome in read_outcomes("".join(texts[0]))):
                is_said, end = True, min(end, time.monotonic() + limits.grace)
            time.sleep(0.05)
        if process.poll() is None and not is_said:
            texts[1].append(f"nothing came back within {limits.everything:.0f} s\n")
    finally:
        _end(process, limits.end)
    for reader in readers:
        reader.join(2.0)  # a process that was left behind may hold the pipe open
    return process.returncode, "".join(texts[0]), "".join(texts[1])


def _end(process: subprocess.Popen, seconds: float) -> None:
    """SIGTERM first, so that it can end what it has started on all hosts."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    process.kill()
    process.wait()


def check_all_reduce(outcomes: Sequence[Outcome], places: Sequence[str], reason: str) -> Iterator[Finding]:
    """outcomes: the first rank's first (allreduce.read). places: every rank's host. reason: what the launcher said."""
    own = {rank: why for outcome in outcomes for rank, why in outcome.failed.items()}
    if not outcomes or 0 not in outcomes[0].hosts:
        why = f": {reason}" if reason else ""
        for rank, said in own.items():
            yield error("all-reduce", f"rank {rank} on {places[rank]}", said, hint(places))
        if not own:
            named = re.search(r"\brank (\d+)", reason)  # scripts/launch.py knows which process has ended
            who = f"rank {named[1]} on {places[int(named[1])]}" if named and int(named[1]) < len(places) else (
                f"rank 0 on {places[0]}")
            yield error("all-reduce", who, f"the {len(places)} ranks could not be joined{why}", hint(places))
        return
    first = outcomes[0]
    for rank in first.missing:
        said = own.get(rank)
        yield error("rank-missing", f"rank {rank} on {places[rank]}", "does not answer"
                    + (f": {said}" if said else ""), hint(places))
    for rank, why in first.failed.items():
        yield error("all-reduce", f"rank {rank} on {places[rank]}", why, hint(places))
    if first.bandwidth is not None and first.bandwidth < SLOW:
        yield warning("all-reduce-slow", f"{len(places)} ranks", f"the all-reduce runs at {first.bandwidth:.2g} GB/s; "
                      f"even an Ethernet of 1 Gbit/s gives {SLOW} GB/s", "export NCCL_SOCKET_IFNAME=eth0 "
                      "GLOO_SOCKET_IFNAME=eth0 (the fast network's name: ip -br address)")


def hint(places: Sequence[str]) -> str:
    """How to mend ranks that do not find one another; on one host it is not the network."""
    if len(set(places)) == 1:
        return "dmesg | tail (was one killed?); bash scripts/doctor.sh --rank-seconds 120 (do they only start slowly?)"
    return (f"export MASTER_ADDR=(address of {places[0]}) MASTER_PORT=29501 GLOO_SOCKET_IFNAME=eth0 "
            "NCCL_SOCKET_IFNAME=eth0 (ip -br address has the names), and open these ports between the hosts")
