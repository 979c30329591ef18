"""Process groups for tensor parallelism: started here, by SAT's rules of which rank belongs to which group.

SAT picks NCCL whenever torch was built with it, even without a GPU, so the process group is ours and SAT only
divides it (sat.mpu). One process without a launcher is a world of one and opens no port. SAT's modules are imported
without what its packages pull in (`lean_sat`): seconds of start and pages of chatter.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.machinery
import os
import secrets
import sys
import types
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from runtime.errors import UserError
from runtime.heartbeat import Lost, Watch, limit_seconds
from runtime.meeting import meet
from runtime.show import counted

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun serves the store itself
T = TypeVar("T")
# Packages whose __init__ pulls in transformers, datasets and DeepSpeed (4 s); we need only modules inside them.
_SAT_PACKAGES = ("sat", "sat.model")
_NOT_NEEDED = ("deepspeed",)
_watches: list[Watch] = []  # none or one, as there is none or one process group
small_sums: dict = {}  # by a device's type: what adds up what fits in the library's place (kernels.small_sums)
patience: list[float] = []  # none or one: seconds that collectives may take


@contextlib.contextmanager
def lean_sat() -> Iterator[None]:
    """Import modules of SAT without running `sat/__init__.py`, and without SAT's and DeepSpeed's chatter.

    While it lasts, the packages are empty shells with the right path; afterwards the shells are dropped, so that a
    later `import sat` by another library runs the real thing and finds our modules already loaded.
    """
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")
    shells = [name for name in _SAT_PACKAGES if name not in sys.modules]
    blocked = [name for name in _NOT_NEEDED if name not in sys.modules]
    try:
        for name in shells:
            sys.modules[name] = _shell(name)
        sys.modules.update(dict.fromkeys(blocked))  # None: importing it raises ModuleNotFoundError, which SAT expects
        yield
    finally:
        for name in (*shells, *blocked):
            sys.modules.pop(name, None)


def _shell(name: str) -> types.ModuleType:
    parent = name.rpartition(".")[0]
    path = sys.modules[parent].__path__ if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None:
        raise UserError("SwissArmyTransformer is not installed; run: pip install -r requirements.txt")
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    return module


with lean_sat():
    from sat import mpu


def start(model_parallel_size: int = 1, backend: str | None = None, timeout_seconds: float = 1800,
          device: str | torch.device | None = None) -> None:
    """Start the process group (from a launcher's environment, else a world of one) and divide it.

    backend: "nccl" or "gloo"; None: what the device needs. device: the model's; None: a GPU where there is one.
    Calling again with the same degree does nothing.
    Raises UserError when the world is no multiple of the degree, when the degree would change, or without a GPU for
    this rank.
    """
    if is_started():
        if model_parallel_size != size():
            raise UserError(f"tensor-parallel degree {model_parallel_size} asked for, but this process already runs "
                            f"with {size()}; start a new process to change it")
        return
    if not torch.distributed.is_initialized():
        _start_process_group(backend or backend_for(device), timeout_seconds)
    world = torch.distributed.get_world_size()
    if model_parallel_size < 1 or world % model_parallel_size:
        raise UserError(f"{counted(world, 'process', 'es')} cannot be divided into tensor-parallel groups of "
                        f"{model_parallel_size}; start a multiple of --model-parallel-size, for example: "
                        f"MP_SIZE={model_parallel_size} bash scripts/generate.sh ..., or "
                        f"python scripts/launch.py {model_parallel_size} generation ...")
    mpu.initialize_model_parallel(model_parallel_size)


def backend_for(device: str | torch.device | None) -> str:
    """NCCL carries tensors of GPUs alone, gloo those of a CPU."""
    is_gpu = torch.cuda.is_available() if device is None else str(device).startswith("cuda")
    return "nccl" if is_gpu else "gloo"


def _start_process_group(backend: str, timeout_seconds: float) -> None:
    timeout, patience[:] = datetime.timedelta(seconds=timeout_seconds), [timeout_seconds]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1,
                                             timeout=timeout)
        return
    limit = limit_seconds()
    if backend == "nccl":
        torch.cuda.set_device(own_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
    if os.environ.get(AGENT_STORE) == "True":
        torch.distributed.init_process_group(backend, init_method="env://", timeout=timeout)
    else:
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group(backend, store=meet(rank, world, timeout_seconds), rank=rank,
                                             world_size=world, timeout=timeout)
    if limit:
        _start_watch(limit)


def own_gpu(local_rank: int, count: int) -> int:
    """The GPU of this rank, of the `count` that its host has. UserError where there are too few."""
    if local_rank >= count:
        raise UserError(f"rank {local_rank} of this host has no GPU of its own: torch finds {count}; start at most "
                        f"{counted(count, 'process', 'es')} on it, or use --device cpu (in Python: device='cpu')")
    return local_rank


def _start_watch(limit: float) -> None:
    """All ranks together."""
    watch = Watch(limit, _give_up)
    mine = watch.place(os.environ.get("MASTER_ADDR", "127.0.0.1"))
    everybody = _gathered((mine, secrets.token_bytes(16)))
    watch.start(everybody[0][1], torch.distributed.get_rank(), [place for place, _ in everybody])
    _watches.append(watch)


def _give_up(lost: Lost) -> None:
    """Ends this process, whose main thread waits for another one in vain. Called in the watch's thread."""
    if lost.is_mine_to_say:
        print(f"error: {lost}", file=sys.stderr, flush=True)
    os._exit(2)


def lost(error: BaseException) -> Lost | None:
    """The process whose end is behind an error of a collective; None: the error is this process's own."""
    return _watches[0].lost(error) if _watches else None


def step() -> None:
    """Count a collective: the others wait for the process that has counted fewest."""
    for watch in _watches:
        watch.steps += 1


def stop() -> None:
    """Leave the group at the end of a program: else a process that ends earlier than the others may be aborted."""
    small_sums.clear()
    patience.clear()
    while _watches:
        _watches.pop().stop()
    if is_started():
        mpu.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_started() -> bool:
    return mpu.model_parallel_is_initialized()


def size() -> int:
    """Tensor-parallel degree."""
    return mpu.get_model_parallel_world_size()


def rank() -> int:
    """This process's rank inside its tensor-parallel group."""
    return mpu.get_model_parallel_rank()


def data_parallel_size() -> int:
    """How many tensor-parallel groups there are, each with the whole model."""
    return torch.distributed.get_world_size() // size()


def data_parallel_rank() -> int:
    """Which of these groups this process belongs to: groups are made of neighbouring ranks."""
    return torch.distributed.get_rank() // size()


def sum_over_data(x: torch.Tensor) -> None:
    """In place, over the ranks that hold the same part of the model."""
    step()
    torch.distributed.all_reduce(x, group=mpu.get_data_parallel_group())


def sum_over_parts(x: torch.Tensor) -> None:
    """In place, over the tensor-parallel ranks; for what has no gradient."""
    step()
    torch.distributed.all_reduce(x, group=group())


def sum_over_all(x: torch.Tensor) -> None:
    """In place, over all processes."""
    step()
    torch.distributed.all_reduce(x)


def source_rank() -> int:
    """Global rank of the first process of this tensor-parallel group."""
    return mpu.get_model_parallel_src_rank()


def group() -> torch.distributed.ProcessGroup:
    return mpu.get_model_parallel_group()


def is_first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def reduce(x: torch.Tensor) -> torch.Tensor:
    """Sum over the tensor-parallel ranks (differentiable)."""
    step()
    sums = _sums(x)
    if sums is not None and sums.fits(x):
        return sums.sum(x)
    return mpu.reduce_from_model_parallel_region(x)


def _sums(x: torch.Tensor):
    return None if torch.is_grad_enabled() else small_sums.get(x.device.type)


def copy(x: torch.Tensor) -> torch.Tensor:
    """x as it is; its gradients are summed over the ranks."""
    return mpu.copy_to_model_parallel_region(x)


def gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate the ranks' parts along the last dimension (differentiable)."""
    step()
    sums = _sums(x)
    whole = None if sums is None else sums.gathered(x)
    return mpu.gather_from_model_parallel_region(x) if whole is None else whole


def broadcast_object(value: object) -> object:
    """The first rank's value on every rank of the tensor-parallel group (any picklable value, trusted processes)."""
    if size() == 1:
        return value
    step()
    torch.distributed.broadcast_object_list(box := [value], src=source_rank(), group=group())
    return box[0]


def agree(work: Callable[[], T], sequential: bool = False) -> T:
    """work()'s result on every rank, or an error on every rank if one rank failed: no rank waits for one that is gone.
    sequential: one rank after another."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return work()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    result, failure = None, None
    for turn in range(world if sequential else 1):
        if not sequential or turn == rank:
            try:
                result = work()
            except Exception as error:  # whatever it is, the others must hear of it
                failure = error
        messages: list[str | None] = _gathered(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for other, message in enumerate(messages):
            if message is not None:
                raise UserError(f"rank {other} failed: {message}")
    return result


def collect(value: object) -> list:
    """The values of every group's first rank, in the order of the groups, on all processes (trusted ones)."""
    return [value] if torch.distributed.get_world_size() == 1 else _gathered(value if rank() == 0 else None)[::size()]


def exchange(value: object) -> list:
    """Every tensor-parallel rank's value, on all of them (trusted processes)."""
    return _gathered(value, group()) if is_started() and size() > 1 else [value]


def _gathered(value: object, among: torch.distributed.ProcessGroup | None = None) -> list:
    step()
    torch.distributed.all_gather_object(values := [None] * torch.distributed.get_world_size(among), value, among)
    return values
