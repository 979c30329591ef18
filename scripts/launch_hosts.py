"""Runs a module on all hosts of a hostfile, through DeepSpeed's launcher; its exit code is that of the processes.

usage: python scripts/launch_hosts.py HOSTFILE MP_SIZE MODULE ARGUMENTS...

Faults of the hosts are found before the launch, one line each (exit code 2). The launcher's reports are left out: they
would bury the one line that says what is wrong with a run.
Environment: MASTER_PORT, MASTER_ADDR, SSH_PORT; NODE_RANK=i: start the processes of host i only, on this machine and
without ssh (the same command is then given on every host, with its own number).
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from runtime.errors import UserError, printable
from runtime.hosts import check_layout, is_here_alone, port_of, read_hostfile, ssh_command, unreachable
from runtime.program import killed_by, listen, run
from runtime.resources import cores

# What the other hosts must know; DeepSpeed itself passes on what begins with PYTHON.
PREFIXES = ("GLM_RANK_TIMEOUT", "GLM_CPU_", "GLM_CUDA_", "ATEN_CPU_CAPABILITY", "ONEDNN_", "GLOO_", "NCCL_", "TORCH_",
            "OMP_", "KMP_", "MKL_", "DS_ACCELERATOR")
NAMES = ("PYTHONPATH", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "DATA_PATH", "CHECKPOINT_PATH", "NO_COLOR")
CHATTER = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[(DEBUG|INFO|WARNING|ERROR)\] \[|pdsh@|Killed by signal ")
HOST_ENDED = re.compile(r"pdsh@\S+ (\S+): .*exited with exit code (\d+)")
PROCESS_ENDED = re.compile(r".* exits with return code = (-?\d+)$")
PATIENCE, SHORT_PATIENCE = 30.0, 3.0  # seconds for the other hosts to end after one has failed, and has said why
UNSAFE = re.compile(r"[^\w@%+=:,./-]")


def main(hostfile: str, degree: int, module: str, arguments: list[str]) -> int:
    path = Path(hostfile)
    hosts = read_hostfile(path)
    check_layout(hosts, degree, path)
    master = str(port_of("MASTER_PORT", 29500))
    ssh = ["-p", str(port_of("SSH_PORT"))] if os.environ.get("SSH_PORT") else []
    node = _node_rank(len(hosts))
    is_local = node is not None or is_here_alone(hosts)
    if not is_local:
        _check_pdsh()
        problems = unreachable(hosts, ssh, _needed())
        if problems:
            print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
            return 2
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // hosts[0].slots)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else it warns where an address has no name

    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", hostfile, "--master_port", master]
    if os.environ.get("MASTER_ADDR") or is_local:
        command += ["--master_addr", os.environ.get("MASTER_ADDR") or "127.0.0.1"]
    if is_local:
        command += ["--no_ssh", "--node_rank", str(node or 0)]
    else:
        # -N: what the first process prints is its report, and gets no host's name before every line
        command += ["--force_multi", "--no_ssh_check", "--launcher", "pdsh", "--launcher_args=-N -b"]
        command += ["--ssh_port", ssh[1]] if ssh else []
        arguments = [for_pdsh(argument) for argument in arguments]
    command += ["--no_local_rank", "--module", module, *arguments]
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        file = Path(folder) / "environment"
        file.write_text(environment_file(os.environ, _users_files()), encoding="utf-8")
        code = Run(command, {**os.environ, "DS_ENV_FILE": str(file)}, is_local).wait()
    if code and not is_local:
        stop(hosts, ssh, master)
    return code


def environment_file(environment, users: str) -> str:
    """A file in DeepSpeed's form (.deepspeed_env) of what the other hosts must know; the lines in `users` win."""
    lines = []
    for name in sorted(environment):
        if name in NAMES or name.startswith(PREFIXES):
            if "\n" in environment[name]:
                raise UserError(f"{name} has a line end in its value, which cannot be passed on to other hosts")
            lines.append(f"{name}={_in_double_quotes(environment[name])}")
    lines += [line for line in users.splitlines() if "=" in line and not line.lstrip().startswith("#")]
    return "\n".join(lines) + "\n"


def for_pdsh(argument: str) -> str:
    """An argument written so that it arrives as it is: pdsh replaces %h and the like, DeepSpeed puts an argument with a
    blank into double quotes (and escapes those in it), a shell on the other host reads the result."""
    argument = argument.replace("%", "%%")
    if " " not in argument:
        return shlex.quote(argument)
    return re.sub(r"([\\$`])", r"\\\1", argument)


def _in_double_quotes(value: str) -> str:
    """As for_pdsh, for a value of the environment: DeepSpeed quotes it where it has an unusual character."""
    value = value.replace("%", "%%")
    return re.sub(r'([\\$`"])', r"\\\1", value) if UNSAFE.search(value) else value


