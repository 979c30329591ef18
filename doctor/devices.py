"""torch, CUDA's driver, the GPUs, and the kernels that are compiled for what is here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from doctor.finding import Finding, error, pip, requirements, warning
from runtime.show import counted

WHEELS = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Gpu:
    """As torch sees it."""

    name: str
    capability: int  # 90 for 9.0
    total: int  # bytes of memory
    free: int  # bytes


@dataclass(frozen=True)
class Devices:
    """What there is to compute on, and what torch makes of it."""

    torch: str  # its version
    cuda: str | None = None  # the version that torch is built for
    architectures: tuple[str, ...] = ()  # those of torch's own kernels: "sm_90", "compute_120"
    driver: int | None = None  # the newest CUDA that the driver serves (12040 for 12.4); None: no driver is loaded
    gpus: tuple[Gpu, ...] = ()
    failure: str = ""  # why torch sees no GPU, in its words
    precision: str = ""  # of runs that do not say otherwise
    unusable: str = ""  # why torch cannot use a device of another kind that the run names, in its words


@dataclass(frozen=True)
class Wanted:
    """What the configured run wants of this host."""

    device: str = ""  # of --device; "": found out
    processes: int = 1

    def uses_gpus(self, devices: Devices) -> bool:
        return self.device.startswith("cuda") or (not self.device and bool(devices.gpus))


def check(devices: Devices, nvidia: int, wanted: Wanted, where: str) -> Iterator[Finding]:
    """nvidia: GPUs that the system knows of (machine.count_nvidia)."""
    fault = next(check_reach(devices, nvidia, wanted, where), None)
    if fault:
        yield fault
        return
    for number, gpu in enumerate(devices.gpus):
        if not any(runs_on(built, gpu.capability) for built in devices.architectures):
            yield error("gpu-architecture", where, f"GPU {number} ({gpu.name}) has compute capability "
                        f"{gpu.capability / 10}; this torch ({devices.torch}) is built for "
                        f"{', '.join(devices.architectures)}",
                        f"{pip('install')} --index-url {WHEELS}/cu126 torch=={devices.torch.partition('+')[0]} (a "
                        "build for an older or newer CUDA)")
    if wanted.uses_gpus(devices) and len(devices.gpus) < wanted.processes:
        yield error("gpu-count", where, f"{wanted.processes} processes of a run share this host, each with a GPU of "
                    f"its own, but torch sees {len(devices.gpus)}", f"export MP_SIZE={max(1, len(devices.gpus))} "
                    "(several hosts: fewer slots in the hostfile), or unset CUDA_VISIBLE_DEVICES")


def check_reach(devices: Devices, nvidia: int, wanted: Wanted, where: str) -> Iterator[Finding]:
    """What stands between torch and the GPUs, the nearest to torch first; or the run's device of another kind."""
    if devices.unusable:
        yield error("device", where, f"--device {wanted.device} cannot be used by torch {devices.torch}: "
                    f"{devices.unusable}", "a torch that is built for it (https://pytorch.org/get-started), or "
                    "--device cpu")
        return
    version = devices.torch.partition("+")[0]
    if devices.cuda is None and (nvidia or wanted.device.startswith("cuda")):
        say = error if wanted.device.startswith("cuda") else warning
        yield say("torch-without-cuda", where, f"torch {devices.torch} is not built for CUDA: "
                  + (f"the {counted(nvidia, 'NVIDIA GPU')} here {'is' if nvidia == 1 else 'are'} not used"
                     if nvidia else f"--device {wanted.device} cannot be served"),
                  f"{pip('install')} --index-url {WHEELS}/cu130 torch=={version}")
    if devices.cuda is None:
        return
    if nvidia and devices.driver is None:
        yield error("driver", where,
                    f"{counted(nvidia, 'NVIDIA GPU')} here, but the driver (libcuda.so.1) does not load",
                    "sudo apt install nvidia-driver-580-server (a container: docker run --gpus all)")
    needed = int(devices.cuda.partition(".")[0])
    if devices.driver is not None and devices.driver // 1000 < needed:
        # a driver serves all of its major version of CUDA (NVIDIA: "CUDA compatibility", minor version compatibility)
        yield error("driver-old", where, f"the driver serves CUDA {cuda_version(devices.driver)}, torch is built for "
                    f"{devices.cuda}", f"install a driver for CUDA {needed}, or {pip('install')} --index-url "
                    f"{WHEELS}/cu126 torch=={version}")
    if (nvidia or wanted.device.startswith("cuda")) and not devices.gpus:
        yield error("gpu-hidden", where, f"torch sees no GPU ({counted(nvidia, 'NVIDIA GPU')} in this machine)"
                    + (f": {devices.failure}" if devices.failure else ""),
                    "unset CUDA_VISIBLE_DEVICES; nvidia-smi (a container: docker run --gpus all)")


