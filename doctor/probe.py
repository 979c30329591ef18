"""Trying out torch, SAT, the tokenizer's packages, the kernels and headers of checkpoints: faults that show only then.

It happens in a process of its own, stage by stage: a broken library may end its process, or hang. Each stage prints a
line of JSON when it begins, and one with its outcome.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from doctor.devices import Devices, Gpu
from runtime.errors import UserError
from runtime.program import child_environment

COMMAND = "probe"  # python -m doctor probe ...
SECONDS = 90  # for all stages; a compiler that starts from nothing takes some of them
BEGINS, STAGE = "begins", "stage"
Stages = dict[str, dict]


def run(stages: Mapping[str, Callable[[], dict]], say: Callable[[str], None]) -> None:
    """Tries every stage, in order; an exception becomes the outcome {"error": one line}."""
    for name, work in stages.items():
        say(json.dumps({STAGE: name, BEGINS: True}))
        try:
            outcome = work()
        except Exception as failure:
            outcome = {"error": one_line(failure), "kind": type(failure).__name__}
        say(json.dumps({STAGE: name, **outcome}))


def one_line(failure: Exception) -> str:
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if isinstance(failure, UserError) else f"{type(failure).__name__}: {text}".rstrip(": ")


def ask(arguments: list[str], seconds: float = SECONDS, command: list[str] | None = None) -> Stages:
    """The outcomes of the stages by name, tried in a child process; where that ends too early, its last stage has
    {"ended": how}. command: stands for python -m doctor probe in tests."""
    command = command or [sys.executable, "-m", "doctor", COMMAND]
    environment = child_environment(os.environ) | {"SAT_LOGLEVEL": "ERROR"}
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               errors="replace", stdin=subprocess.DEVNULL, env=environment)
    try:
        out, said = process.communicate(timeout=seconds)
        code = process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        how += f": {lines[-1]}" if code > 0 and lines else ""
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        code, how = 1, f"did not come back within {seconds:.0f} s"
    return outcomes(out, code, how)


def outcomes(out: str, code: int, how: str) -> Stages:
    """From the lines that a child wrote; other lines are a library's."""
    found: Stages = {}
    last = "its start"
    for line in out.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and STAGE in value:
                last = value.pop(STAGE)
                if not value.pop(BEGINS, False):
                    found[last], last = value, "its end"
    if code:
        found[last] = {**found.get(last, {}), "ended": how}
    return found


def machine_stages(device: str | None, processes: int) -> dict[str, Callable[[], dict]]:
    """The stages that do not depend on a checkpoint."""
    return {"torch": lambda: look_at_torch(device), "sat": import_sat, "sentencepiece": import_sentencepiece,
            "cpu-kernels": try_cpu_kernels, "cuda-kernels": lambda: try_cuda_kernels(processes)}


def look_at_torch(device: str | None = None) -> dict:
    """The fields of devices.Devices. device: that the run asks for, None where it is found out."""
    import torch

    from planning.machine import default_device, default_precision
    from runtime.resources import unusable

    failure = ""
    gpus = []
    try:
        torch.cuda.init() if torch.version.cuda else None
    except Exception as error:  # torch's own words for a driver that is missing, or too old
        failure = one_line(error)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            gpus.append(Gpu(properties.name, 10 * properties.major + properties.minor, total, free))
    architectures = torch.cuda.get_arch_list() if torch.version.cuda else []
    is_other = (device or "cpu").partition(":")[0] not in ("cpu", "cuda")
    return dataclasses.asdict(Devices(
        torch.__version__, torch.version.cuda, tuple(architectures), driver_version(), tuple(gpus), failure,
        default_precision(device or default_device()), (unusable(device) or "") if is_other else ""))


def devices_of(outcome: Mapping) -> Devices:
    """From what look_at_torch gave, on this or another host."""
    values = {field.name: outcome[field.name] for field in dataclasses.fields(Devices) if field.name in outcome}
    return Devices(**{**values, "architectures": tuple(values.get("architectures", ())),
                      "gpus": tuple(Gpu(**gpu) for gpu in values.get("gpus", ()))})


def driver_version(name: str = "libcuda.so.1") -> int | None:
    """The newest CUDA that the loaded driver serves, 12040 for 12.4; None where there is no driver."""
    number = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value
    return None


def import_sat() -> dict:
    from glm import model
    from runtime import parallel

    return {"modules": [parallel.mpu.__name__, model.GLM.__name__]}


def import_sentencepiece() -> dict:
    from sentencepiece import sentencepiece_model_pb2

    piece = sentencepiece_model_pb2.ModelProto.SentencePiece(piece="a")  # protobuf's part in it
    return {"bytes": len(piece.SerializeToString())}


def try_cpu_kernels() -> dict:
    """Builds (or loads) them and runs one, which ends the process where they were built for another processor."""
    import torch

    from kernels import cpu, reference

    operations = cpu.operators()
    x, weight = torch.arange(64.0).reshape(1, 64) / 64, torch.ones(32, 64)
    with torch.no_grad():
        found, expected = operations.linear(x, weight), reference.linear(x, weight)
    if not torch.allclose(found, expected):
        raise ArithmeticError("they compute wrong products here")
    return {"instructions": operations.path}


def try_cuda_kernels(processes: int) -> dict:
    """On each of the GPUs that the run's processes of this host would take."""
    import torch

    from kernels import cuda

    numbers = range(min(processes, torch.cuda.device_count())) if torch.cuda.is_available() else ()
    for number in numbers:
        multiply(cuda.operators(), f"cuda:{number}")
    return {"tried": len(numbers)}


def multiply(operations, device: str) -> None:
    """One product with a packed weight: compiled, loaded, started, compared. Raises BuildError, ArithmeticError."""
    import torch

    from kernels import reference
    from kernels.cache import BuildError

    x = torch.arange(512.0, device=device).reshape(2, 256).to(torch.float16) / 512
    weight = torch.arange(128 * 256, device=device).reshape(128, 256).remainder(15).to(torch.int8)
    scale = torch.full((128,), 1 / 64, device=device, dtype=torch.float16)
    with torch.no_grad():
        found, expected = (one.weight_only_linear(x, weight, scale).float() for one in (operations, reference))
    if operations.failure:
        raise BuildError(operations.failure)
    if not torch.allclose(found, expected, rtol=0.01, atol=0.01):
        raise ArithmeticError(f"{device} computes wrong products")