def _users_files() -> str:
    """The lines of .deepspeed_env in the home and the working directory, which DeepSpeed would have read."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    files = dict.fromkeys((Path.home() / name, Path.cwd() / name))
    return "\n".join(file.read_text(encoding="utf-8-sig", errors="replace") for file in files if file.is_file())


def _node_rank(count: int) -> int | None:
    value = os.environ.get("NODE_RANK", "")
    if not value:
        return None
    if not value.isdecimal() or int(value) >= count:
        raise UserError(f"NODE_RANK={value}: must be this host's place in the hostfile, 0 to {count - 1}")
    if count > 1 and not os.environ.get("MASTER_ADDR"):
        raise UserError("NODE_RANK without MASTER_ADDR: set it to the address of the first host in the hostfile")
    return int(value)


def _check_pdsh() -> None:
    if shutil.which("pdsh") is None:
        raise UserError("pdsh, which DeepSpeed reaches other hosts with, is not installed (apt install pdsh); without "
                        "it give this command on every host, with NODE_RANK=0, 1, ... and MASTER_ADDR")
    for what, path in (("the working directory", os.getcwd()), ("the Python interpreter", sys.executable)):
        if UNSAFE.search(path) or "%" in path:
            raise UserError(f"{what} {path!r} has characters in its name that DeepSpeed's launcher cannot pass on to "
                            f"other hosts; use a path of letters, digits and @+=:,./_-")


def _needed() -> dict[str, str]:
    """What must exist on every host."""
    found = {"the Python interpreter": sys.executable, "the working directory": os.getcwd()}
    for name in ("REPOSITORY", "CHECKPOINT_PATH", "DATA_PATH"):
        path = os.path.abspath(os.environ.get(name) or os.getcwd())
        if os.path.exists(path):  # else the evaluation itself says what it misses, if it needs it at all
            found[name] = path
    return found


class Run:
    """The launcher as a child process, its output passed on without its own reports."""

    def __init__(self, command: list[str], environment: dict[str, str], is_local: bool):
        self.is_local = is_local
        self.deadline: float | None = None
        self.ended: dict[str, int] = {}  # exit codes of hosts that failed
        self.has_reason = False
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        self.readers = [threading.Thread(target=self._pass_on, args=streams, daemon=True) for streams in
                        ((self.process.stdout, sys.stdout.buffer), (self.process.stderr, sys.stderr.buffer))]
        for reader in self.readers:
            reader.start()

    def _pass_on(self, source, target) -> None:
        for line in source:
            text = line.decode("utf-8", errors="replace")
            if CHATTER.match(text):
                if ended := HOST_ENDED.match(text):
                    self.ended[f"on host {ended[1]} "] = int(ended[2])
                    patience = SHORT_PATIENCE if self.has_reason else PATIENCE
                    self.deadline = self.deadline or time.monotonic() + patience
                elif (ended := PROCESS_ENDED.match(text)) and self.is_local:
                    self.ended[""] = int(ended[1]) % 256
                continue
            self.has_reason = self.has_reason or text.startswith(("error:", "interrupted"))
            target.write(printable(text.rstrip("\r\n")).encode() + b"\n")
            target.flush()

    def wait(self) -> int:
        """Its exit code. After a signal or at the deadline its processes on this machine are ended first."""
        received = []
        listen([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], lambda number, _: received.append(number))
        while self.process.poll() is None and not received:
            if self.deadline is not None and time.monotonic() > self.deadline:
                break
            time.sleep(0.1)
        if self.process.poll() is None:
            self._end()
        for reader in self.readers:
            reader.join(timeout=5)
        if received:
            return 128 + received[0]
        return self._code()

    def _code(self) -> int:
        """The code of the processes; says which failed, unless one of them has said why."""
        code = self.process.returncode
        if code == 0:
            return 0
        if self.has_reason and 2 in self.ended.values():
            return 2  # others may have been cut off by its end
        worst = max(self.ended, key=self.ended.get, default="")
        code = self.ended.get(worst, code)
        if not self.has_reason:
            print(f"error: a process {worst}{_fate(code)}", file=sys.stderr)
        return code if 0 < code < 128 else 1

    def _end(self) -> None:
        # With pdsh, DeepSpeed would answer SIGTERM by ending every process of this interpreter that it ever launched,
        # on every host, so it is not asked; stop() ends this run's.
        if self.is_local:
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _fate(code: int) -> str:
    """What an exit code from the launcher means; of a process that a signal ended it is 256 less that signal."""
    if code == 255:
        return "was lost: the connection over ssh broke"
    with contextlib.suppress(ValueError):
        return killed_by(256 - code)
    return f"failed (exit code {code})"


def stop(hosts, ssh: list[str], port: str) -> None:
    """End the rest of this run on all hosts: the launchers with its port, which end their processes."""
    pattern = f"[d]eepspeed.launcher.launch .*--master_port={port} "
    # CONT: a process that was stopped hears of it, too
    end = (f"for launcher in $(pgrep -u $(id -u) -f {shlex.quote(pattern)}); do kill -TERM $launcher; "
           "pkill -CONT -P $launcher; done")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(ssh_command(host, end, ssh), **quiet) for host in hosts]
    for process in processes:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    run(lambda: main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
