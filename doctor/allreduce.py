"""What each rank runs for the doctor: one all-reduce between all, measured. Do they reach one another, and how fast?

Every rank first reports at the first one's store, a plain TCP server: so the first rank knows who is missing before any
rank waits in a collective operation. The operation runs in a thread, so that a rank in which it hangs can still say so.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from runtime.meeting import STORE_SOCKET, listening_at

COMMAND = "all-reduce"  # python -m doctor all-reduce, one process per rank
BYTES, FEW_BYTES = 64 << 20, 1 << 20
SLOW_SECONDS = 0.2  # a network that takes so long for FEW_BYTES is measured with these alone
REPETITIONS = 3
MARK = "all_reduce"  # the key that this program's line of JSON has
JOIN_SECONDS, WORK_SECONDS = 30.0, 25.0  # to start Python and torch everywhere; for the operation
GO, END = "go", "end"


@dataclass(frozen=True)
class Place:
    """A rank, and where all meet."""

    rank: int
    world: int  # how many ranks there are
    local_rank: int
    address: str
    port: int
    serves: bool  # the meeting place is this rank's
    socket: int | None = None  # descriptor at which it listens already
    seconds_to_join: float = JOIN_SECONDS
    seconds_to_work: float = WORK_SECONDS

    @classmethod
    def read(cls, environment: Mapping[str, str], seconds_to_join: float = JOIN_SECONDS) -> Place:
        """From the environment of scripts/launch.py, which hands its socket to the first rank, or of DeepSpeed."""
        rank, listening = int(environment["RANK"]), environment.get(STORE_SOCKET)
        return cls(rank, int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", "0")),
                   environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), rank == 0,
                   int(listening) if rank == 0 and listening else None, seconds_to_join)


@dataclass(frozen=True)
class Outcome:
    """What the first rank has seen."""

    world: int
    backend: str = ""
    missing: tuple[int, ...] = ()  # ranks that never came
    hosts: dict[int, str] = field(default_factory=dict)  # where those that came run, by rank
    failed: dict[int, str] = field(default_factory=dict)  # why a rank did not get through the operation
    # GB/s over the slowest link in use, as NVIDIA's nccl-tests count it (busbw): 2 (n - 1) / n times bytes over time,
    # of the slowest rank's best repetition
    bandwidth: float | None = None


def run(place: Place, operation: Callable[[Place, object], tuple[str, float]] | None = None) -> Outcome | None:
    """One rank's part. The first rank returns the outcome of all; another one returns its own only where it does not
    reach the first. operation(place, store) gives (backend, seconds per byte); tests have their own."""
    import torch

    wait = datetime.timedelta(seconds=place.seconds_to_join)
    listening = listening_at(place.address, place.port) if place.serves and place.socket is None else place.socket
    try:
        server = torch.distributed.TCPStore(place.address, place.port, is_master=place.serves, timeout=wait,
                                            wait_for_workers=False, master_listen_fd=listening)
    except Exception as error:
        why = f"cannot reach the first rank at {place.address}:{place.port} ({type(error).__name__})"
        return Outcome(place.world, hosts={place.rank: socket.gethostname()}, failed={place.rank: why})
    store = torch.distributed.PrefixStore("doctor", server)
    store.set(f"here/{place.rank}", socket.gethostname())
    if place.rank:
        with contextlib.suppress(Exception):  # the first rank has gone: nobody listens any more
            store.wait([GO], wait)
            if store.get(GO) == b"yes":
                _work(place, store, operation or all_reduce)
            store.wait([END], datetime.timedelta(seconds=place.seconds_to_join + place.seconds_to_work))
        return None
    outcome = _lead(place, store, operation or all_reduce)
    with contextlib.suppress(Exception):
        store.set(END, "yes")
        time.sleep(0.5)  # the store goes with this process: others must have read it
    return outcome


def _lead(place: Place, store, operation) -> Outcome:
    came = _gather(store, "here", range(place.world), place.seconds_to_join)
    hosts = {rank: name.decode() for rank, name in came.items()}
    missing = tuple(rank for rank in range(place.world) if rank not in came)
    store.set(GO, "no" if missing else "yes")
    if missing:
        return Outcome(place.world, missing=missing, hosts=hosts)
    _work(place, store, operation)
    answers = _gather(store, "done", range(place.world), place.seconds_to_work)
    found = {rank: json.loads(answer) for rank, answer in answers.items()}
    failed = {rank: found.get(rank, {"error": "did not come back from the all-reduce"}).get("error", "")
              for rank in range(place.world)}
    failed = {rank: why for rank, why in failed.items() if why}
    if failed:
        return Outcome(place.world, hosts=hosts, failed=failed)
    seconds = max(one["seconds_per_byte"] for one in found.values())
    return Outcome(place.world, found[0]["backend"], hosts=hosts,
                   bandwidth=2 * (place.world - 1) / place.world / seconds / 1e9)


def _gather(store, name: str, ranks, seconds: float) -> dict[int, bytes]:
    """What the ranks have written, by rank; without those that are late."""
    end, found = time.monotonic() + seconds, {}
    for rank in ranks:
        key, left = f"{name}/{rank}", max(0.05, end - time.monotonic())
        with contextlib.suppress(Exception):  # the time is over
            store.wait([key], datetime.timedelta(seconds=left))
            found[rank] = store.get(key)
    return found


def _work(place: Place, store, operation) -> None:
    """The operation in a thread; its outcome, or that it took too long, is written to the store."""
    answer = {"error": f"did not come back from the all-reduce within {place.seconds_to_work:.0f} s"}

    def work() -> None:
        try:
            backend, seconds = operation(place, store)
            answer.clear()
            answer.update(backend=backend, seconds_per_byte=seconds)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answer["error"] = lines[0][:300]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(place.seconds_to_work - 1)
    store.set(f"done/{place.rank}", json.dumps(answer))


def all_reduce(place: Place, store) -> tuple[str, float]:
    """Sums float32 over all ranks, checks the sum, and times it: (backend, seconds per byte of the best repetition)."""
    import torch

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=place.seconds_to_work)
    torch.distributed.init_process_group(backend, store=torch.distributed.PrefixStore("group", store), rank=place.rank,
                                         world_size=place.world, timeout=limit)

    def seconds_for(values) -> float:
        torch.distributed.barrier()
        begin = time.perf_counter()
        torch.distributed.all_reduce(values)
        if backend == "nccl":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    values = torch.full((FEW_BYTES // 4,), float(place.rank + 1), device=device)
    seconds_for(values)
    expected = place.world * (place.world + 1) / 2
    if not bool((values == expected).all()):
        raise ArithmeticError(f"the sum over all ranks is wrong: {values[0].item()}, not {expected}")
    slowest = torch.tensor([seconds_for(values)], device=device)
    torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)  # all must decide alike
    if slowest.item() < SLOW_SECONDS:
        values = torch.ones(BYTES // 4, device=device)
    return backend, min(seconds_for(values) for _ in range(REPETITIONS)) / (values.numel() * 4)


def line_of(outcome: Outcome) -> str:
    return json.dumps({MARK: asdict(outcome)})


def read_outcomes(out: str) -> list[Outcome]:
    """The outcomes among the lines that the ranks have written, the first rank's first."""
    found = []
    for line in out.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            values = json.loads(line)[MARK]
            values |= {name: {int(rank): text for rank, text in values[name].items()}
                       for name in ("hosts", "failed")}
            found.append(Outcome(**{**values, "missing": tuple(values["missing"])}))
    return sorted(found, key=lambda one: 0 not in one.hosts)


def main(seconds: float, environment: Mapping[str, str] = os.environ) -> str | None:
    """The line that this rank has to say."""
    outcome = run(Place.read(environment, seconds))
    return line_of(outcome) if outcome else None
