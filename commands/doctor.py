"""python -m glm doctor: is everything here that a run needs, and does it work?

    python -m glm doctor                                  # this machine, and the model that CONFIG names
    python -m glm doctor --load DIR tasks/chinese         # another model; the data of tasks, too
    python -m glm doctor --hostfile hostfile              # every machine, and an all-reduce between all ranks
    bash scripts/doctor.sh                                # the same, with the interpreter that the scripts take

CONFIG, CHECKPOINT_PATH, MP_SIZE, DATA_PATH, HOST_FILE_PATH, MASTER_ADDR, MASTER_PORT and SSH_PORT count as for the
scripts; flags win over them. Nothing is installed or changed. One line for each finding: what is wrong, on which host
or rank, and what mends it (docs/doctor.md lists all). Exit code: 0 all is well, 1 warnings, 2 errors.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from commands.model import add_model_arguments
from doctor import allreduce, model, probe, run
from doctor.finding import Finding, error, exit_code
from doctor.machine import GB
from doctor.run import Report, Settings, own_variables, read_settings
from runtime.arguments import CommandParser, positive
from runtime.errors import UserError, printable
from runtime.files import REPOSITORY
from runtime.hosts import port_of
from runtime.program import FORESEEN, ended, terminating
from runtime.show import counted

PROGRAM = "python -m glm doctor"


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [allreduce.COMMAND]:
        line = allreduce.main(float(argv[1]))
        print(line, flush=True) if line else None
        os._exit(0)  # an operation that hangs, in its thread, would keep the process
    if argv[:1] == [probe.COMMAND]:
        return try_stages(parse(argv[1:]))
    try:
        with terminating():
            return visit(argv)
    except FORESEEN as error:
        return ended(error)


def make_parser() -> CommandParser:
    parser = CommandParser(__doc__, prog=PROGRAM)
    add_model_arguments(parser)
    what = parser.add_argument_group("doctor")
    what.add_argument("paths", nargs="*", metavar="TASK", help="task files or folders: is their data there?")
    what.add_argument("--data-path", type=Path, metavar="DIR",
                      default=Path(os.environ.get("DATA_PATH") or REPOSITORY / "data"),
                      help="folder of the tasks' data (default: $DATA_PATH, else data/ of the repository)")
    what.add_argument("--hostfile", type=Path, metavar="FILE",
                      help="look at every machine of this file, too (default: $HOST_FILE_PATH, where it is set)")
    what.add_argument("--json", action="store_true", help="findings and facts as JSON on standard output")
    what.add_argument("--rank-seconds", default=30.0, metavar="N",
                      type=positive("a number of seconds, above 0 and at most 3600", most=3600),
                      help="how long ranks may take to start for the all-reduce (default: 30)")
    what.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # asked by a doctor on another host
    what.add_argument("--ranks", type=lambda text: tuple(map(int, text.split(","))), default=(1, 1, 1),
                      help=argparse.SUPPRESS)  # degree, processes of this host, of all hosts
    what.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    return make_parser().parse_args(list(argv))


def visit(argv: list[str]) -> int:
    if not (REPOSITORY / "requirements.txt").is_file():
        raise UserError(f"the doctor looks at a clone of the repository, and {REPOSITORY} is none: start it in the "
                        "clone, or install that with pip install -e, which leaves it where it is")
    begin, findings = time.monotonic(), []
    given = parse(argv)  # a mistake on the command line ends the program
    settings = Settings("")
    if not given.alone:
        settings, findings = read_settings(os.environ, socket.gethostname())
    words = [*(["--load", settings.checkpoint] if settings.checkpoint else []), *settings.arguments]
    fault = complaint([*words, *argv])
    if fault:
        findings.append(error("config-arguments", socket.gethostname(), f"MODEL_ARGS in {settings.config}: {fault}",
                              f"edit {settings.config}; python -m generation --help lists the flags"))
        words = words[:2] if settings.checkpoint else []
    arguments = parse([*words, *argv])
    degree, processes, world = arguments.ranks
    if not given.alone:
        degree = processes = world = arguments.model_parallel_size or settings.degree
    words = ["--data-path", str(arguments.data_path), *words, *argv]  # for processes that do not read CONFIG
    job = run.Visit(arguments, words, degree, processes, world, arguments.first, port_of("MASTER_PORT", 29500))
    hostfile = arguments.hostfile or (os.environ.get("HOST_FILE_PATH") and Path(os.environ["HOST_FILE_PATH"]))
    if arguments.alone:
        report = run.alone(job)
    elif hostfile:
        report = run.several_hosts(job, hostfile)
    else:
        report = run.one_host(job)
    findings += report.findings
    seconds = time.monotonic() - begin
    show_json(findings, report, seconds) if arguments.json else show(findings, report, seconds)
    return exit_code(findings)


def complaint(words: list[str]) -> str | None:
    """What the parser says against the words, if anything."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parse(words)
        except SystemExit:
            return said.getvalue().strip().removeprefix("error: ") or "not understood"
    return None


