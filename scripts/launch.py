"""Runs a module in several processes of this machine; its exit code is that of the first to fail.

usage: python scripts/launch.py PROCESSES MODULE ARGUMENTS...

torchrun can start them, too, but its reports would bury the one line that says what is wrong. Here no process outlives
this one, however it ends. SIGINT, SIGTERM and SIGHUP end them with their files closed, unless they are ignored from the
start, as under nohup.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.meeting import FIRST_PROCESS, STORE_SOCKET
from runtime.program import killed_by, listen, run
from runtime.resources import cores

OWN_SECONDS = 6.0  # that the others have to end by themselves after one has failed
END_SECONDS, ASKED_SECONDS = 10.0, 30.0  # to react to SIGTERM: after a failure; when the user ends the run
PATIENT = {"serving": 3600.0}  # modules that end well when asked to, with an exit code of their own, but take a while
PR_SET_PDEATHSIG = 1


def main(processes: int, module: str, arguments: list[str]) -> int:
    received = []
    listen([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], lambda number, _: received.append(number))
    with socket.create_server(("127.0.0.1", 0), backlog=4 * processes) as meeting:
        children: list[subprocess.Popen] = []
        for rank in range(processes):
            children.append(_start(rank, processes, meeting, [module, *arguments], *children[:1]))
    while not received:
        codes = [child.poll() for child in children]
        if not any(code != 0 for code in codes):
            return 0
        if failed := [rank for rank, code in enumerate(codes) if code]:
            return _failed(children, min(failed, key=lambda rank: codes[rank]), received)
        time.sleep(0.05)
    asked = received[0]
    _end(children, PATIENT.get(module, ASKED_SECONDS), received)
    code = children[0].returncode
    return code if module in PATIENT and asked == signal.SIGTERM and code in (0, 1) else 128 + asked


def _start(rank: int, processes: int, meeting: socket.socket, command: list[str],
           first: subprocess.Popen | None = None) -> subprocess.Popen:
    """One rank; the first takes over the socket at which all meet, so that no other program can take its port."""
    address, port = meeting.getsockname()
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // processes)), **os.environ, "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                   "MASTER_ADDR": address, "MASTER_PORT": str(port), STORE_SOCKET: str(meeting.fileno())}
    environment |= {FIRST_PROCESS: str(first.pid)} if first is not None else {}
    before = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if sys.platform == "linux" else None
    return subprocess.Popen([sys.executable, "-u", "-m", *command], env=environment, start_new_session=True,
                            pass_fds=(meeting.fileno(),) if rank == 0 else (), preexec_fn=before)


def _failed(children: list[subprocess.Popen], rank: int, received: list[int]) -> int:
    """Ends the others after a rank has failed, says why unless a rank has said it, and returns the exit code."""
    code = children[rank].returncode
    if code < 0:
        _end(children, END_SECONDS)
        print(f"error: the process of rank {rank} {killed_by(-code)}", file=sys.stderr)
        return 128 - code
    _wait(children, OWN_SECONDS, received)
    is_cut_off = _is_running(children[0])
    _end(children, END_SECONDS)
    if is_cut_off and rank:  # the first rank is the one that says what is wrong
        print(f"error: the process of rank {rank} failed (exit code {code})", file=sys.stderr)
    return code


def _end(children: list[subprocess.Popen], seconds: float, received: Sequence[int] = ()) -> None:
    """SIGTERM, then SIGKILL when the seconds are over or one more signal is received; at once for a process that is
    stopped (SIGSTOP), which cannot react."""
    for child in children:
        if _is_running(child):
            child.terminate()
    _wait(children, seconds, received)
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def _wait(children: list[subprocess.Popen], seconds: float, received: Sequence[int]) -> None:
    """Until all have ended, the seconds are over or one more signal is received."""
    before, end = len(received), time.monotonic() + seconds
    while any(map(_is_running, children)) and time.monotonic() < end and len(received) == before:
        time.sleep(0.02)


def _is_running(child: subprocess.Popen) -> bool:
    return child.poll() is None and not os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)


if __name__ == "__main__":
    run(lambda: main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