def check_kernels(stages: dict[str, dict], devices: Devices, is_possible: bool, where: str) -> Iterator[Finding]:
    """stages: outcomes of the probe. is_possible: there is a compiler for the kernels of the CPU and a place for them;
    else that is the finding."""
    fault = stages.get("cpu-kernels", {}).get("error", "") if is_possible else ""
    if "by others" in fault or "another user" in fault:  # the cache, of which nothing is then used
        yield warning("kernel-cache", where, f"torch's own operators run, several times slower: "
                      f"{fault.partition(': ')[2].partition(';')[0]}",
                      "chmod go-w, if the folder is yours; else export GLM_KERNEL_CACHE=/a/folder/of/yours")
    elif fault:
        yield warning("cpu-kernels", where, f"the kernels of the CPU cannot be built or loaded, torch's own operators "
                      f"run instead, several times slower: {fault}", "CXX=g++ bash scripts/doctor.sh, or sudo apt "
                      "install --reinstall g++ libstdc++-12-dev")
    fault = stages.get("cuda-kernels", {}).get("error", "") if devices.gpus else ""
    if "is not found" in fault:
        yield warning("nvrtc", where, f"INT8 and INT4 run slower on this GPU: {fault.partition(';')[0]}",
                      pip(f"install {nvrtc_package(devices.cuda)}"))
    elif fault:
        yield warning("cuda-kernels", where, f"INT8 and INT4 run slower on this GPU, their kernels cannot be compiled "
                      f"or started: {fault}", "bash scripts/gpu_check.sh --only build correctness")


def check_imports(stages: dict[str, dict], is_complete: bool, where: str) -> Iterator[Finding]:
    """Packages that are installed but do not import. is_complete: nothing of requirements.txt is missing; else that is
    the finding where a module is not found."""
    for stage, code, name in (("torch", "torch-import", "torch"), ("sat", "sat-import", "SwissArmyTransformer"),
                              ("sentencepiece", "tokenizer-import", "sentencepiece with this protobuf")):
        outcome = stages.get(stage, {})
        if (fault := outcome.get("error")) and (is_complete or outcome.get("kind") != "ModuleNotFoundError"):
            yield error(code, where, f"{name} does not import: {fault}", requirements())
    for stage, outcome in stages.items():
        if outcome.get("ended"):
            yield error("probe", where, f"a process that tried {stage} {outcome['ended']}",
                        f"more memory, if that is a finding, too; else "
                        f"{pip('install --force-reinstall --no-deps torch')}")


def runs_on(built: str, capability: int) -> bool:
    """Whether code for "sm_86" or "compute_120" runs on a device: machine code on later minor numbers of its major
    number, PTX on everything later."""
    match = re.fullmatch(r"(sm|compute)_(\d+)[a-z]?", built)
    if not match:
        return False
    number = int(match[2])
    return number <= capability and (match[1] == "compute" or number // 10 == capability // 10)


def nvrtc_package(cuda: str | None) -> str:
    """The package of torch's CUDA wheels that brings NVRTC; from 13 on it has no number in its name."""
    major = (cuda or "13").partition(".")[0]
    return "nvidia-cuda-nvrtc" if int(major) >= 13 else f"nvidia-cuda-nvrtc-cu{major}"


def cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