def try_stages(arguments: argparse.Namespace) -> int:
    """The probe's process."""
    def open_source(folder, given):
        from tools.converting.source import open_source  # imports torch, which may be what is broken

        return open_source(folder, given, heads_needed=False)

    stages = probe.machine_stages(arguments.device, arguments.ranks[1])
    stages |= model.stages(arguments, open_source)
    probe.run(stages, lambda line: print(line, flush=True))
    return 0


def show_json(findings: Sequence[Finding], report: Report, seconds: float) -> None:
    print(json.dumps({
        "exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings],
        "all_reduce": asdict(report.all_reduce) if report.all_reduce else None, "not_joined": report.not_joined,
        "facts": report.facts, "environment": own_variables(os.environ), "seconds": round(seconds, 2),
    }, indent=2))


def show(findings: Sequence[Finding], report: Report, seconds: float) -> None:
    for line in summary(report):
        print(printable(line))
    for finding in sorted(findings, key=lambda one: one.level):
        print(printable(str(finding)))
    numbers = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    found = ", ".join(counted(number, level) for level, number in numbers.items() if number)
    print(f"{found or 'all is well'} ({seconds:.1f} s)")


def summary(report: Report) -> Iterator[str]:
    """A line for every host, and one for the all-reduce."""
    hosts = {report.facts["host"]: report.facts} if "host" in report.facts else report.facts
    for name, facts in hosts.items():
        yield f"{name}: {', '.join(seen(facts))}"
    outcome = report.all_reduce
    if report.not_joined:
        yield f"the ranks were not joined: {report.not_joined}"
    if outcome and outcome.bandwidth is not None:
        yield f"all-reduce of {outcome.world} ranks over {outcome.backend}: {outcome.bandwidth:.3g} GB/s"


def seen(facts: Mapping) -> Iterator[str]:
    stages, machine = facts["stages"], facts["machine"]
    yield f"Python {facts['packages']['python']}"
    torch = stages.get("torch", {})
    if "torch" in torch:
        gpus = [gpu["name"] for gpu in torch["gpus"]]
        yield f"torch {torch['torch']}"
        yield ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
        yield f"{torch['precision']} unless told otherwise"
    yield f"{machine['cores']} cores, {machine['free_memory'] / GB:.1f} GB of memory free"
    if kernels := stages.get("cpu-kernels", {}).get("instructions"):
        yield f"compiled kernels ({kernels})"
    if "bytes" in (shards := stages.get("shards", {})):
        parts = counted(shards["shards"], "part")
        yield f"checkpoint {shards['folder']} ({shards['iteration']}, {parts}, {shards['bytes'] / GB:.2f} GB)"
    if (data := facts.get("data")) and data["tasks"]:
        yield f"data of {counted(len(data['tasks']), 'task')}"
