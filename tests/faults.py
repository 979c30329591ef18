"""Programs that are started, watched and ended from outside (in processes that have torch already, or as commands), and
disks that are too small."""

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.parallel_helper import start
from tests.tiny_tasks import MODEL

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # within which everything happens, or hangs: for machines that are slow and busy


def prompts_of(count: int) -> str:
    """Lines with an id, of different lengths and kinds of blanks."""
    texts = ["Number {} [MASK] to the house", "They walked to {} and [sMASK] so", "The garden {} is"]
    return "".join(f"id{number}\t{texts[number % 3].format(number)}\n" for number in range(count))


def generation_arguments(folder: Path, *more: str, output: str = "out", load: Path | None = None) -> list[str]:
    """A run over folder/prompts.txt (prompts_of), one prompt at a time."""
    return [*MODEL, *(["--load", str(load)] if load else []), "--input-source", str(folder / "prompts.txt"),
            "--output-path", str(folder / output), "--with-id", "--top-k", "1", "--max-gen-length", "8",
            "--batch-size", "1", *more]


def run_as(program: str, argv: list[str], log: str, environment: dict[str, str]) -> None:
    """In a process of its own: the main function of a module, its output in files; ends with its exit code."""
    import importlib

    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    if bytes_of_a_file := environment.get("FILE_LIMIT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(bytes_of_a_file),) * 2)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 70
    try:
        code = importlib.import_module(program).main(argv) or 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        from runtime import parallel

        parallel.stop()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def started(program: str, argv: list[str], log: Path, **environment: str):
    """A process that runs python -m `program`, without the seconds that importing torch takes."""
    return start(run_as, program, argv, str(log), environment)


def started_ranks(program: str, argv: list[str], log: Path, world: int, **environment: str) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [started(program, argv, log.with_name(f"{log.name}{rank}"), RANK=str(rank), LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **environment)
            for rank in range(world)]


def ended(process) -> int:
    process.join(SECONDS)
    assert process.exitcode is not None, "does not end"
    return process.exitcode


class Disk:
    """A file system of its own, mounted at a folder; a context manager. Skips the test where none can be mounted."""

    def __init__(self, folder: Path, kilobytes: int):
        self.folder = folder
        folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))

    def change(self, options: str) -> None:
        self._mount("-o", f"remount,{options}", str(self.folder))

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _mount(self, *arguments: str) -> None:
        try:
            done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no program mount")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def said(errors: str) -> str:
    """What a program wrote to standard error but for lines of progress, which come as time passes."""
    return re.sub(r"^.*/s(, [\d.: minsh]+ left)?\n|^.* answers are there from an earlier run\n", "", errors,
                  flags=re.MULTILINE)


def errors_of(log: Path) -> str:
    return said(Path(f"{log}.err").read_text())


def size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def wait_for(condition, process=None) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        if process is not None and process.exitcode is not None:
            return
        time.sleep(0.001)


def kill_at_random(processes: list, grows: Path, most: int, chance: random.Random) -> int:
    """kill -9 as soon as a file has a random size up to `most` and some milliseconds more, or before it is there; how
    many of the processes died of it."""
    enough = chance.uniform(-0.2 * most, most)
    if enough > 0:
        wait_for(lambda: size_of(grows) > enough, processes[0])
    time.sleep(chance.uniform(0, 0.03 if enough > 0 else 0.2))
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return sum(process.exitcode == -signal.SIGKILL for process in processes)


def command(*arguments: str, **environment: str) -> subprocess.Popen:
    """A real command of the repository; its output in .stdout and .stderr."""
    values = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=values, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def launched(world: int, module: str, argv: list[str], **environment: str) -> subprocess.Popen:
    return command(str(ROOT / "scripts" / "launch.py"), str(world), module, *argv, **environment)


def ranks_of(launcher: subprocess.Popen, world: int) -> list[int]:
    """Process ids of its ranks, in their order."""
    def children() -> list[int]:
        return [int(word) for word in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]

    wait_for(lambda: len(children()) == world)
    return children()
